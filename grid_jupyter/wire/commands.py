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
    [RECORD, r, captured, inputs, body, outs]              recording r: a list of commands, on slots
    [RUN, r, ids, outs, seeds]                             run recording r
    [FORGET, r]                                            forget recording r

Argument structure of a template, one item an argument (`kwargs` is a list of `[name, item]`):

    "r"        a value's id                "d"          a number, or a list of numbers
    "z"        two numbers: complex        ["c", x]     the constant None, bool or str x
    ["t", x]   the dtype x                 ["m", x]     the memory format x
    ["L", […]] a list of items

The body of a recording is a list of commands whose ids are slots: 1 … for the values `captured` (their ids are
given once, with RECORD), then one for each of the `inputs` that a RUN names; results may have any larger number.
`outs` are the slots that get the ids that a RUN gives. SEED stands without its number, which a RUN brings.
"""

from __future__ import annotations

DEFINE, FREE, PUT, SEED, GRAD_MODE, CLEAR = -1, -2, -3, -4, -5, -6
REQUIRE_GRAD, RETAIN_GRAD, BACKWARD, GRAD_OF, SET_GRAD, GRADIENTS = -10, -11, -12, -13, -14, -15
BACKWARD_MANY = -16
RECORD, RUN, FORGET = -20, -21, -22

IN_RECORDINGS: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    PUT: ((1,), ()),
    SEED: ((), ()),
    GRAD_MODE: ((), ()),
    REQUIRE_GRAD: ((), (1,)),
    RETAIN_GRAD: ((), (1,)),
    BACKWARD: ((), (1, 2)),
    GRAD_OF: ((1,), (2,)),
    SET_GRAD: ((), (1, 2)),
    GRADIENTS: ((1,), (2, 3, 4)),
    BACKWARD_MANY: ((), (1, 2, 3)),
}
"""Commands that a recording may hold besides operations: where in them results stand, and where operands (0: none)."""

FIRST_ID = 1 << 30
"""Sessions count their ids up from a random number between FIRST_ID and twice that."""
