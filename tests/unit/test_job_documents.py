"""What an approval of a job is bound to: whatever of it changes is asked for again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from grid_jupyter.node.job_documents import JobDocument, binding_document
from grid_jupyter.node.verdicts import binding_of
from grid_jupyter.wire.jobs import Arguments, Part, Rows
from grid_jupyter.wire.messages import JobPolicy

JOB = JobDocument(
    plan="a" * 64,
    kind="forward",
    arguments=Arguments(
        optimizer="sgd", numbers={"lr": 0.1}, epochs=2, batch_size=8, shuffle=True, seed=0, metrics=("accuracy",),
        rounds=1, proximal=0.0, corrected=False,
    ),
    model=(Part(name="weight", dtype="float32", shape=(3, 8)),),
    data={"x": Rows(dataset=7, version=1, tensors=("data",))},
    rows=40,
    steps=10,
    reason="for a figure",
)  # fmt: skip
POLICY = JobPolicy(automatic=("Ann",))


def binding(job: JobDocument = JOB, policy: JobPolicy = POLICY) -> str:
    return binding_of(binding_document(job, {7: msgspec.to_builtins(policy)}))


def replaced(**changes: Any) -> JobDocument:
    return msgspec.structs.replace(JOB, **changes)


def argued(**changes: Any) -> JobDocument:
    return replaced(arguments=msgspec.structs.replace(JOB.arguments, **changes))


@pytest.mark.parametrize(
    "job",
    [
        replaced(plan="a" * 63 + "b"),
        *(
            argued(**{name: value})
            for name, value in {
                "optimizer": "adam", "numbers": {"lr": 0.1000000001}, "epochs": 3, "batch_size": 9, "shuffle": False,
                "seed": 1, "metrics": (), "rounds": 2, "proximal": 0.1, "corrected": True,
            }.items()
        ),
        replaced(model=(Part(name="weights", dtype="float32", shape=(3, 8)),)),
        replaced(model=(Part(name="weight", dtype="float64", shape=(3, 8)),)),
        replaced(model=(Part(name="weight", dtype="float32", shape=(3, 9)),)),
        replaced(data={"x": Rows(dataset=8, version=1, tensors=("data",))}),
        replaced(data={"x": Rows(dataset=7, version=2, tensors=("data",))}),
        replaced(data={"x": Rows(dataset=7, version=1, tensors=("date",))}),
        replaced(data={"y": Rows(dataset=7, version=1, tensors=("data",))}),
    ],
)  # fmt: skip
def test_one_thing_that_changes_of_a_job_is_another_binding(job: JobDocument):
    assert binding(job) != binding()


def test_every_argument_of_a_job_is_bound():
    assert set(binding_document(JOB, {})["arguments"]) == {one.name for one in msgspec.structs.fields(Arguments)}


@pytest.mark.parametrize(
    "policy",
    [
        JobPolicy(automatic=("Ann", "Bob")),
        JobPolicy(automatic=("Ann",), min_rows=2),
        JobPolicy(automatic=("Ann",), epoch_metrics=True),
        JobPolicy(automatic=("Ann",), full_isolation=True),
    ],
)
def test_an_owners_word_that_changes_is_another_binding(policy: JobPolicy):
    assert binding(policy=policy) != binding()


def test_the_same_is_the_same_binding_and_the_reason_is_not_in_it():
    assert binding(replaced(reason="for another figure")) == binding()
