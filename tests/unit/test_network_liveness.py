"""When a Node counts as alive: the pure rules, with a clock that the test moves."""

from __future__ import annotations

import pytest

from grid_jupyter.network.liveness import Beat, Closed, Event, Opened, Presence, advance, is_alive, is_silent

INTERVAL_S = 5.0


def after(*events: tuple[float, Event]) -> Presence:
    presence = Presence()
    for now, event in events:
        presence = advance(presence, event, now)
    return presence


def test_a_node_is_alive_from_its_first_heartbeat():
    opened = after((0.0, Opened(1)))
    assert not is_alive(opened, 0.0, INTERVAL_S)
    assert is_alive(advance(opened, Beat(1), 0.1), 0.1, INTERVAL_S)


@pytest.mark.parametrize(("now", "alive"), [(9.9, True), (10.0, False), (60.0, False)])
def test_a_silent_node_is_gone_after_two_intervals(now: float, alive: bool):
    assert is_alive(after((0.0, Opened(1)), (0.0, Beat(1))), now, INTERVAL_S) is alive


def test_a_node_whose_link_closed_is_gone_at_once():
    assert not is_alive(after((0.0, Opened(1)), (0.0, Beat(1)), (1.0, Closed(1))), 1.0, INTERVAL_S)


def test_the_end_of_an_older_link_does_not_end_the_newer():
    presence = after((0.0, Opened(1)), (0.0, Beat(1)), (1.0, Opened(2)), (1.1, Beat(2)), (1.2, Closed(1)))
    assert is_alive(presence, 1.3, INTERVAL_S)


def test_a_heartbeat_over_an_older_link_does_not_count():
    presence = after((0.0, Opened(1)), (0.0, Beat(1)), (1.0, Opened(2)), (1.1, Beat(1)))
    assert not is_alive(presence, 1.2, INTERVAL_S)


def test_a_heartbeat_after_the_end_does_not_bring_a_node_back():
    presence = after((0.0, Opened(1)), (0.0, Beat(1)), (1.0, Closed(1)), (1.1, Beat(1)))
    assert not is_alive(presence, 1.2, INTERVAL_S)


@pytest.mark.parametrize(("now", "silent"), [(14.9, False), (15.0, True)])
def test_a_link_is_given_up_after_three_intervals_without_a_message(now: float, silent: bool):
    assert is_silent(0.0, now, INTERVAL_S) is silent
