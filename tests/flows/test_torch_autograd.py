"""Autograd does for remote tensors what it does for local ones, bit for bit, or says why it cannot."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from both_ways import both
from torch import func, nn
from torch.autograd import forward_ad
from torch.autograd import functional as second_order
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from grid_jupyter import VirtualWorker, send, send_module
from grid_jupyter.errors import GridError, RemoteOperationError, TensorsNotCollocatedException

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True"),  # torch's own advice
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated"),  # torch's forward mode uses it
]

X = torch.linspace(-2, 2, 24).reshape(4, 6)
W = torch.linspace(0.1, 1.0, 6)
CLASSES = torch.tensor([0, 1, 2, 0])
Lines = Callable[[Any], Any]


@pytest.fixture(scope="module")
def bob() -> VirtualWorker:
    return VirtualWorker(id="bob")


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def small_cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))


def leaf(where: Any, values: torch.Tensor = X) -> Any:
    return where.tensor(values).requires_grad_()


def grads_of(model: nn.Module) -> list[Any]:
    return [parameter.grad for parameter in model.parameters()]


# ------------------------------------------------------------------ backward()


def backward_for_some_inputs(where: Any) -> Any:
    a, b = leaf(where), leaf(where, W)
    (a * b).sum().backward(inputs=[a])
    return [a.grad, b.grad is None]


def backward_for_a_value_that_is_no_leaf(where: Any) -> Any:
    a = leaf(where)
    inner = a * 2
    (inner**2).sum().backward(inputs=[inner])
    return [inner.grad, a.grad is None]


def gradients_add_up(where: Any) -> Any:
    a = leaf(where)
    (a * a).sum().backward()
    (a * 3).sum().backward()
    return a.grad


def a_graph_that_is_kept(where: Any) -> Any:
    a = leaf(where)
    loss = (a * a).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    return a.grad


def a_gradient_with_a_graph(where: Any) -> Any:
    a = leaf(where)
    (a**3).sum().backward(create_graph=True)
    first = a.grad
    a.grad = None
    (first**2).sum().backward()
    return [first, a.grad]


def gradients_with_graphs_add_up(where: Any) -> Any:
    a = leaf(where)
    (a**2).sum().backward()
    (a**3).sum().backward(create_graph=True)
    return [a.grad, a.grad.requires_grad]


def several_outputs_at_once(where: Any) -> Any:
    a = leaf(where)
    torch.autograd.backward([(a * 2).sum(), (a * a)], [None, where.tensor(X)])
    return a.grad


def a_local_gradient_to_start_from(where: Any) -> Any:
    a = leaf(where)
    (a * 2).backward(X)
    return a.grad


def a_gradient_that_is_assigned(where: Any) -> Any:
    a = leaf(where)
    a.grad = where.tensor(X)
    (a * 2).sum().backward()
    a.grad += 1
    a.grad.mul_(2)
    first = a.grad.clone()
    del a.grad
    return [first, a.grad is None]


def gradients_kept_on_the_way(where: Any) -> Any:
    a = leaf(where)
    inner = a * 2
    inner.retain_grad()
    (inner.T.matmul(inner)).sum().backward()
    return [inner.grad, a.grad, inner.retains_grad, inner.is_leaf, a.is_leaf]


def parts_of_a_buffer(where: Any) -> Any:
    a, buffer = leaf(where), where.tensor(torch.zeros(4, 6))
    for row in range(4):
        buffer[row] = a[row] * (row + 1)
    buffer.pow(2).sum().backward()
    return [a.grad, buffer.requires_grad, buffer.is_leaf]


def changes_through_views(where: Any) -> Any:
    a = leaf(where)
    b = a * 1
    view = b[0]
    b.mul_(2)
    b[1] = 5.0
    (view.sum() + b.sum()).backward()
    return a.grad


def layers_that_are_frozen(where: Any) -> Any:
    model = where.module(mlp())
    model[0].requires_grad_(False)
    functional.mse_loss(model(where.tensor(X)), where.tensor(X[:, :3])).backward()
    frozen = model[0].weight.grad is None
    model.requires_grad_(True)
    model(where.tensor(X)).sum().backward()
    return [frozen, *grads_of(model)]


def gradients_set_to_zero_or_none(where: Any) -> Any:
    model = where.module(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(where.tensor(X)).sum().backward()
    model.zero_grad(set_to_none=False)
    zeros = [gradient.clone() for gradient in grads_of(model)]
    model(where.tensor(X)).sum().backward()
    again = [gradient.clone() for gradient in grads_of(model)]
    optimizer.zero_grad()
    return [*zeros, *again, [gradient is None for gradient in grads_of(model)]]


def post_accumulate_hooks(where: Any) -> Any:
    """The optimiser steps as soon as a gradient is there, and drops it."""
    model = where.module(mlp())
    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], lr=0.1)

        def step(of: Any, optimizer: Any = optimizer) -> None:
            optimizer.step()
            optimizer.zero_grad()

        parameter.register_post_accumulate_grad_hook(step)
    for _ in range(3):
        model(where.tensor(X)).pow(2).mean().backward()
    return [*model.parameters(), [gradient is None for gradient in grads_of(model)]]


BACKWARD: list[Lines] = [
    backward_for_some_inputs,
    backward_for_a_value_that_is_no_leaf,
    gradients_add_up,
    a_graph_that_is_kept,
    a_gradient_with_a_graph,
    gradients_with_graphs_add_up,
    several_outputs_at_once,
    a_local_gradient_to_start_from,
    a_gradient_that_is_assigned,
    gradients_kept_on_the_way,
    parts_of_a_buffer,
    changes_through_views,
    layers_that_are_frozen,
    gradients_set_to_zero_or_none,
    post_accumulate_hooks,
]


@pytest.mark.parametrize("lines", BACKWARD, ids=lambda lines: lines.__name__)
def test_backward_leaves_the_gradients_that_it_leaves_locally(bob: VirtualWorker, lines: Lines):
    both(bob, lines)


# ------------------------------------------------------------------ torch.autograd.grad and what rests on it


def grad_of_several(where: Any) -> Any:
    a, b = leaf(where), leaf(where, W)
    return torch.autograd.grad((a * b).sum(), [a, b])


def grad_of_unused(where: Any) -> Any:
    a, b = leaf(where), leaf(where, W)
    loss = (a * 2).sum()
    found = torch.autograd.grad(loss, [a, b], allow_unused=True, retain_graph=True)
    return [found[0], found[1] is None, *torch.autograd.grad(loss, [a, b], materialize_grads=True)]


def grad_by_name(where: Any) -> Any:
    model = where.module(mlp())
    return torch.autograd.grad(model(where.tensor(X)).sum(), dict(model.named_parameters()))


def grad_in_batches(where: Any) -> Any:
    a = leaf(where, W)
    return torch.autograd.grad(a * a, a, where.tensor(torch.eye(6)), is_grads_batched=True)


def grad_below_vmap(where: Any) -> Any:
    a = leaf(where, W)
    out = a**3
    return func.vmap(lambda v: torch.autograd.grad(out, a, v, retain_graph=True)[0])(where.tensor(torch.eye(6)))


def grad_three_times(where: Any) -> Any:
    a = leaf(where, W)
    (first,) = torch.autograd.grad((a**4).sum(), a, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), a, create_graph=True)
    (third,) = torch.autograd.grad(second.sum(), a)
    return [first, second, third, third.requires_grad]


def a_gradient_penalty(where: Any) -> Any:
    critic, x = where.module(mlp()), leaf(where)
    out = critic(x)
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    (out.mean() + ((slope.norm(2, dim=1) - 1) ** 2).mean()).backward()
    return grads_of(critic)


GRAD: list[Lines] = [
    grad_of_several,
    grad_of_unused,
    grad_by_name,
    grad_in_batches,
    grad_below_vmap,
    grad_three_times,
    a_gradient_penalty,
    lambda w: second_order.jacobian(lambda a: (a**2).sum(1), w.tensor(X)),
    lambda w: second_order.jacobian(lambda a: (a**2).sum(1), w.tensor(X), vectorize=True),
    lambda w: second_order.hessian(lambda a: (a**3).sum(), w.tensor(W)),
    lambda w: second_order.vjp(lambda a: (a**3).sum(), w.tensor(W)),
    lambda w: second_order.jvp(lambda a: a**3, w.tensor(W), w.tensor(W)),
    lambda w: second_order.hvp(lambda a: (a**3).sum(), w.tensor(W), w.tensor(W)),
    lambda w: second_order.vhp(lambda a: (a**3).sum(), w.tensor(W), w.tensor(W)),
]


@pytest.mark.parametrize("lines", GRAD)
def test_torch_autograd_grad_and_functional_do_as_they_do_locally(bob: VirtualWorker, lines: Lines):
    both(bob, lines)


# ------------------------------------------------------------------ modes, flags, data


def modes(where: Any) -> Any:
    a = leaf(where)
    with torch.no_grad():
        outside = a * 2
        with torch.enable_grad():
            inside = (a * a).sum()
    with torch.set_grad_enabled(False):
        disabled = a + 1
    with torch.inference_mode():
        inferred = (a * 2).sum()
    inside.backward()
    return [outside.requires_grad, disabled.requires_grad, (a + 1).requires_grad, inferred, a.grad]


def flags(where: Any) -> Any:
    a = leaf(where)
    b = a * 2
    made = torch.zeros_like(b), b.new_ones(3), torch.randn_like(a, requires_grad=True)
    return [
        [a.is_leaf, b.is_leaf, a.grad_fn is None, b.grad_fn is None, b.detach().is_leaf],
        [one.requires_grad for one in made],
        [one.is_leaf for one in made],
        [(a > 0).requires_grad, a.argmax().requires_grad, a.sort()[0].requires_grad],
    ]


def leaves_made_by_factories(where: Any) -> Any:
    x = where.tensor(X)
    ones, zeros = torch.ones_like(x, requires_grad=True), x.new_zeros(6, requires_grad=True)
    first = torch.full_like(x, 2.0, requires_grad=True)
    (ones * x + torch.cat([first, x])[:4] + zeros + first[0]).sum().backward()
    return [ones.grad, zeros.grad, first.grad, ones.is_leaf]


def leaving_the_graph_in_place(where: Any) -> Any:
    b = leaf(where) * 2
    b.detach_()
    return [b, b.requires_grad, b.is_leaf]


def data_is_read_and_set(where: Any) -> Any:
    a = leaf(where)
    a.data.mul_(2)
    doubled = a.detach().clone()
    a.data = where.tensor(X * 3)
    (a * a).sum().backward()
    return [doubled, a.detach(), a.requires_grad, a.grad]


def parameters_to_a_vector_and_back(where: Any) -> Any:
    model = where.module(mlp())
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector * 2, model.parameters())
    model(where.tensor(X)).sum().backward()
    return [vector, *model.parameters(), *grads_of(model)]


def other_dtypes(where: Any) -> Any:
    model = where.module(mlp())
    model(where.tensor(X)).sum().backward()
    model.double()
    wide = model(where.tensor(X.double()))
    gradients = grads_of(model)
    wide.sum().backward()
    added = [gradient.clone() for gradient in grads_of(model)]
    model.zero_grad()
    return [wide, *gradients, *added, model.to(torch.bfloat16)(where.tensor(X.bfloat16()))]


def copies(where: Any) -> Any:
    model = where.module(mlp())
    model(where.tensor(X)).sum().backward()
    twin, tensor = copy.deepcopy(model), copy.deepcopy(model[0].weight.detach())
    alias = copy.copy(tensor)
    tensor.zero_()
    with torch.no_grad():
        model[0].weight.zero_()
    return [*twin.parameters(), alias, [gradient is None for gradient in grads_of(twin)]]


def recomputing_what_was_not_kept(where: Any) -> Any:
    model, x = where.module(mlp()), leaf(where)
    checkpoint(model, x, use_reentrant=False).sum().backward()
    checkpoint_sequential(model, 2, x, use_reentrant=False).sum().backward()
    return [x.grad, *grads_of(model)]


def looking_for_anomalies(where: Any) -> Any:
    a = leaf(where)
    with torch.autograd.set_detect_anomaly(True):
        (a * 2).sum().backward()
    return a.grad


def forward_hooks_of_modules(where: Any) -> Any:
    model, seen = where.module(mlp()), []
    model[0].register_forward_hook(lambda module, given, out: seen.append(out))
    model[2].register_forward_pre_hook(lambda module, given: (given[0] * 2,))
    return [model(where.tensor(X)), seen]


MODES: list[Lines] = [
    modes,
    flags,
    leaves_made_by_factories,
    leaving_the_graph_in_place,
    data_is_read_and_set,
    parameters_to_a_vector_and_back,
    other_dtypes,
    copies,
    recomputing_what_was_not_kept,
    looking_for_anomalies,
    forward_hooks_of_modules,
]


@pytest.mark.parametrize("lines", MODES, ids=lambda lines: lines.__name__)
def test_modes_flags_and_data_are_as_they_are_locally(bob: VirtualWorker, lines: Lines):
    both(bob, lines)


# ------------------------------------------------------------------ torch.func


def per_sample(model: Callable[[], nn.Module], x: torch.Tensor) -> Lines:
    def lines(where: Any) -> Any:
        network = where.module(model())
        parameters = {name: value.detach() for name, value in network.named_parameters()}

        def loss(given: Any, one: Any, target: Any) -> Any:
            return functional.cross_entropy(func.functional_call(network, given, (one[None],)), target[None])

        each = func.vmap(func.grad(loss), in_dims=(None, 0, 0))
        return each(parameters, where.tensor(x), where.tensor(CLASSES))

    return lines


def an_ensemble(where: Any) -> Any:
    models = [where.module(mlp()) for _ in range(3)]
    parameters, buffers = func.stack_module_state(models)
    base = copy.deepcopy(models[0])
    return func.vmap(lambda p, b, x: func.functional_call(base, (p, b), (x,)), in_dims=(0, 0, None))(
        parameters, buffers, where.tensor(X)
    )


def forward_mode(where: Any) -> Any:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(where.tensor(W), where.tensor(W))
        return forward_ad.unpack_dual(torch.tanh(dual * dual)).tangent


FUNC: dict[str, Lines] = {
    "vmap": lambda w: func.vmap(lambda a, b: (a * b).sum(), in_dims=(0, None))(w.tensor(X), w.tensor(W)),
    "vmap of a module": lambda w: func.vmap(w.module(mlp()))(w.tensor(X)),
    "grad": lambda w: func.grad(lambda a: (a**3).sum())(w.tensor(W)),
    "grad and value": lambda w: func.grad_and_value(lambda a: (a.tanh() ** 3).sum())(w.tensor(W)),
    "grad of grad": lambda w: func.grad(func.grad(lambda a: (a**3).sum()))(w.tensor(W)[0]),
    "jacrev": lambda w: func.jacrev(lambda a: a.softmax(0))(w.tensor(W)),
    "jacfwd": lambda w: func.jacfwd(lambda a: a**2)(w.tensor(W)),
    "hessian": lambda w: func.hessian(lambda a: (a**3).sum() * a.prod())(w.tensor(W)),
    "hessian by jacrev": lambda w: func.jacrev(func.jacrev(lambda a: (a**3).sum()))(w.tensor(W)),
    "vjp": lambda w: func.vjp(lambda a: a.exp(), w.tensor(W))[1](w.tensor(W))[0],
    "jvp": lambda w: func.jvp(lambda a: a**2, (w.tensor(W),), (w.tensor(W),)),
    "functional_call": lambda w: func.functional_call(
        (model := w.module(mlp())), {name: value * 2 for name, value in model.named_parameters()}, (w.tensor(X),)
    ),
    "gradients of each sample": per_sample(mlp, X),
    "gradients of each image": per_sample(small_cnn, torch.linspace(-1, 1, 4 * 2 * 25).reshape(4, 2, 5, 5)),
    "an ensemble": an_ensemble,
    "forward mode": forward_mode,
}  # fmt: skip


@pytest.mark.parametrize("name", FUNC)
def test_torch_func_agrees_with_local(bob: VirtualWorker, name: str):
    both(bob, FUNC[name], tolerance=1e-5)  # the formulas of gradients are made of other kernels


def test_torch_compile_runs_remote_tensors_eagerly(bob: VirtualWorker):
    torch._dynamo.reset()
    both(bob, lambda w: torch.compile(lambda a: a * 2 + 1, backend="eager")(w.tensor(X)))


# ------------------------------------------------------------------ refused, with the reason


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return gradient * 2


def _with_backward_hook(a: Any) -> Any:
    model = nn.Sequential(nn.Tanh())
    model.register_full_backward_hook(lambda module, given, out: None)
    return model(a)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a custom Function": (lambda a: Doubled.apply(a), "Function of your own"),
    "reentrant checkpoints": (lambda a: checkpoint(torch.tanh, a, use_reentrant=True), "use_reentrant=False"),
    "hooks on gradients": (lambda a: a.register_hook(print), "read .grad"),
    "hooks on the graph": (lambda a: (a * 2).grad_fn.register_hook(print), "read .grad"),
    "backward hooks of modules": (_with_backward_hook, "backward hooks"),
    "a gradient of another shape": (lambda a: a.__setattr__("grad", X[0]), "does not fit"),
    "a gradient of something that needs none": (lambda a: a.detach().sum().backward(), "does not require grad"),
    "a gradient of many values": (lambda a: (a * 2).backward(), "scalar outputs"),
    "a gradient that nothing gives": (
        lambda a: torch.autograd.grad((a * 2).sum(), send(W, a.location).requires_grad_()), "not have been used",
    ),
    "a local tensor that requires grad": (lambda a: a * W.clone().requires_grad_(), "requires grad meets remote"),
    "data of a value that was computed": (lambda a: (a * 2).__setattr__("data", a), "cannot be replaced"),
    "local data": (lambda a: a.__setattr__("data", X), "send the values"),
    "a deep copy of what has a graph": (lambda a: copy.deepcopy(a * 2), "detach"),
    "a change of a view of a leaf": (lambda a: a[0].add_(1), "in place"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(bob: VirtualWorker, name: str):
    lines, says = REFUSED[name]
    with pytest.raises((GridError, RuntimeError, TypeError), match=says):
        lines(leaf(_There(bob)))
    assert send(W, bob).get().equal(W)


class _There:
    def __init__(self, place: VirtualWorker) -> None:
        self.tensor = lambda values: send(values, place)


def test_a_custom_function_runs_where_no_gradient_is_asked(bob: VirtualWorker):
    assert Doubled.apply(send(X, bob)).get().equal(X * 2)
    with torch.no_grad():
        assert Doubled.apply(send(X, bob).requires_grad_()).get().equal(X * 2)


def test_losses_in_two_places_go_backward_in_both(bob: VirtualWorker):
    here = X.clone().requires_grad_()
    there = [send(X, place).requires_grad_() for place in (bob, VirtualWorker(id="alice"))]
    torch.autograd.backward([(one**2).sum() for one in (here, *there)])
    assert all(one.grad.get().equal(here.grad) for one in there)
    with pytest.raises(TensorsNotCollocatedException):
        torch.autograd.grad([(one**2).sum() for one in there], there)
    with pytest.raises(TensorsNotCollocatedException):
        there[0].grad = send(X, there[1].location)


def test_a_leaf_that_a_second_derivative_does_not_reach_has_a_gradient_of_zeros(bob: VirtualWorker):
    # local torch has None there; only the place of the values knows
    critic = send_module(mlp(), bob.session)
    x = send(X, bob).requires_grad_()
    (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    slope.sum().backward()
    assert critic[2].bias.grad.get(deregister_ptr=False).equal(torch.zeros(3))
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    before = critic[2].bias.detach().get(deregister_ptr=False)
    optimizer.step()
    assert critic[2].bias.detach().get().equal(before)


def test_a_gradient_is_laid_out_as_the_pointer_says(bob: VirtualWorker):
    a = send(X, bob).requires_grad_()
    (found,) = torch.autograd.grad((a.T.contiguous().view(-1) ** 2).sum(), a)
    assert found.stride() == a.stride()
    assert found.view(24).get().equal(2 * X.view(24))
    (found,) = torch.autograd.grad((a[:, :1].expand(4, 3) * 2).sum(), a)
    assert found.view(24).get().equal(torch.tensor([6.0, 0, 0, 0, 0, 0] * 4))


def test_an_unused_gradient_of_an_inner_value_is_told_at_the_read(bob: VirtualWorker):
    a = send(X, bob).requires_grad_()
    inner, other = a * 2, a * 3
    (found,) = torch.autograd.grad(other.sum(), inner)
    with pytest.raises(RemoteOperationError, match="not have been used"):
        found.get()
