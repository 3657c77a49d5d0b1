"""Ways around the gates, those of older grids and those that we could think of, tried on a real Node by a stranger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import torch
from conftest import SECRETS
from node_world import GridProcess
from raw_session import RawSession

from grid_jupyter import NodeClient, TorchHook, VirtualWorker
from grid_jupyter.errors import (
    Forbidden,
    GetNotPermittedError,
    GridError,
    NotAuthenticatedError,
    ObjectNotFoundError,
    RemoteOperationError,
)
from grid_jupyter.wire import commands as c
from grid_jupyter.wire import frames, messages
from grid_jupyter.wire.messages import DatasetInfo

Connect = Callable[..., NodeClient]
Intrude = Callable[..., RawSession]
ON, OFF, NONE = ["c", True], ["c", False], ["c", None]


@pytest.fixture(scope="module")
def births(bob: GridProcess, hook: TorchHook) -> Iterator[DatasetInfo]:
    """Published by Bob, readable by Ana too."""
    with bob.client("Bob") as client:
        made = client.publish(SECRETS, tags=["#bypassed"], allowed_users="Ana")._ref.dataset
        yield made
        client.unpublish(made)


@pytest.fixture(scope="module")
def bits(bob: GridProcess, hook: TorchHook) -> Iterator[DatasetInfo]:
    """A small and a large secret, for questions of one bit."""
    with bob.client("Bob") as client:
        made = client.publish(torch.tensor([0.2, 0.8]), tags=["#two-bits"])._ref.dataset
        yield made
        client.unpublish(made)


def secret_of(client: NodeClient, dataset: DatasetInfo) -> Any:
    """The caller's pointer to a data set, found as anyone finds it."""
    [found] = [one for one in client.search(*dataset.tags) if one.id_at_location == dataset.id]
    return found


def says_nothing(shown: object) -> bool:
    """Whether this is free of every secret value that could not stand there by chance."""
    values = {f"{float(x):g}" for x in SECRETS.flatten()}
    return not any(value in str(shown) for value in values if "." in value)


# ------------------------------------------------------------------ verbs of 0.2.9's workers

_OLD_VERBS = (
    "list_objects", "list_objects_remote", "objects_count", "tensors_count", "clear_objects", "list_tensors",
    "register_obj", "get_obj", "rm_obj", "set_obj", "respond_to_obj_req", "force_delete", "force_object_delete",
    "get_shape", "is_none", "worker_command", "tensor_command", "plan_command", "object_request", "execute_command",
    "__getattribute__", "_objects", "de_register_obj", "search_all", "fetch", "load", "receive", "count", "measure",
    "close", "fork", "kill", "shutdown",
)  # fmt: skip


@pytest.mark.parametrize("verb", _OLD_VERBS)
def test_a_verb_that_is_not_in_the_protocol_does_nothing(bob: GridProcess, intrude: Intrude, verb: str):
    owner, stranger = intrude(bob, bob.user("Ana")), intrude(bob)
    kept = owner.put(torch.ones(3))
    for body in ({"type": verb}, {"type": verb, "value": kept}, {"type": verb, "name": "list_objects", "args": [kept]}):
        stranger = intrude(bob)
        stranger.send(frames.pack(frames.REQUEST, msgspec.msgpack.encode([1, body])))
        said = stranger.last_words()
        assert isinstance(said, GridError)
        assert said.code == "invalid-message"
    assert owner.read(kept).tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", [frames.REPLY, 0, 9, 200])
def test_frames_that_only_a_node_or_a_worker_sends_are_not_taken(bob: GridProcess, intrude: Intrude, kind: int):
    stranger = intrude(bob)
    stranger.send(frames.pack(kind, msgspec.msgpack.encode([1, {"type": "fetch", "value": 1}])))
    assert isinstance(stranger.last_words(), GridError)


