"""The bar of large transfers: seen by people who wait, never in a log, and off where that is wished."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator

import pytest

from grid_jupyter import show_progress
from grid_jupyter.client.watching import Watch
from grid_jupyter.link.progress import SHOWN_AFTER_S, SHOWN_FROM, Progress


class Screen(io.StringIO):
    """A terminal, as far as a bar looks."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def on() -> Iterator[None]:
    yield
    show_progress(True)


def transfer(total: int, seconds: float = SHOWN_AFTER_S + 0.3) -> None:
    with Progress("sending", total) as progress:
        for part in range(1, 11):
            time.sleep(seconds / 10)  # what is shown depends on how long it takes
            progress.at(total * part // 10)


def test_a_transfer_that_takes_long_shows_how_far_it_is_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    transfer(64 << 20)
    assert "sending" in screen.getvalue()
    assert "64.0M" in screen.getvalue()
    assert screen.getvalue().rsplit("\r", 1)[-1].strip() == ""


@pytest.mark.parametrize(("total", "seconds"), [(SHOWN_FROM - 1, 1.5), (64 << 20, 0.1)])
def test_small_and_quick_transfers_show_nothing(monkeypatch: pytest.MonkeyPatch, total: int, seconds: float):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    transfer(total, seconds)
    assert screen.getvalue().strip() == ""


def test_what_goes_to_a_file_gets_no_bar(monkeypatch: pytest.MonkeyPatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    transfer(64 << 20)
    assert log.getvalue() == ""


def test_the_bar_can_be_turned_off(monkeypatch: pytest.MonkeyPatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    show_progress(False)
    transfer(64 << 20)
    assert screen.getvalue() == ""


def test_a_transfer_that_begins_again_shows_where_it_is(monkeypatch: pytest.MonkeyPatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress("sending", 100 << 20) as progress:
        time.sleep(SHOWN_AFTER_S + 0.1)
        progress.at(80 << 20)
        progress.at(20 << 20)
        time.sleep(0.3)
        progress.at(30 << 20)
    assert "30%" in screen.getvalue()


@pytest.mark.parametrize("bar", [True, False])
def test_a_training_shows_its_bar_where_that_is_wished(bar: bool, monkeypatch: pytest.MonkeyPatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    watch = Watch("round", 3, live=False, bar=bar)
    watch.at([(1, {"loss": 0.5})])
    watch.close()
    assert ("1/3" in screen.getvalue()) is bar
    assert bool(screen.getvalue()) is bar
