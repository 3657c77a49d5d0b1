"""How a value of a session was computed, for the owners who decide on its release.

The frames of a session are kept as they came, up to a limit, and decoded only when somebody asks for a value. What is
said rests on what the Worker was told to do, never on what the client says of it. Where it is not known which of two
values something derives from, it is said to derive from both.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from grid_jupyter.errors import GridError
from grid_jupyter.ops.kernels import kernel
from grid_jupyter.wire import commands, worker
from grid_jupyter.wire.limits import MAX_DATASETS_OPEN
from grid_jupyter.worker import command_words as words
from grid_jupyter.worker.templates import Box, Template

LOG_BYTES = 2 << 20
"""Bytes of frames that a session keeps; the oldest go first."""
MAX_FOLLOWED = 50_000
"""Commands that are followed back, the newest ones; those of recordings count each time they ran."""
MAX_LINES = 200
"""Operations that are shown, those nearest to the value; all sources are shown besides."""
_NOTE_BYTES = 200
_MAX_PARTS = 64
_MAX_LINE = 400
_POINTWISE = frozenset({
    "abs", "add", "ceil", "clamp", "clone", "cos", "detach", "div", "eq", "exp", "floor", "ge", "gt", "le",
    "log", "log1p", "log2", "log10", "logical_not", "lt", "masked_fill", "mul", "ne", "neg", "pow",
    "reciprocal", "relu", "round", "rsqrt", "sigmoid", "sign", "sin", "sqrt", "square", "sub", "tanh",
    "_to_copy",
})  # fmt: skip # with one tensor, row i of the result is of row i
_decoder = msgspec.msgpack.Decoder(list[list[Any]])

Loaded = worker.Load | worker.Receive
Entry = list[list[Any]] | Loaded
Rows = dict[int, frozenset[tuple[int, int]]]
"""By source: the choices of rows that something rests on, each with how many it chose; 0 is no choice: all."""


class Log:
    """What a session was told, in order: the last frames, undecoded."""

    def __init__(self, limit: int = LOG_BYTES) -> None:
        self.cut = False
        self._limit = limit
        self._bytes = 0
        self._entries: deque[bytes | Loaded] = deque()

    def add(self, entry: bytes | Loaded) -> None:
        """Keep a frame of operations, or what was taken in besides."""
        self._entries.append(entry)
        self._bytes += _size(entry)
        while self._bytes > self._limit:
            self._bytes -= _size(self._entries.popleft())
            self.cut = True

    def __iter__(self) -> Iterator[bytes | Loaded]:
        return iter(self._entries)


def _size(entry: bytes | Loaded) -> int:
    return len(entry) if isinstance(entry, bytes) else _NOTE_BYTES


@dataclass
class _Group:
    """Values that may share a storage; `written` is the last step that wrote to it."""

    written: int = -1


@dataclass
class _Made:
    """What an id stands for: the step that made it."""

    step: int
    group: _Group


@dataclass
class _Step:
    text: list[str | int]  # numbers are steps that it takes
    operation: str
    takes: tuple[int, ...]
    rows: Rows = field(default_factory=dict)
    aligned: tuple[int, int] | None = None  # (source, how many): its first dimension are rows of that source
    source: int = -1
    tensor: str = ""
    picks: int | None = None  # how many rows an index of the asker's picks


def explain(log: Log, value: int, templates: Mapping[int, Any], boxes: Mapping[int, Box]) -> worker.Explained:
    """Follow a value back to its sources."""
    entries: list[Entry] = [_read(entry) if isinstance(entry, bytes) else entry for entry in log]
    told = [command for entry in entries if isinstance(entry, list) for command in entry]
    defined = {command[1] for command in told if command[0] == commands.DEFINE}
    bodies = {command[1]: len(command[4]) for command in told if command[0] == commands.RECORD}
    story = _Story(templates, boxes, defined)
    followed, first = 0, len(entries)
    while first:
        followed += _weight(entries[first - 1], bodies)
        if followed > MAX_FOLLOWED:
            break
        first -= 1
    for number, entry in enumerate(entries):
        story.follow(entry, quietly=number < first)
    return story.told(value, cut=log.cut or first > 0)


def _read(entry: bytes) -> list[list[Any]]:
    """The commands of a frame; those that the Worker cannot have run are left out."""
    return [command for command in _decoder.decode(entry) if _is_formed(command)]


def _is_formed(command: list[Any]) -> bool:
    if not command or type(command[0]) is not int:
        return False
    if command[0] not in (commands.DEFINE, commands.RECORD, commands.RUN, commands.FORGET):
        return True
    if len(command) < 2 or type(command[1]) is not int:
        return False
    return command[0] != commands.RECORD or (len(command) == 6 and type(command[4]) is list)


def _weight(entry: Entry, bodies: Mapping[int, int]) -> int:
    if not isinstance(entry, list):
        return 1
    return sum(bodies.get(command[1], 1) if command[0] == commands.RUN else 1 for command in entry)


class _Story:
    def __init__(self, templates: Mapping[int, Any], boxes: Mapping[int, Box], defined: set[int]) -> None:
        self.steps: list[_Step] = []
        self._made: dict[int, _Made] = {}
        self._boxes = boxes
        # those that the log says nothing of have been what they are since before it
        self._forms: dict[int, tuple[str, Any, Any]] = {
            number: one.form for number, one in templates.items() if type(one) is Template and number not in defined
        }
        self._recordings: dict[int, tuple[list[_Made], list[list[Any]], list[int]]] = {}
        self._gradients = -1  # the last step that changed gradients
        self._totals: dict[int, int] = {}

    # -------------------------------------------------------------- following

    def follow(self, entry: Entry, *, quietly: bool) -> None:
        """Take in what came. What is followed quietly only says what later commands mean."""
        if isinstance(entry, worker.Load):
            for part in entry.tensors:
                self._load(entry.source, part)
            return
        if isinstance(entry, worker.Receive):
            form = f"{entry.dtype} {list(entry.shape)}"
            text = f"a value from elsewhere, {form}" if entry.sources else f"a tensor that the asker sent, {form}"
            self._make(entry.value, _Step([text], "", (), {source: frozenset({(0, 0)}) for source in entry.sources}))
            return
        for command in entry:
            if quietly and command[0] not in (commands.DEFINE, commands.RECORD, commands.FORGET):
                for identity in words.ids(command[1:2]):
                    self._made.pop(identity, None)
                continue
            try:
                self._command(command)
            except (LookupError, TypeError, ValueError, AttributeError, GridError):
                continue  # the Worker did not run it either: it is not of the protocol's form

    def _command(self, command: list[Any]) -> None:
        code, rest = command[0], command[1:]
        if code >= 0:
            self._operation(command)
        elif code == commands.DEFINE:
            self._forms[rest[0]] = (str(rest[1]), rest[2], rest[3])
        elif code == commands.PUT:
            text = f"a tensor that the asker sent, {rest[1]} {list(rest[2])}"
            self._make(rest[0], _Step([text], "", (), picks=words.picks(rest[1], rest[3])))
        elif code in (commands.BACKWARD, commands.BACKWARD_MANY):
            ids = [i for part in rest[:3] for i in words.ids(part if type(part) is list else [part])][:_MAX_PARTS]
            ids = ids if code == commands.BACKWARD_MANY else ids[:2]
            self._gradients = self._step("backward", self._uses(ids), *self._before())
        elif code == commands.SET_GRAD:
            self._gradients = self._step("set_grad", self._uses(words.ids(rest[:2])), *self._before())
        elif code == commands.GRAD_OF:
            made = self._step("grad", self._uses([rest[1]]), *self._before())
            self._made[rest[0]] = _Made(made, _Group())
        elif code == commands.GRADIENTS:
            made = self._step(
                "autograd.grad", self._uses([*words.ids(rest[1]), *words.ids(rest[2]), *words.ids(rest[3])])
            )
            for identity in words.ids(rest[0]):
                self._made[identity] = _Made(made, _Group())
        elif code == commands.RECORD:
            self._recordings[rest[0]] = ([self._of(i) for i in words.ids(rest[1])], rest[3], words.ids(rest[4]))
        elif code == commands.FORGET:
            self._recordings.pop(rest[0], None)
        elif code == commands.RUN:
            self._run(rest[0], words.ids(rest[1]), words.ids(rest[2]))

    def _run(self, number: int, ids: list[int], outs: list[int]) -> None:
        found = self._recordings.get(number)
        if found is None:
            made = self._step(
                f"recording {number}, whose commands are no longer known", self._uses(ids), *self._before()
            )
            self._gradients = made
            for identity in ids:
                self._of(identity).group.written = made
            for identity in outs:
                self._made[identity] = _Made(made, _Group())
            return
        captured, body, slots = found
        outside = self._made
        self._made = dict(enumerate([*captured, *(self._of(identity) for identity in ids)], 1))
        try:
            for command in body:
                if command[0] >= 0 or command[0] in commands.IN_RECORDINGS:
                    self._command(command)
        finally:
            inside, self._made = self._made, outside
        for slot, identity in zip(slots, outs, strict=True):
            if slot in inside:
                outside[identity] = inside[slot]

    def _load(self, source: int, part: worker.Mapped) -> None:
        rows = part.shape[0] if part.shape else 1
        self._totals[source] = max(rows, self._totals.get(source, 0))
        text = f"{part.dtype} {list(part.shape)}"
        step = _Step([text], "", (), {source: frozenset({(0, rows)})}, (source, rows), source, part.name)
        self._make(part.value, step)

    def _operation(self, command: list[Any]) -> None:
        form = self._forms.get(command[0])
        if form is None:
            ids = words.ids(command[2:])
            made = self._step("an operation whose name is no longer known", self._uses(ids))
            for identity in words.ids(command[1:2]):
                self._made[identity] = _Made(made, _Group())
            return
        name, args, kwargs = form
        known = kernel(name)
        reader = words.Reader(command)
        parts: list[tuple[int, list[str | int]]] = [(position, reader.item(item)) for position, item in enumerate(args)]
        keywords = [(known.parameters.index(key), [f"{key}=", *reader.item(item)]) for key, item in kwargs]
        text: list[str | int] = [f"{words.short(name)}("]
        places: dict[int, list[_Made]] = {}
        takes: list[int] = []
        for number, (position, pieces) in enumerate([*parts, *keywords]):
            text.append(", " if number else "")
            for piece in pieces:
                if isinstance(piece, int):
                    operand = self._of(piece)
                    places.setdefault(position, []).append(operand)
                    used = self._use(operand)
                    takes += used
                    text.extend([used[0]] if len(used) == 1 else [used[0], " as changed by ", used[1]])
                else:
                    text.append(piece)
        text.append(")")
        step = _Step(text, words.short(name), tuple(dict.fromkeys(takes)), self._rows(takes))
        tensors = [operand for found in places.values() for operand in found]
        self._narrow(step, words.short(name), command, args, tensors)
        self.steps.append(step)
        index = len(self.steps) - 1
        for position in known.mutates:
            for operand in places.get(position, ()):
                operand.group.written = index
        outs = command[1] if type(command[1]) is list else [command[1]]
        for result, identity in enumerate(outs):
            if type(identity) is int and identity > 0:
                held = places.get(known.views.get(0 if known.returns_list else result, -1), ())
                self._made[identity] = _Made(index, held[0].group if held else _Group())

    def _narrow(self, step: _Step, name: str, command: list[Any], args: Any, tensors: list[_Made]) -> None:
        """Let a choice among rows count, where the first dimension are rows of one source.

        Rows that a mask of private values chose rest on all rows that the mask rests on: those count as well.
        """
        if not tensors or len(self._use(tensors[0])) > 1:
            return
        first = self.steps[tensors[0].step]
        if first.aligned is None:
            return
        source, have = first.aligned
        numbers = words.numbers(command, args)
        dimension = numbers[0] if numbers and type(numbers[0]) is int else 0
        if (name in _POINTWISE and len(tensors) == 1) or (name in ("select", "slice", "narrow") and dimension > 0):
            step.aligned = first.aligned
        elif dimension < 0:
            return  # which dimension that is was not kept
        elif name == "select":
            step.rows = self._chosen(source, 1)
        elif name == "slice":
            begin, end, stride = (*numbers[1:4], None, None, None)[:3]
            count = len(range(have)[slice(begin, end, stride)])
            step.rows, step.aligned = self._chosen(source, count), (source, count)
        elif name == "narrow":
            count = min(have, max(0, int(numbers[2])))
            step.rows, step.aligned = self._chosen(source, count), (source, count)
        elif name in ("index", "index_select") and len(tensors) == 2 and words.indexes_first(name, args):
            index = self.steps[tensors[1].step]
            if index.picks is not None and len(self._use(tensors[1])) == 1:
                step.rows = self._chosen(source, min(have, index.picks))

    def _chosen(self, source: int, count: int) -> Rows:
        return {source: frozenset({(len(self.steps) + 1, count)})}

    # -------------------------------------------------------------- what ids stand for

    def _of(self, identity: int) -> _Made:
        made = self._made.get(identity)
        if made is None:
            box = self._boxes.get(identity)
            mask = 0 if box is None else box.sources
            sources = [number for number in range(MAX_DATASETS_OPEN) if mask >> number & 1] if mask else []
            text = "a value from before what is known here"
            made = self._made[identity] = _Made(len(self.steps), _Group())
            self.steps.append(_Step([text], "", (), {source: frozenset({(0, 0)}) for source in sources}))
        return made

    def _make(self, identity: int, step: _Step) -> None:
        self.steps.append(step)
        self._made[identity] = _Made(len(self.steps) - 1, _Group())

    def _use(self, made: _Made) -> list[int]:
        written = made.group.written
        return [made.step] if written <= made.step else [made.step, written]

    def _uses(self, ids: list[int]) -> list[int]:
        return [step for identity in ids for step in self._use(self._of(identity))]

    def _before(self) -> tuple[int, ...]:
        return (self._gradients,) if self._gradients >= 0 else ()

    def _step(self, what: str, uses: list[int], *before: int) -> int:
        text: list[str | int] = [f"{what}("]
        for number, used in enumerate(uses[:_MAX_PARTS]):
            text += [", ", used] if number else [used]
        text.append(", …)" if len(uses) > _MAX_PARTS else ")")
        for one in before:
            text += [" after ", one]
        takes = (*uses, *before)
        self.steps.append(_Step(text, what, tuple(dict.fromkeys(takes)), self._rows(takes)))
        return len(self.steps) - 1

    def _rows(self, takes: Any) -> Rows:
        rows: Rows = {}
        for step in takes:
            for source, chosen in self.steps[step].rows.items():
                together = rows.get(source, frozenset()) | chosen
                rows[source] = together if len(together) <= _MAX_PARTS else frozenset({(0, 0)})
        return rows

    # -------------------------------------------------------------- telling

    def told(self, value: int, *, cut: bool) -> worker.Explained:
        """All that the value derives from, in order."""
        last = self._use(self._of(value))
        wanted: set[int] = set()
        ahead = list(last)
        while ahead:
            step = ahead.pop()
            if step not in wanted:
                wanted.add(step)
                ahead.extend(self.steps[step].takes)
        order = sorted(wanted)
        names = {step: f"%{number}" for number, step in enumerate(order, 1)}
        operations = [step for step in order if self.steps[step].operation]
        left_out = set(operations[:-MAX_LINES])
        sources = [step for step in order if not self.steps[step].operation]
        left_out |= set(sources[MAX_LINES:])
        lines = [
            worker.Step(
                name=names[step],
                text="".join(
                    names.get(part, "%?") if type(part) is int else str(part) for part in self.steps[step].text
                ),
                source=self.steps[step].source,
                tensor=self.steps[step].tensor,
            )
            for step in order
            if step not in left_out
        ]
        rows = self._rows(last)
        return worker.Explained(
            steps=tuple(lines),
            result=" as changed by ".join(names[step] for step in last),
            left_out=len(left_out),
            cut=cut,
            operations=dict(Counter(self.steps[step].operation for step in operations).most_common(_MAX_PARTS)),
            rows=tuple(self._bound(source, chosen) for source, chosen in sorted(rows.items())),
        )

    def _text(self, step: int, names: Mapping[int, str]) -> str:
        text = "".join(names.get(part, "%?") if isinstance(part, int) else part for part in self.steps[step].text)
        return text if len(text) <= _MAX_LINE else f"{text[:_MAX_LINE]}…"

    def _bound(self, source: int, chosen: frozenset[tuple[int, int]]) -> worker.RowBound:
        total = self._totals.get(source, 0)
        if any(number == 0 for number, _ in chosen):
            return worker.RowBound(source=source, at_most=total, total=total)
        return worker.RowBound(source=source, at_most=min(total, sum(n for _, n in chosen)), total=total)
