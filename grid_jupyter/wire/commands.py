"""The operation stream: what a client asks of its session's Worker without waiting.

One OPERATIONS frame carries a msgpack list of commands; a command is a list that starts with a code.
Ids are integers that the client chooses; all of them are private to the session.

    code                                                   meaning
    [t >= 0, out, v0, v1, …]                               run template t; v* fill its slots in order; out is the
                                                           id of the result, or a list of ids; a negative number,
                                                           by which a failure is told, where there is no result
    [DEFINE, t, op, args, kwargs]                          template t: operation and argument structure
    [FREE, id, …]                                          forget values
    [CLEAR]                                                forget all values
    [PUT, id, dtype, shape, bytes]                         a small tensor of the client's
    [SEED, n]                                              seed the generator for the next random operation
    [GRAD_MODE, on]                                        torch.is_grad_enabled() of the client
    [REQUIRE_GRAD, id, on]                                 requires_grad_(on)
    [RETAIN_GRAD, id]                                      retain_grad()
    [BACKWARD, id, gradient or 0, retain, create, n]       backward(); a failure is told by the number n
    [GRAD_OF, out, id]                                     out becomes id's .grad
    [SET_GRAD, id, gradient or 0]                          id.grad = …
    [GRADIENTS, out, outs, grad_outs, ins, retain, create, unused, batched]
                                                           torch.autograd.grad; the gradients get the ids of `out`
    [BACKWARD_MANY, ids, gradients, inputs, retain, create, n]
                                                           torch.autograd.backward of several, or for `inputs` only

Argument structure of a template, one item an argument (`kwargs` is a list of `[name, item]`):

    "r"        a value's id                "d"          a number, or a list of numbers
    "z"        two numbers: complex        ["c", x]     the constant None, bool or str x
    ["t", x]   the dtype x                 ["m", x]     the memory format x
    ["L", […]] a list of items
"""

from __future__ import annotations

DEFINE, FREE, PUT, SEED, GRAD_MODE, CLEAR = -1, -2, -3, -4, -5, -6
REQUIRE_GRAD, RETAIN_GRAD, BACKWARD, GRAD_OF, SET_GRAD, GRADIENTS = -10, -11, -12, -13, -14, -15
BACKWARD_MANY = -16

FIRST_ID = 1 << 30
"""Sessions count their ids up from a random number between FIRST_ID and twice that."""
