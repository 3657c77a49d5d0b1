"""The core of the suites of jobs and of training once more, unchanged, on Nodes whose Workers run on a Dask cluster."""

from __future__ import annotations

import pytest
from dask_world import DaskCluster
from test_jobs import (  # noqa: F401
    data,
    node,
    test_a_job_goes_on_where_it_was_when_its_node_is_started_again,
    test_a_job_is_cancelled_within_a_second,
    test_a_job_of_many_rounds_trains_from_what_each_round_brings,
    test_a_job_that_takes_too_long_or_too_much_fails_and_leaves_nothing_running,
    test_a_job_trains_what_the_plain_loop_trains,
    test_a_whole_step_is_never_accepted_by_a_policy,
    test_an_owner_who_looks_first_sees_the_result_and_then_lets_it_go,
    test_data_that_goes_ends_the_jobs_that_it_is_for,
    test_rounds_whose_weights_are_too_many_for_a_frame_go_by_http_and_bring_and_take_what_they_should,
    test_the_same_seed_trains_the_same_and_momentum_is_torchs,
    test_training_that_diverges_fails_and_says_what_to_do,
    test_what_the_owner_approves_runs_and_is_released_and_what_she_denies_does_not,
)
from test_training_nodes import (  # noqa: F401
    grid,
    nodes,
    test_full_batches_and_one_local_step_are_training_in_one_place,
    test_owners_are_asked_and_one_who_denies_is_left_out,
)


@pytest.fixture(scope="module")
def backend(cluster: DaskCluster) -> tuple[str, ...]:
    """Options of a Node: Workers on the cluster, none kept spare there."""
    return ("--workers", cluster.address.replace("tcp://", "dask://"), "--spare-workers", "0")


def test_the_workers_of_these_nodes_were_the_clusters(node, cluster: DaskCluster):  # noqa: F811
    assert " on Dask:" in node.status()["isolation"]
    assert not [process for process in node.processes() if process.pid != node.pid], "nothing runs beside the Node"