@pytest.mark.parametrize(
    "name",
    [
        "list_objects_remote", "objects_count_remote", "tensors_count_remote", "_objects", "_tensors", "_known_workers",
        "object_store", "get_obj", "_send_msg", "_recv_msg", "send_command", "request_obj",
    ],
)  # fmt: skip
def test_a_client_shows_no_objects_of_others(bob: GridProcess, connect: Connect, births: DatasetInfo, name: str):
    ana, stranger = connect(bob, "Ana"), connect(bob)
    _kept = secret_of(ana, births).sum()
    shown = getattr(stranger, name, None)
    try:
        found = shown() if callable(shown) else shown
    except (GridError, TypeError) as error:
        found = error
    assert says_nothing(found)
    assert not found or isinstance(found, Exception)


def test_what_a_session_lists_and_clears_is_its_own(bob: GridProcess, connect: Connect, births: DatasetInfo):
    ana, stranger = connect(bob, "Ana"), connect(bob)
    kept = secret_of(ana, births).sum()
    mine = stranger.receive(torch.ones(3))
    assert all(says_nothing(value) for value in stranger.values())
    stranger.clear()
    assert kept.get(deregister_ptr=False).unwrap().item() == pytest.approx(SECRETS.sum().item())
    with pytest.raises((ObjectNotFoundError, RemoteOperationError)):
        mine.get()


# ------------------------------------------------------------------ pointers, bent


def test_a_pointer_has_no_inner_tensor(bob: GridProcess, connect: Connect, births: DatasetInfo):
    records = secret_of(connect(bob), births)
    for name in ("child", "_child", "tensor", "_tensor", "value", "_value", "_data", "_elem", "elem", "raw", "wrapped"):
        assert says_nothing(getattr(records, name, None))
    for attempt in (
        lambda: records.data.get(),
        lambda: records.detach().get(),
        lambda: torch.Tensor.data.__get__(records).get(),
        lambda: records._base,
        lambda: torch.Tensor._make_subclass(torch.Tensor, records),
        lambda: object.__getattribute__(records, "__dict__"),
        lambda: torch.utils._pytree.tree_leaves(records),
    ):
        try:
            found = str(attempt())
        except (GridError, TypeError, RuntimeError, AttributeError) as error:
            found = str(error)
        assert says_nothing(found)


def test_a_reference_that_was_bent_to_anothers_value_finds_nothing(
    bob: GridProcess, connect: Connect, births: DatasetInfo
):
    ana, stranger = connect(bob, "Ana"), connect(bob)
    theirs = secret_of(ana, births).sum()
    ana.session.flush()
    mine = stranger.receive(torch.tensor(1.0))
    mine._ref.id = theirs._ref.id
    with pytest.raises(ObjectNotFoundError):
        mine.get()
    assert theirs.get().unwrap().item() == pytest.approx(SECRETS.sum().item())


def test_guessing_ids_finds_values_of_no_other_session(bob: GridProcess, intrude: Intrude, births: DatasetInfo):
    ana, stranger = intrude(bob, bob.user("Ana")), intrude(bob)
    theirs = [ana.open(births), ana.put(torch.ones(3))]
    guesses = {*theirs, *(n + d for n in theirs for d in (-1, 1)), *range(20), births.id, births.version, 1 << 30}
    for number in guesses:
        with pytest.raises(ObjectNotFoundError):
            stranger.read(number)
        with pytest.raises(ObjectNotFoundError):
            stranger.ask(messages.Sizes(values=(number,)))
    stranger.operations([c.FREE, *theirs], [c.CLEAR])
    assert ana.read(theirs[1]).tolist() == [1, 1, 1]


def test_a_pointer_sent_to_a_worker_of_ones_own_does_not_take_the_value_along(
    bob: GridProcess, connect: Connect, births: DatasetInfo, hook: TorchHook
):
    mine = VirtualWorker(hook, id="mine")
    client = connect(bob)
    for send in (
        lambda p: p.move(mine),
        lambda p: p.send(mine),
        lambda p: p.sum().move(mine),
        lambda p: p.copy().move(mine),
        lambda p: p.remote_send(mine),
        lambda p: mine.receive(p),
        lambda p: torch.zeros(5, 3).send(mine).copy_(p),
        lambda p: torch.zeros(5, 3).send(mine) + p,
    ):
        try:
            found = str(send(secret_of(client, births)).get())
        except (GridError, TypeError, RuntimeError, AttributeError) as error:
            found = str(error)
        assert says_nothing(found)


