"""A connection that is lost and made again: the session goes on where it was, or says what was lost."""

from __future__ import annotations

import random
import select
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from conftest import World
from node_world import GridProcess, until
from raw_session import RawSession

from grid_jupyter import NodeClient, SessionLostError
from grid_jupyter.client.credentials import Credentials
from grid_jupyter.link import client as link


class Cable:
    """A way to a Node that can be cut: a TCP relay. `cut` drops its connections, after some more bytes if asked."""

    def __init__(self, node: GridProcess) -> None:
        self._node = node
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._left: int | None = None  # bytes to the Node, until it is cut
        self._lock = threading.Lock()
        self.connections = 0
        self.plugged = True
        self._ended = False
        self._thread = threading.Thread(target=self._relay, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def cut_after(self, count: int) -> None:
        """Let so many more bytes through to the Node, then drop all connections."""
        self._left = count

    def cut(self) -> None:
        with self._lock:
            for one in [end for pair in self._pairs for end in pair]:
                if one.fileno() >= 0:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, *[0] * 7]))  # it ends as a reset
                    one.close()
            self._pairs.clear()
            self._left = None

    def close(self) -> None:
        self._ended = True
        self._thread.join()
        self.cut()
        self._listening.close()

    def _relay(self) -> None:
        while not self._ended:
            open_ends = [end for pair in self._pairs for end in pair if end.fileno() >= 0]
            try:
                ready, _, _ = select.select([self._listening, *open_ends], [], [], 0.02)
            except (OSError, ValueError):  # cut from another thread meanwhile
                continue
            for one in ready:
                if one is self._listening:
                    self._accept()
                else:
                    self._pass_on(one)

    def _accept(self) -> None:
        came, _ = self._listening.accept()
        if not self.plugged:
            came.close()
            return
        self.connections += 1
        with self._lock:
            self._pairs.append((came, socket.create_connection(("127.0.0.1", self._node.port))))

    def _pass_on(self, one: socket.socket) -> None:
        for near, far in list(self._pairs):
            if one not in (near, far):
                continue
            try:
                data = one.recv(65536)
                with self._lock:
                    if one is near and self._left is not None:
                        data = data[: self._left]
                        self._left -= len(data)
                (far if one is near else near).sendall(data)
            except OSError:
                data = b""
            if self._left == 0:
                self.cut()
            elif not data:
                with self._lock:
                    near.close()
                    far.close()
                    if (near, far) in self._pairs:
                        self._pairs.remove((near, far))
            return


@pytest.fixture
def cable(bob: GridProcess) -> Iterator[Cable]:
    made = Cable(bob)
    yield made
    made.close()


@pytest.fixture
def guest(cable: Cable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeClient]:
    with NodeClient(cable.address, credentials=Credentials(tmp_path_factory.mktemp("home") / "c.json")) as client:
        yield client


def test_values_are_still_there_when_the_connection_comes_back(cable: Cable, guest: NodeClient):
    x = guest.receive(torch.arange(5.0))
    total = x.sum()
    assert total.get(deregister_ptr=False).item() == 10
    for _ in range(3):
        cable.cut()
        x = x + 1
        assert x.get(deregister_ptr=False).tolist()[0] == x.get(deregister_ptr=False)[0].item()
    assert x.tolist() == [3, 4, 5, 6, 7]
    assert total.get().item() == 10
    assert cable.connections == 4


def test_no_command_is_lost_or_run_twice_wherever_the_connection_is_cut(cable: Cable, guest: NodeClient):
    counter, expected = guest.receive(torch.zeros(3)), 0
    dice = random.Random(7)  # noqa: S311 - where it is cut
    for _ in range(25):
        cable.cut_after(dice.randrange(1, 3000))
        for _ in range(dice.randrange(1, 200)):
            counter += 1
            expected += 1
        assert counter.tolist() == [expected] * 3
    assert cable.connections > 8


