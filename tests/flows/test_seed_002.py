"""Seed 002 cell by cell: an owner publishes, a stranger finds and computes, whoever is allowed reads."""

from __future__ import annotations

import re

import pytest
import torch as th
from node_world import GridProcess, until

import grid_jupyter as sy
from grid_jupyter import DataCentricFLClient, ModelCentricFLClient, PublicGridNetwork, TorchHook

DESCRIPTION = """Description:
                        This data presents the monthly birth records.

                        Columns:
                            Gender: 0 - Male, 1 - Female
                            Weight: in Kg
                            Height: in cm


                        Shape 5 * 3
                        """
POINTER = r"\(Wrapper\)>\[PointerTensor \| me:\d+ -> Bob:\d+\]"
TAGGED = POINTER + (
    r"\n\tTags: #February #birth-records \n\tShape: torch\.Size\(\[5, 3\]\)\n\tDescription: Description:\.\.\."
)


def test_the_notebook_of_the_seed_shows_what_it_showed(network: GridProcess, bob: GridProcess, hook: TorchHook):
    # the data owner
    assert until(lambda: "Bob" in network.call("GET", "/connected-nodes")[1]["grid-nodes"])
    hospital_datacluster = DataCentricFLClient(hook, bob.address)
    assert repr(hospital_datacluster) == "<Federated Worker id:Bob>"
    monthly_birth_records = th.tensor([[1, 3.5, 47.3], [0, 3.7, 48.1], [0, 3.9, 50.0], [1, 4.1, 52.3], [0, 4.1, 49.7]])
    private_dataset = monthly_birth_records.private_tensor(allowed_users=("Bob", "Ana", "Alice"))
    private_dataset = private_dataset.tag("#February", "#birth-records").describe(DESCRIPTION)
    assert repr(private_dataset) == (
        "(Wrapper)>PrivateTensor>tensor([[ 1.0000,  3.5000, 47.3000],\n"
        "        [ 0.0000,  3.7000, 48.1000],\n"
        "        [ 0.0000,  3.9000, 50.0000],\n"
        "        [ 1.0000,  4.1000, 52.3000],\n"
        "        [ 0.0000,  4.1000, 49.7000]])"
    )
    data_pointer = private_dataset.send(hospital_datacluster, user="Bob")
    assert re.fullmatch(TAGGED, repr(data_pointer))

    # the data scientist
    grid = PublicGridNetwork(hook, network.address)
    results = grid.search("#February", "#birth-records")
    assert list(results) == ["Bob"]
    assert re.fullmatch(r"\{'Bob': \[" + TAGGED + r"\]\}", repr(results))
    feb_records = results["Bob"][0]
    assert feb_records.id_at_location == data_pointer.id_at_location
    assert feb_records.description == DESCRIPTION
    with pytest.raises(sy.GetNotPermittedError):
        feb_records.get()

    def sum_column(dataset, column):
        sum_result = dataset[0][column].copy()
        for i in range(1, dataset.shape[0]):
            sum_result += dataset[i][column]
        return sum_result

    weight_sum = sum_column(feb_records, 1)
    assert re.fullmatch(POINTER, repr(weight_sum))
    height_sum = sum_column(feb_records, 2)
    with pytest.raises(sy.GetNotPermittedError):
        weight_sum.get()
    avg_weight = weight_sum.get(user="Bob") / 5
    assert repr(avg_weight) == "(Wrapper)>PrivateTensor>tensor(3.8600)"
    avg_height = height_sum.get(user="Bob") / 5
    assert repr(avg_height) == "(Wrapper)>PrivateTensor>tensor(49.4800)"
    assert avg_height.allowed_users == ("Bob", "Ana", "Alice")

    # and what the notebook also imports
    client = ModelCentricFLClient("me", bob.address)
    client.connect()
    assert "Bob" in repr(client)

    hospital_datacluster.unpublish(data_pointer, user="Bob")
    assert grid.search("#February", "#birth-records") == {}
    grid.close()
    hospital_datacluster.close()
    client.close()