def test_a_value_moved_to_a_node_of_ones_own_stays_closed(
    bob: GridProcess, alice: GridProcess, connect: Connect, births: DatasetInfo
):
    """The thief owns the Node there."""
    here, there = connect(bob, "Alice"), connect(alice, "Alice")
    for value in (secret_of(here, births), secret_of(here, births).sum()):
        with pytest.raises((GetNotPermittedError, Forbidden)) as refused:
            value._ref.session.move_to(value._ref.id, there.session, value.dtype, tuple(value.shape))
        assert says_nothing(refused.value)
    assert there.session.link.request(messages.Status())[0].values == 0


# ------------------------------------------------------------------ credentials


@pytest.mark.parametrize(
    "credential",
    ["Bob", "Ana", "gjt1_", "gjt1_x_" + "A" * 43, "Bearer x", "' OR 1=1 --", "null", "0", "é" * 50, "\x00", "A" * 5000],
)
def test_a_name_or_a_guess_is_no_credential(bob: GridProcess, intrude: Intrude, births: DatasetInfo, credential: str):
    stranger = intrude(bob, bob.user("Zed"))
    private = stranger.open(births)
    for message in (
        messages.Read(value=private, credential=credential),
        messages.Sizes(values=(private,), credential=credential),
        messages.Open(dataset=births.id, version=1, values={"data": 7}, credential=credential),
        messages.Login(credential=credential),
    ):
        with pytest.raises(GridError) as refused:
            stranger.ask(message)
        assert says_nothing(refused.value)
    with pytest.raises(GetNotPermittedError):
        stranger.read(private)
    bob.call("GET", "/data-centric/models", token=bob.user("Zed"))  # a right one takes the lock-out back


def test_a_user_is_whoever_has_the_credential_and_not_whoever_says_so(
    bob: GridProcess, connect: Connect, births: DatasetInfo
):
    records = secret_of(connect(bob), births)
    with pytest.raises(NotAuthenticatedError):
        records.sum().get(user="Mallory")
    for extra in ({"user": "Ana"}, {"username": "Ana"}, {"allowed_users": ["Zed"]}, {"roles": ["Owner"]}):
        with RawSession(bob) as raw:
            body = {"type": "read", "value": raw.open(births), **extra}
            raw.send(frames.pack(frames.REQUEST, msgspec.msgpack.encode([99, body])))
            said = raw.last_words()
            assert isinstance(said, GridError)
            assert says_nothing(said)


def test_tags_are_no_capability(bob: GridProcess, connect: Connect, births: DatasetInfo):
    """Whoever knows, or publishes under, the tags of a data set gets nothing of it."""
    alice, zed = connect(bob, "Alice"), connect(bob, "Zed")
    decoy = alice.publish(torch.zeros(5, 3), tags=["#bypassed"], allowed_users="Zed")
    try:
        opened = []
        for pointer in zed.search("#bypassed"):
            try:
                opened.append(str(pointer.get().unwrap()))
            except GetNotPermittedError as error:
                opened.append(str(error))
        assert len(opened) == 2
        assert all(says_nothing(text) for text in opened)
        mixed = secret_of(zed, births) * 0 + secret_of(zed, decoy._ref.dataset)
        with pytest.raises(GetNotPermittedError):
            mixed.get()
    finally:
        alice.unpublish(decoy)


# ------------------------------------------------------------------ dressing values up, further ways

_x = torch.tensor([1.0, 2.0, 3.0])


def _optimised(p: Any, kind: Any, **options: Any) -> list[Any]:
    weight = torch.ones(3).send(p.location).requires_grad_()
    optimiser = kind([weight], lr=0.1, **options)
    (weight * p[0]).sum().backward()
    optimiser.step()
    state = [v for v in optimiser.state[weight].values() if isinstance(v, torch.Tensor) and v.dim()]
    return [weight.detach(), *state]


def _of_autograd(p: Any) -> list[Any]:
    x = _x.clone().send(p.location).requires_grad_()
    inner = x * 2
    inner.retain_grad()
    [seeded] = torch.autograd.grad(inner, x, p[0], retain_graph=True)
    (inner * p[1]).sum().backward()
    return [seeded, inner.grad, x.grad]


