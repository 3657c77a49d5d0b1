"""Weights in one run of bytes, as rounds carry them, and the memory that downloads come into."""

from __future__ import annotations

import threading

import pytest
import torch

from grid_jupyter.client.packed import ForMany, named, packed
from grid_jupyter.errors import InvalidDataError, ResponseSignatureError
from grid_jupyter.link.room import Room
from grid_jupyter.ops.raw import from_bytes
from grid_jupyter.wire.jobs import Part

MODEL = (
    Part(name="a", dtype="float32", shape=(3, 5)),
    Part(name="b", dtype="int64", shape=()),
    Part(name="c", dtype="float16", shape=(7,)),
)
WEIGHTS = {"c": torch.arange(7).half(), "a": torch.arange(15.0).reshape(3, 5).T.contiguous().T, "b": torch.tensor(-4)}


def test_what_is_packed_comes_apart_into_the_same_tensors():
    found = named(packed(MODEL, WEIGHTS), MODEL)
    assert {name: value.tolist() for name, value in found.items()} == {
        name: value.tolist() for name, value in WEIGHTS.items()
    }
    with pytest.raises(ResponseSignatureError, match="another size"):
        named(torch.zeros(3, dtype=torch.uint8), MODEL)


def test_weights_for_many_nodes_are_packed_once_from_whatever_thread():
    weights = ForMany(WEIGHTS)
    found: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(packed(MODEL, weights))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert {one.data_ptr() for one in found} == {found[0].data_ptr()}
    assert found[0].equal(packed(MODEL, WEIGHTS))
    assert len(packed(MODEL[:1], weights)) < len(found[0])  # the form of another model


@pytest.mark.parametrize("wrong", [{"b": torch.tensor(-4)}, {**WEIGHTS, "a": torch.zeros(5, 3)}])
def test_weights_that_are_not_the_models_are_refused_for_one_node_and_for_many(wrong: dict[str, torch.Tensor]):
    for weights in (wrong, ForMany(wrong)):
        with pytest.raises(InvalidDataError, match="the model's a"):
            packed(MODEL, weights)


def test_memory_of_a_download_is_used_again_once_nobody_holds_a_part_of_it():
    room = Room()
    first = from_bytes(room.take(64)[0], "float32", (16,))
    first.fill_(1.0)
    held = first.numpy()[3:5]
    where = first.data_ptr()
    del first
    second = from_bytes(room.take(64)[0], "float32", (16,))
    second.fill_(2.0)
    assert second.data_ptr() != where
    assert held.tolist() == [1.0, 1.0]
    where = second.data_ptr()
    del second
    assert from_bytes(room.take(64)[0], "float32", (16,)).data_ptr() == where
    assert len(room.take(128)[0]) == 128
    assert len(room.take(0)[0]) == 0
