"""Forms of diffs: what they unpack to, what they cost, and what is refused before it counts. NumPy alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy
import pytest
from cycle_world import MODEL, World, world
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save

from grid_jupyter.aggregation.diffs import FORMS, packed, restored, unpacked
from grid_jupyter.aggregation.fold import Fold
from grid_jupyter.aggregation.form import CHUNK, Form, chunks
from grid_jupyter.client.residual import Pending, Residual
from grid_jupyter.errors import BadRequest, GridError, InvalidDataError

Array = NDArray[Any]
F32 = numpy.float32


def some(*shape: int, seed: int = 0) -> Array:
    return numpy.random.default_rng(seed).standard_normal(shape).astype(F32)


# ------------------------------------------------------------------ there and back


@pytest.mark.parametrize(("kind", "error"), [("float32", 0.0), ("float16", 1e-3), ("int8", 2e-2)])
def test_a_diff_comes_back_as_precise_as_its_form_is(kind: str, error: float):
    diff = {"w": some(40, 30) * 1e-6, "b": some(40), "n": numpy.arange(3)}
    back = restored(packed(diff, kind, numpy.random.default_rng(1)), diff)
    assert list(back) == list(diff)
    for name, array in diff.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert numpy.linalg.norm(back[name] - array) <= error * numpy.linalg.norm(array)


def test_int8_is_not_pulled_either_way():
    diff = {"w": numpy.full((1, 20_000), 0.3, F32)}
    diff["w"][0, 0] = 127.0
    back = restored(packed(diff, "int8", numpy.random.default_rng(2)), diff)["w"]
    assert set(numpy.unique(back[0, 1:])) == {F32(0), F32(1)}
    assert back[0, 1:].mean() == pytest.approx(0.3, abs=0.01)


def test_topk_sends_the_largest_values_and_nothing_else():
    diff = {"w": numpy.array([[1, -9, 2], [0, 3, -4]], F32)}
    arrays = packed(diff, "topk", keep=0.5)
    assert arrays["w.index"].tolist() == [1, 4, 5]
    assert restored(arrays, diff)["w"].tolist() == [[0, -9, 0], [0, 3, -4]]


def test_error_feedback_sends_everything_in_the_end():
    diff = {"w": some(50)}
    residual = {"w": numpy.zeros(50, F32)}
    total = numpy.zeros(50, F32)
    for _ in range(60):
        whole = {"w": diff["w"] + residual["w"]}
        sent = restored(packed(whole, "topk", keep=0.1), whole)["w"]
        residual["w"] = whole["w"] - sent
        total += sent
    numpy.testing.assert_allclose(total + residual["w"], 60 * diff["w"], rtol=1e-4)
    assert numpy.abs(residual["w"]).max() < 30 * numpy.abs(diff["w"]).max()


@settings(max_examples=30, deadline=None)
@given(
    shape=st.sampled_from([(), (1,), (7,), (3, 5), (4, 1), (2, 3, 4), (CHUNK + 3,), (3, CHUNK // 2 + 1), (CHUNK, 2)]),
    kind=st.sampled_from(FORMS),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    seed=st.integers(0, 99),
)
def test_what_is_folded_is_what_the_whole_array_would_be(shape: tuple[int, ...], kind: str, dtype: str, seed: int):
    diff = {"w": some(*shape, seed=seed).astype(dtype)}
    form = Form.of(diff)
    arrays = packed(diff, kind, numpy.random.default_rng(seed))
    lazy, whole = Fold(form), Fold(form)
    tensors = unpacked(arrays, form)
    form.check(tensors)
    form.check_values(tensors, max_norm=1e9)
    lazy.add(tensors, 3.0)
    whole.add(restored(arrays, diff), 3.0)
    numpy.testing.assert_array_equal(lazy.mean()["w"], whole.mean()["w"])


def test_a_packed_report_is_folded_in_the_memory_of_a_chunk():
    import tracemalloc

    diff = {"w": some(3000, 700)}
    form = Form.of(diff)
    for kind in ("float16", "int8", "topk"):
        arrays, fold = packed(diff, kind), Fold(form)
        tracemalloc.start()
        tensors = unpacked(arrays, form)
        form.check_values(tensors)
        fold.add(tensors, 2.0)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 5 * CHUNK * 4, (kind, peak)  # the model has 8.4 MB


def test_tensors_of_the_model_are_never_taken_for_scales():
    diff = {"w": some(3), "w.scale": some(1), "w.index": numpy.arange(3, dtype=numpy.int32)}
    found = unpacked(diff, Form.of(diff))
    assert all(found[name] is diff[name] for name in diff)


# ------------------------------------------------------------------ what is refused


def sparse(index: Any, values: Any, **more: Any) -> dict[str, Array]:
    return {"w": numpy.asarray(values, F32), "w.index": numpy.asarray(index, numpy.int32), **more}


BAD: list[tuple[dict[str, Array], str]] = [
    (sparse([0, 0], [1, 1]), "does not rise"),
    (sparse([2, 1], [1, 1]), "does not rise"),
    (sparse([-1, 1], [1, 1]), "has not"),
    (sparse([0, 3], [1, 1]), "has not"),
    (sparse([0, 1, 2, 3], [1, 1, 1, 1]), "more values"),
    (sparse([0], [1, 1]), "one int32 or int64"),
    (sparse([0], [numpy.nan]), "NaN or infinite"),
    ({"w": numpy.ones(1, F32), "w.index": numpy.zeros(1, numpy.int16)}, "one int32 or int64"),
    ({"w": numpy.ones((3, 1), numpy.int8)}, "no scale"),
    ({"w": numpy.ones((3, 1), numpy.int8), "w.scale": numpy.ones(2, F32)}, "one for each row"),
    ({"w": numpy.ones((3, 1), numpy.int8), "w.scale": numpy.ones(3, numpy.float64)}, "one for each row"),
    ({"w": numpy.ones((3, 1), numpy.int8), "w.scale": numpy.full(3, numpy.inf, F32)}, "infinite"),
    ({"w": numpy.ones((3, 1), numpy.int8), "w.scale": numpy.full(3, numpy.nan, F32)}, "infinite"),
    ({"w": numpy.ones((3, 1), numpy.int8), "w.scale": numpy.full(3, -1, F32)}, "negative"),
    ({"w": numpy.full((3, 1), 127, numpy.int8), "w.scale": numpy.full(3, 3e38, F32)}, "NaN or infinite"),
    ({"w": numpy.full((3, 1), 1, numpy.int8), "w.scale": numpy.full(3, 3e38, F32)}, "overflow its sum|bound"),
    ({"w": numpy.ones((1, 3), numpy.float16)}, "of shape"),
    ({"w": numpy.ones((3, 1), F32), "w.scale": numpy.ones(3, F32)}, "only float16 and int8"),
    ({"w": numpy.full((3, 1), numpy.inf, numpy.float16)}, "NaN or infinite"),
    ({"w": numpy.full((3, 1), 100, numpy.int8), "w.scale": numpy.ones((), F32)}, "bound 50 on its norm"),
    (sparse([0, 1], [40, 40]), "bound 50 on its norm"),
    ({"w": numpy.ones((3, 1), F32), "v.scale": numpy.ones((), F32)}, "which the model has not"),
]


def test_a_packed_report_that_is_not_what_it_should_be_is_refused_and_does_not_count(tmp_path: Path):
    async def work() -> None:
        async with world(tmp_path) as here:
            await here.host(max_diffs=1, max_norm=50)
            place = await here.accepted()
            for arrays, said in BAD:
                with pytest.raises(GridError, match=said) as refused:
                    await here.report(place, save(arrays))
                assert refused.value.status == 400
            assert (await here.stands())["reports"] == 0

    asyncio.run(work())


def test_the_node_says_which_forms_it_takes_and_refuses_others_with_the_list(tmp_path: Path):
    diff = {"w": some(3, 1)}

    async def work() -> None:
        async with world(tmp_path) as here:
            await here.host(max_diffs=2, diff_forms=["int8", "topk"])
            worker = await here.device()
            answer = await here.ask(worker)
            assert list(answer["diff_forms"]) == ["int8", "topk"]
            place = worker, answer["request_key"]
            for kind in ("float32", "float16"):
                with pytest.raises(BadRequest, match=f"as {kind} is not taken in this training; it takes int8, topk"):
                    await here.report(place, save(packed(diff, kind)))
            await here.report(place, save(packed(diff, "int8")))
            with pytest.raises(BadRequest, match="diff_forms"):
                await here.host("n", diff_forms=["float8"])
            with pytest.raises(BadRequest, match="diff_forms"):
                await here.host("n", diff_forms=[])

    asyncio.run(work())


def test_a_checkpoint_of_packed_reports_is_that_of_what_they_unpack_to(tmp_path: Path):
    diffs = [{"w": some(3, 1, seed=seed)} for seed in range(4)]
    reports = [packed(diff, kind) for diff, kind in zip(diffs, FORMS, strict=True)]

    async def train(here: World, data: list[dict[str, Array]], name: str) -> Array:
        await here.host(name, max_diffs=4)
        for number, one in enumerate(data):
            await here.report(await here.accepted(name), save(one), number + 1)
        await here.cycles.cycle(name, None, after=0, wait_s=10)
        return (await here.checkpoint(name=name))["w"]

    async def work() -> None:
        async with world(tmp_path) as here:
            whole = [restored(one, diff) for one, diff in zip(reports, diffs, strict=True)]
            numpy.testing.assert_array_equal(await train(here, reports, "a"), await train(here, whole, "b"))

    asyncio.run(work())
    assert MODEL["w"].shape == (3, 1)


def test_a_diff_that_is_not_finite_is_not_packed():
    with pytest.raises(InvalidDataError, match="not finite"):
        packed({"w": numpy.array([numpy.inf], F32)}, "int8")


# ------------------------------------------------------------------ the residual of a device


def test_a_residual_changes_when_the_report_was_acknowledged_and_no_earlier(tmp_path: Path):
    path, of = tmp_path / "mine", ("m", "1.0", {"w": some(3)})
    with Residual(path) as kept:
        kept.check(*of)
        kept.begin(Pending("ann", "key", 7, b"bytes"), {"w": numpy.ones(3, F32)})
        assert kept.values == {}
    with Residual(path) as kept:  # as after a kill
        assert kept.pending == Pending("ann", "key", 7, b"bytes")
        kept.dropped()
        assert (kept.values, kept.pending) == ({}, None)
        kept.check(*of)
        kept.begin(Pending("ann", "key", 7, b"bytes"), {"w": numpy.ones(3, F32)})
    with Residual(path) as kept:
        kept.counted()
    with Residual(path) as kept:
        assert kept.pending is None
        assert kept.values["w"].tolist() == [1, 1, 1]
        numpy.testing.assert_array_equal(kept.added({"w": of[2]["w"]})["w"], of[2]["w"] + 1)


def test_a_residual_is_of_one_training_and_one_device(tmp_path: Path):
    path = tmp_path / "mine"
    with Residual(path) as kept:
        kept.check("m", "1.0", {"w": some(3)})
        with pytest.raises(BadRequest, match="another device"):
            Residual(path)
        kept.begin(Pending("ann", "key", 7, b"bytes"), {"w": numpy.ones(3, F32)})
        kept.counted()
    for other in (("m", "2.0", {"w": some(3)}), ("m", "1.0", {"w": some(4)})):
        with Residual(path) as kept, pytest.raises(BadRequest, match="another training"):
            kept.check(*other)
    path.write_bytes(b"what is this")
    with pytest.raises(InvalidDataError, match="cannot be read"):
        Residual(path)
    path.unlink()
    Residual(path).close()
    with pytest.raises(BadRequest, match="there can be no file"):
        Residual(tmp_path / "none" / "mine")


def test_every_value_of_half_precision_is_unpacked_to_its_own():
    halves = numpy.arange(1 << 16, dtype=numpy.uint16).view(numpy.float16)
    finite = halves[numpy.isfinite(halves)]
    form = Form((("w", numpy.dtype("float32"), finite.shape),))
    found = next(chunks(unpacked({"w": finite}, form)["w"]))[0]
    assert found.tobytes() == finite.astype(numpy.float32).tobytes()  # -0 and the smallest among them


@pytest.mark.parametrize("value", [numpy.inf, -numpy.inf, numpy.nan])
def test_what_is_not_finite_in_half_precision_is_refused(value: float):
    halves = numpy.ones(CHUNK + 9, numpy.float16)
    halves[CHUNK + 3] = value
    form = Form((("w", numpy.dtype("float32"), halves.shape),))
    with pytest.raises(InvalidDataError, match="NaN or infinite"):
        form.check_values(unpacked({"w": halves}, form))