_DRESSES: dict[str, Callable[[Any, Any], Any]] = {
    "sort": lambda p, x: torch.sort(p[:, 2]).values,
    "order": lambda p, x: torch.argsort(p[:, 2]),
    "topk": lambda p, x: torch.topk(p[:, 2], 2).indices,
    "chosen by order": lambda p, x: torch.arange(5.0).send(p.location)[torch.argsort(p[:, 2])],
    "scattered to": lambda p, x: torch.zeros(2).send(p.location).scatter_add(0, p[:, 0].long(), x[:1].expand(5)),
    "put at": lambda p, x: x.index_put_((p[:3, 0].long(),), x[:1] * 7),
    "filled at": lambda p, x: x.masked_fill_(p[0] > 3, 9.0),
    "scattered": lambda p, x: x.masked_scatter(p[0] > 3, x * 5),
    "a view written to": lambda p, x: [x[1:].copy_(p[0, 1:]), x][1],
    "a view of a view": lambda p, x: [x.view(3, 1).T.mul_(p[0]), x[0]][1],
    "out=": lambda p, x: [torch.maximum(p[0], x, out=x), x][1],
    "lists": lambda p, x: [torch._foreach_add_([x], [p[0]]), x][1],
    "lists of results": lambda p, x: torch._foreach_mul([x, p[0]], 2.0)[1],
    "a fill": lambda p, x: x.fill_(p[0, 1]),
    "lerp": lambda p, x: x.lerp_(p[0], 1.0),
    "swap of halves": lambda p, x: torch.stack([x, p[0]])[1],
    "cumsum": lambda p, x: p.cumsum(0)[-1],
    "bernoulli": lambda p, x: torch.bernoulli(p / 100),
    "multinomial": lambda p, x: torch.multinomial(p[:, 2], 2),
    "dropout": lambda p, x: torch.nn.functional.dropout(p, 0.5),
    "embedding": lambda p, x: torch.nn.functional.embedding(p[:, 0].long(), x.view(3, 1)),
    "batch norm": lambda p, x: torch.nn.functional.batch_norm(p, x, x.clone(), training=True),
    "running statistics": lambda p, x: [
        torch.nn.functional.batch_norm(p, x, x.clone(), training=True, momentum=1.0),
        x,
    ][1],
    "SGD": lambda p, x: _optimised(p, torch.optim.SGD)[0],
    "momentum": lambda p, x: _optimised(p, torch.optim.SGD, momentum=0.9)[-1],
    "Adam's weights": lambda p, x: _optimised(p, torch.optim.Adam)[0],
    "Adam's state": lambda p, x: _optimised(p, torch.optim.Adam)[1],
    "Adam by lists": lambda p, x: _optimised(p, torch.optim.Adam, foreach=True)[-1],
    "the seed of autograd.grad": lambda p, x: _of_autograd(p)[0],
    "a retained gradient": lambda p, x: _of_autograd(p)[1],
    "a leaf's gradient": lambda p, x: _of_autograd(p)[2],
    "torch.func.grad": lambda p, x: torch.func.grad(lambda t: (t * p[0]).sum())(x),
    "a published view's slice": lambda p, x: p.T[1:, ::2].flatten()[:1],
    "bits": lambda p, x: p.view(torch.int32),
    "a comparison with itself": lambda p, x: p == p,
    "whether it is a number": lambda p, x: torch.isnan(p),
    "its size as a value": lambda p, x: torch.zeros_like(p[0]).fill_(3),
}


@pytest.mark.parametrize("how", _DRESSES)
def test_no_dress_makes_a_private_value_public(bob: GridProcess, connect: Connect, births: DatasetInfo, how: str):
    client = connect(bob)
    private = _DRESSES[how](secret_of(client, births), client.receive(_x.clone()))
    with pytest.raises(GetNotPermittedError) as refused:
        private.get()
    assert says_nothing(refused.value)
    assert client.receive(torch.ones(2)).get().tolist() == [1, 1]


