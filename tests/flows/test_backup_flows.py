"""A Node is backed up while people publish on it, dies, and goes on elsewhere from the backup."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import torch
from conftest import World
from node_world import GridProcess, until


def grid(*arguments: str | Path) -> dict[str, object]:
    command = [sys.executable, "-m", "grid_jupyter.cli.main", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


class Publishing(threading.Thread):
    """Somebody who publishes, and unpublishes every other one, until told to end."""

    def __init__(self, node: GridProcess, name: str) -> None:
        super().__init__()
        self.name, self._node = name, node
        self.there: dict[str, float] = {}  # by tag
        self.ended = threading.Event()

    def run(self) -> None:
        with self._node.client(self.name) as client:
            number = 0
            while not self.ended.is_set():
                number += 1
                tag = f"#{self.name}-{number}"
                made = client.publish(torch.full((100,), float(number)), tags=[tag])
                self.there = {**self.there, tag: float(number)}
                if number % 2 == 0:
                    self.there = {key: value for key, value in self.there.items() if key != tag}
                    client.unpublish(made)


def test_a_node_goes_on_from_a_backup_that_was_made_while_it_was_written_to(small_world: World):
    node = small_world.start("node", "ward7")
    for name, role in (("Bob", "Owner"), ("Ana", "Publisher"), ("Zed", "User")):
        token = node.user(name, role)
    writers = [Publishing(node, name) for name in ("Bob", "Ana")]
    for writer in writers:
        writer.start()
    try:
        until(lambda: all(len(writer.there) > 3 for writer in writers))
        before = {writer.name: dict(writer.there) for writer in writers}
        file = node.home / "ward7.tar"
        made = grid("backup", file, "--state", node.state)
        until(lambda: all(len(writer.there) > len(before[writer.name]) for writer in writers))
    finally:
        for writer in writers:
            writer.ended.set()
        for writer in writers:
            writer.join()
    assert made["name"] == "ward7"
    node.kill()

    elsewhere = GridProcess("node", "ward7", node.home / "elsewhere", port=node.port)
    small_world.started.append(elsewhere)
    grid("restore", file, "--state", elsewhere.state)
    elsewhere.start()
    assert elsewhere.address == node.address
    for user, expected in before.items():
        with elsewhere.client(user) as client:  # by the token that was given before
            found = {tag: one for one in client.search() for tag in one.tags}
            assert expected.keys() <= found.keys()
            for key, value in expected.items():
                assert found[key].get().unwrap().tolist() == [value] * 100
            client.publish(torch.ones(3), tags=["#after"])
    assert elsewhere.call("GET", "/data-centric/models", token=token)[0] == 200
    assert elsewhere.call("GET", "/data-centric/models", token=token[:-1])[0] == 401
    assert elsewhere.owner("GET", "/owner/audit/verify")["broken"] == 0