def test_a_training_goes_on_over_a_bad_connection_and_ends_with_the_same_weights(cable: Cable, guest: NodeClient):
    def train(x: torch.Tensor, weight: torch.Tensor) -> list[float]:
        optimizer = torch.optim.SGD([weight], lr=0.05, momentum=0.9)
        losses = []
        for step in range(30):
            if step % 5 == 4 and type(x) is not torch.Tensor:
                cable.cut_after(100 * step)
            optimizer.zero_grad()
            loss = ((x @ weight - 1) ** 2).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    torch.manual_seed(0)
    rows, start = torch.randn(16, 4), torch.randn(4, 1)
    here = train(rows, start.clone().requires_grad_())
    there = train(guest.receive(rows), guest.receive(start).requires_grad_())
    assert there == here


def test_the_answer_that_was_on_its_way_comes_again(cable: Cable, guest: NodeClient):
    x = guest.receive(torch.rand(4000))  # an answer of some packets
    expected = x.tolist()
    for _ in range(20):
        threading.Timer(0.0, cable.cut).start()
        assert x.tolist() == expected


def test_a_login_holds_for_the_connection_that_comes_after(
    bob: GridProcess, cable: Cable, connect: Callable[..., NodeClient]
):
    owner = connect(bob, "Bob")
    secret = owner.publish(torch.tensor([4.0]), tags=["#resumed"], allowed_users="Ana")
    credentials = Credentials(bob.home / "over-the-cable.json")
    credentials.store(cable.address, "Ana", Credentials().get(bob.address, "Ana"))
    with NodeClient(cable.address, credentials=credentials) as client:
        client.login(user="Ana")
        doubled = client.search("#resumed")[0] * 2
        assert doubled.get(deregister_ptr=False).unwrap().item() == 8
        cable.cut()
        assert client.caller.user == "Ana"
        assert doubled.get().unwrap().item() == 8
    owner.unpublish(secret)


def test_who_is_away_for_too_long_is_told_what_was_lost(
    bob: GridProcess, cable: Cable, guest: NodeClient, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(link, "RESUME_S", 0.5)
    x = guest.receive(torch.ones(2))
    x.tolist()
    cable.plugged = False
    cable.cut()
    with pytest.raises(SessionLostError, match="lost"):
        x.tolist()
    cable.plugged = True
    assert guest.receive(torch.ones(2)).tolist() == [1, 1], "another session"
    with pytest.raises(SessionLostError, match="lost"):
        x.tolist()


def test_a_session_waits_for_its_client_only_so_long(small_world: World):
    node = small_world.start("node", "Brief", "--allow-guests", "--session-grace", "0.5s")
    cable = Cable(node)
    try:
        with NodeClient(cable.address) as client:
            client.receive(torch.ones(2)).tolist()
            cable.cut()
            until(lambda: node.status()["sessions"] == 0)
    finally:
        cable.close()


def _computes(node: GridProcess) -> bool:
    try:
        with node.client() as here:
            return bool(here.receive(torch.zeros(1)).item() == 0)
    except SessionLostError:  # the Node has not seen yet that the other one is gone
        return False


def test_sessions_that_wait_for_nobody_make_room_for_others(small_world: World):
    node = small_world.start("node", "Narrow", "--allow-guests", "--max-sessions", "1")
    cable = Cable(node)
    try:
        with NodeClient(cable.address) as away:
            x = away.receive(torch.ones(2))
            x.tolist()
            cable.plugged = False
            cable.cut()
            until(lambda: _computes(node))
            cable.plugged = True
            with pytest.raises(SessionLostError, match=r"not here|others needed the place"):
                x.tolist()
    finally:
        cable.close()


def test_a_stranger_cannot_go_on_with_the_session_of_another(bob: GridProcess, connect: Callable[..., NodeClient]):
    client = connect(bob, "Ana")
    secret = client._link.welcome.session
    for credentials in ({}, {"Authorization": f"Bearer {Credentials().get(bob.address, 'Zed')}"}):
        with RawSession(bob, greet=False, headers={"X-Grid-Session": secret, **credentials}) as stranger:
            assert isinstance(stranger.last_words(), SessionLostError)
    with RawSession(bob, greet=False, headers={"X-Grid-Session": "a" * 43}) as stranger:
        assert isinstance(stranger.last_words(), SessionLostError)
    assert client.receive(torch.ones(1)).item() == 1