def test_a_gradient_that_is_a_public_tensor_too_is_closed_under_both_names(
    bob: GridProcess, connect: Connect, births: DatasetInfo
):
    client = connect(bob)
    x, given = client.receive(_x.clone()).requires_grad_(), client.receive(torch.zeros(3))
    x.grad = given
    (x * secret_of(client, births)[0]).sum().backward()
    for name in (given, x.grad, given[1:]):
        with pytest.raises(GetNotPermittedError):
            name.get(deregister_ptr=False)


def test_freed_memory_is_handed_out_as_zeros(bob: GridProcess, connect: Connect, births: DatasetInfo):
    client = connect(bob)
    records = secret_of(client, births)
    for length in (100, 10_000, 1_000_000):
        secret = records[0, 1].expand(length).clone()
        shape, like = client.receive(torch.zeros(1)), client.receive(torch.zeros(length))
        client.session.flush()
        del secret
        for made in (torch.empty_like(like), shape.new_empty(length), like.new_empty((length // 10, 10))):
            assert not made.get().any()


def test_public_randomness_after_private_use_of_it_follows_no_seed(
    bob: GridProcess, intrude: Intrude, births: DatasetInfo
):
    """How many numbers an operation draws may depend on values; what comes next must not tell."""
    raw = intrude(bob)
    row = raw.op("aten.select.int", ["r", "d", "d"], raw.open(births), 0, 0)
    draws = []
    for _ in range(2):
        raw.operations([c.SEED, 7])
        raw.op("aten.bernoulli.default", ["r"], raw.op("aten.mul.Scalar", ["r", "d"], row, 0.01))
        draws.append(raw.read(raw.op("aten.rand_like.default", ["r"], raw.put(torch.zeros(4)))).tolist())
    assert draws[0] != draws[1]


# ------------------------------------------------------------------ one bit a question


class Halving:
    """A stranger's session that asks whether one secret is over 0.5, by something that fails if it is."""

    def __init__(self, raw: RawSession, bits: DatasetInfo, position: int) -> None:
        self.raw = raw
        secret = raw.op("aten.select.int", ["r", "d", "d"], raw.open(bits), 0, position)
        large = raw.op("aten.view.default", ["r", "d"], raw.op("aten.gt.Scalar", ["r", "d"], secret, 0.5), [1])
        self.index = raw.op("aten.mul.Tensor", ["r", "r"], large, raw.put(torch.tensor([5])))
        self.broken = raw.op("aten.index_select.default", ["r", "d", "r"], raw.put(torch.zeros(3)), 0, self.index)

    def leaf(self) -> int:
        made = self.raw.put(torch.ones(1))
        self.raw.operations([c.REQUIRE_GRAD, made, True])
        return made

    def loss(self, of: int, factor: int | None = None) -> int:
        value = of if factor is None else self.raw.op("aten.mul.Tensor", ["r", "r"], of, factor)
        return int(self.raw.op("aten.sum.default", ["r"], value))

    def seen(self, identity: int) -> str:
        """What the stranger learns of a value, and of what failed before."""
        try:
            return str(self.raw.read(identity).tolist())
        except GridError as error:
            return error.code

    def grad_of(self, leaf: int) -> str:
        out = self.raw.new_id()
        self.raw.operations([c.GRAD_OF, out, leaf])
        return self.seen(out)


def _hidden_error(h: Halving) -> str:
    target = h.raw.put(torch.zeros(1))
    h.raw.op("aten.add_.Tensor", ["r", "r"], target, h.broken, out=0)
    h.raw.op("aten.add_.Tensor", ["r", "r"], h.raw.put(torch.zeros(2)), h.raw.put(torch.zeros(3)), out=0)
    return h.seen(h.raw.put(torch.ones(1)))


def _assigned_gradient(h: Halving) -> str:
    leaf = h.leaf()
    h.raw.operations([c.BACKWARD, h.loss(leaf), 0, False, False], [c.SET_GRAD, leaf, h.broken])
    return h.grad_of(leaf)


def _absent_gradient(h: Halving) -> str:
    leaf = h.leaf()
    h.raw.operations([c.SET_GRAD, leaf, h.broken])
    return h.grad_of(leaf)


def _unreached_gradient(h: Halving) -> str:
    reached, other = h.leaf(), h.leaf()
    h.raw.operations([c.BACKWARD, h.loss(other), 0, False, False])
    h.raw.operations([c.BACKWARD, h.loss(reached, h.broken), 0, False, False])
    return h.grad_of(other)


def _backward_of_both(h: Halving) -> str:
    leaf = h.leaf()
    h.raw.operations([c.BACKWARD_MANY, [h.loss(leaf), h.loss(h.leaf(), h.broken)], [0, 0], [], False, False])
    return h.grad_of(leaf)


def _number_of_values(h: Halving) -> str:
    outs = [h.raw.new_id() for _ in range(2)]
    h.raw.op("aten.max.dim", ["r", "d", OFF], h.broken, 0, out=outs)
    h.raw.op("aten.add_.Tensor", ["r", "r"], h.raw.put(torch.zeros(1)), h.broken, out=h.raw.new_id())
    status = h.raw.ask(messages.Status())
    assert isinstance(status, messages.SessionStatus)
    return str(status.values)


def _older_value_under_the_id(h: Halving) -> str:
    old = h.raw.put(torch.ones(1))
    h.raw.op("aten.neg.default", ["r"], h.broken, out=old)
    return h.seen(old)


def _list_written_in_part(h: Halving) -> str:
    first, second = h.raw.put(torch.zeros(1)), h.raw.put(torch.zeros(1))
    refs = ["L", ["r", "r"]]
    h.raw.op("aten._foreach_add_.List", [refs, refs], first, second, h.raw.put(torch.ones(1)), h.broken, out=0)
    return h.seen(first)


def _sizes(h: Halving) -> str:
    try:
        return str(h.raw.ask(messages.Sizes(values=(h.broken,))))
    except GridError as error:
        return error.code


def _require_grad_of_it(h: Halving) -> str:
    h.raw.operations([c.REQUIRE_GRAD, h.broken, True], [c.RETAIN_GRAD, h.broken])
    return h.grad_of(h.broken)


_QUESTIONS = (
    _hidden_error, _assigned_gradient, _absent_gradient, _unreached_gradient, _backward_of_both, _number_of_values,
    _older_value_under_the_id, _list_written_in_part, _sizes, _require_grad_of_it,
)  # fmt: skip


@pytest.mark.parametrize("question", _QUESTIONS, ids=lambda question: question.__name__.strip("_"))
def test_that_something_failed_answers_no_question(
    bob: GridProcess, intrude: Intrude, bits: DatasetInfo, question: Callable[[Halving], str]
):
    small, large = (question(Halving(intrude(bob), bits, position)) for position in (0, 1))
    assert small == large


def test_rows_of_one_result_are_not_taken_for_values_of_their_own(
    bob: GridProcess, intrude: Intrude, births: DatasetInfo
):
    """A tensor whose rows lie over each other: what is written to one would be read from the other."""
    raw = intrude(bob)
    rows = [raw.new_id(), raw.new_id()]
    raw.op("aten.new_empty_strided.default", ["r", "d", "d"], raw.put(torch.zeros(1)), [2, 3], [0, 1], out=rows)
    secret = raw.op("aten.select.int", ["r", "d", "d"], raw.open(births), 0, 1)
    raw.op("aten.copy_.default", ["r", "r"], rows[0], secret, out=0)
    with pytest.raises(GridError) as refused:
        raw.read(rows[1])
    assert says_nothing(refused.value)


# ------------------------------------------------------------------ tampering between forward and backward


def _max_pool(raw: RawSession, leaf: int) -> tuple[int, int]:
    image = raw.op("aten.view.default", ["r", "d"], leaf, [1, 1, 4, 4])
    outs = [raw.new_id(), raw.new_id()]
    raw.op("aten.max_pool2d_with_indices.default", ["r", "d", "d"], image, [2, 2], [2, 2], out=outs)
    return outs[0], outs[1]


def _nll(raw: RawSession, leaf: int) -> tuple[int, int]:
    target = raw.put(torch.tensor([0, 1, 2, 3]))
    outs = [raw.new_id(), raw.new_id()]
    rows = raw.op("aten.view.default", ["r", "d"], leaf, [4, 4])
    raw.op("aten.nll_loss_forward.default", ["r", "r", NONE, "d", "d"], rows, target, 1, -100, out=outs)
    return outs[0], target


def _embedding(raw: RawSession, leaf: int) -> tuple[int, int]:
    index = raw.put(torch.tensor([0, 1]))
    table = raw.op("aten.view.default", ["r", "d"], leaf, [4, 4])
    return raw.op("aten.embedding.default", ["r", "r"], table, index), index


def _weights(raw: RawSession, leaf: int) -> tuple[int, int]:
    weight = raw.put(torch.tensor([[1], [2], [3], [4]], dtype=torch.float32))
    return raw.op("aten.mm.default", ["r", "r"], raw.op("aten.view.default", ["r", "d"], leaf, [4, 4]), weight), weight


_FAR = 1 << 40


def _directly(raw: RawSession, saved: int) -> None:
    raw.op("aten.fill_.Scalar", ["r", "d"], saved, _FAR, out=0)


def _without_grad(raw: RawSession, saved: int) -> None:
    raw.operations([c.GRAD_MODE, False])
    _directly(raw, saved)
    raw.operations([c.GRAD_MODE, True])


def _by_view(raw: RawSession, saved: int) -> None:
    _directly(raw, raw.op("aten.slice.Tensor", ["r", "d", "d", "d"], saved, 0, 0, 1))


def _by_unsafe_view(raw: RawSession, saved: int) -> None:
    _directly(raw, raw.op("aten._unsafe_view.default", ["r", "d"], saved, [-1]))


def _by_detached(raw: RawSession, saved: int) -> None:
    _directly(raw, raw.op("aten.detach.default", ["r"], saved))


def _by_list(raw: RawSession, saved: int) -> None:
    raw.op("aten._foreach_add_.Scalar", [["L", ["r"]], "d"], saved, _FAR, out=0)


def _by_out(raw: RawSession, saved: int) -> None:
    far = raw.op("aten.add.Scalar", ["r", "d"], saved, _FAR)
    raw.op("aten.maximum.out", ["r", "r"], far, far, saved, out=0, kwargs=[["out", "r"]])


def _twice(raw: RawSession, saved: int) -> None:
    """After a first pass that keeps its graph; the caller's pass is the second."""
    _directly(raw, saved)


_WAYS = (_directly, _without_grad, _by_view, _by_unsafe_view, _by_detached, _by_list, _by_out, _twice)


@pytest.mark.parametrize("how", _WAYS, ids=lambda how: how.__name__.strip("_"))
@pytest.mark.parametrize("what", [_max_pool, _nll, _embedding, _weights], ids=lambda what: what.__name__.strip("_"))
def test_what_backward_needs_cannot_be_changed_under_its_feet(
    bob: GridProcess,
    intrude: Intrude,
    what: Callable[[RawSession, int], tuple[int, int]],
    how: Callable[[RawSession, int], None],
):
    """A forged index would read and write outside of the gradient's memory."""

    def gradient(tamper: Callable[[RawSession, int], None] | None) -> tuple[RawSession, int]:
        raw = intrude(bob)
        leaf = raw.put(torch.arange(16.0))
        raw.operations([c.REQUIRE_GRAD, leaf, True])
        result, saved = what(raw, leaf)
        loss = raw.op("aten.sum.default", ["r"], result)
        if how is _twice:
            raw.operations([c.BACKWARD, loss, 0, True, False], [c.SET_GRAD, leaf, 0])
        if tamper is not None:
            tamper(raw, saved)
        out = raw.new_id()
        raw.operations([c.BACKWARD, loss, 0, False, False], [c.GRAD_OF, out, leaf])
        return raw, out

    raw, honest = gradient(None)
    assert raw.read(honest).abs().sum() > 0
    raw, forged = gradient(how)
    for attempt in range(2):  # the first read tells of the failed pass, the second of its gradient
        with pytest.raises(RemoteOperationError, match="modified by an inplace operation"):
            raw.read(forged)
        assert attempt < 2
    assert raw.read(raw.put(torch.ones(2))).tolist() == [1, 1]
