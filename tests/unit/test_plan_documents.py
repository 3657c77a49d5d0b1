"""Plans as documents: one spelling, one hash; whatever a stranger sends is a plan or PlanInvalidError."""

from __future__ import annotations

import copy
import json
import random
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.plan_documents import as_bytes, linear, pooling

from grid_jupyter.errors import PlanInvalidError
from grid_jupyter.plans.check import Limits, check
from grid_jupyter.plans.document import Ref, last_uses
from grid_jupyter.plans.drawing import MAX_BOXES, Graph, graph, svg
from grid_jupyter.plans.expressions import MAX_NUMBER, evaluate, fit, read_expression, size_of
from grid_jupyter.plans.listing import code
from grid_jupyter.plans.reader import MAX_BYTES, read_plan

PLANS = {"linear": linear(), "pooling": pooling()}


@pytest.mark.parametrize("tree", PLANS.values(), ids=PLANS)
def test_a_plan_that_is_read_and_written_keeps_its_bytes_and_its_hash(tree: dict[str, Any]):
    document = read_plan(as_bytes(tree))
    assert document.to_bytes() == as_bytes(tree)
    again = read_plan(document.to_bytes())
    assert again == document
    assert again.sha256 == document.sha256


def test_the_hash_changes_with_any_change():
    changed = linear()
    changed["nodes"][6][1][1] = ["/", 3.0, "B"]
    assert read_plan(as_bytes(changed)).sha256 != read_plan(as_bytes(linear())).sha256


@pytest.mark.parametrize(
    "spelled",
    [
        as_bytes(linear()) + b"\n",
        json.dumps(linear()).encode(),
        as_bytes(linear()).replace(b'"w"', b'"\\u0077"'),
        as_bytes(linear()).replace(b"2.0", b"2.00"),
        as_bytes(linear()).replace(b'{"batch"', b'{"batch":{"max":4096,"min":1},"batch"'),
    ],
    ids=["newline", "spaces", "escape", "digits", "twice"],
)
def test_another_spelling_of_the_same_plan_is_refused(spelled: bytes):
    with pytest.raises(PlanInvalidError):
        read_plan(spelled)


def test_the_check_says_what_a_run_takes():
    checked = check(read_plan(as_bytes(linear())), batch=10)
    assert checked.values[4] == ("float32", (10, 1))
    assert checked.work == 2 * 10 * 3 + 10 + 10 + 10 + 30 + 2 * 3 * 10 + 3 * 3
    inputs = 4 * (3 + 30 + 10 + 1)
    assert inputs < checked.memory_bytes < inputs + 4 * (10 * 4 + 30 + 4 * 3 + 1)


def test_values_are_let_go_after_their_last_use_and_outputs_never():
    document = read_plan(as_bytes(linear()))
    dead = [number for numbers in last_uses(document) for number in numbers]
    assert len(dead) == len(set(dead))
    assert {7, 12}.isdisjoint(dead)
    assert last_uses(document)[1] == (2, 4)


def test_the_code_has_a_line_for_each_input_operation_and_output():
    shown = code(read_plan(as_bytes(linear())))
    assert "    %10: float32[3, 1] = mul(%9, (2.0 / B))\n" in shown
    assert "    %0: float32[3, 1] = param w\n" in shown
    assert "    param w = %12\n" in shown


def test_the_graph_has_an_arrow_from_each_argument():
    drawn = graph(read_plan(as_bytes(pooling())))
    assert (3, "max_pool2d") in drawn.boxes
    assert (0, 3) in drawn.arrows
    assert (3, 5) in drawn.arrows  # the indices are the second result of the first node


def test_the_graph_is_drawn_with_each_operation_below_what_it_takes():
    drawn = graph(read_plan(as_bytes(pooling())))
    picture = ElementTree.fromstring(svg(drawn))  # noqa: S314 (ours)
    space = "{http://www.w3.org/2000/svg}"
    heights = {one.text: float(one.get("y", "")) for one in picture.iter(f"{space}text")}
    labels = dict(drawn.boxes)
    assert heights.keys() == set(labels.values())
    assert len([one for one in picture.iter(f"{space}path") if one.get("marker-end")]) == len(drawn.arrows)
    for source, target in drawn.arrows:
        if list(labels.values()).count(labels[source]) == list(labels.values()).count(labels[target]) == 1:
            assert heights[labels[source]] < heights[labels[target]]
    assert drawn._repr_svg_() == svg(drawn)
    assert "<script" not in svg(Graph(((0, "x <script>"),), ()))


def test_a_graph_that_nobody_could_read_is_not_drawn():
    chain = Graph(tuple((k, "relu") for k in range(MAX_BOXES + 1)), tuple((k, k + 1) for k in range(MAX_BOXES)))
    assert svg(chain) == ""
    assert svg(Graph(chain.boxes[1:], ((1, 2),))) != ""
    assert chain._repr_svg_() is None


# ------------------------------------------------------------------ what strangers send


def changed(path: list[Any], value: Any, tree: dict[str, Any] | None = None) -> bytes:
    tree = copy.deepcopy(tree or linear())
    inside = tree
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = value
    return as_bytes(tree)


def deep(levels: int) -> Any:
    return "B" if levels == 0 else ["+", deep(levels - 1), 1]


REFUSED = {
    "an unknown operation": changed(["nodes", 0, 0], "system"),
    "an attribute walk": changed(["nodes", 0, 0], "__class__.__init__"),
    "a terminal's escape": changed(["nodes", 0, 0], "\x1b[2J"),
    "a forward reference": changed(["nodes", 0, 1], ["%1", "%12"]),
    "a cycle": changed(["nodes", 0, 1], ["%4", "%0"]),
    "a negative reference": changed(["nodes", 0, 1], ["%-1", "%0"]),
    "a missing argument": changed(["nodes", 0, 1], ["%1"]),
    "an argument too many": changed(["nodes", 0, 1], ["%1", "%0", "%0"]),
    "a text for a value": changed(["nodes", 0, 1], ["%1", "w"]),
    "a float for a dimension": changed(["nodes", 3, 1, 1], [0.5]),
    "true for a dimension": changed(["nodes", 3, 1, 1], [True]),
    "one for a flag": changed(["nodes", 3, 1, 2], 1),
    "another version": changed(["version"], 2),
    "version true": changed(["version"], True),
    "a field too many": changed(["author"], "Eve"),
    "an unknown kind": changed(["kind"], "program"),
    "a role of another kind": changed(["inputs", 3, "role"], "arg"),
    "a name with a newline": changed(["inputs", 0, "name"], "w\n    loss"),
    "a name in other letters": changed(["inputs", 0, "name"], "\u0430"),
    "two inputs of one name": changed(["inputs", 1], linear()["inputs"][0]),
    "an output that renews nothing": changed(["outputs", 0, "name"], "v"),
    "no outputs": changed(["outputs"], []),
    "no loss": changed(["outputs"], linear()["outputs"][:1]),
    "batches upside down": changed(["batch"], {"min": 9, "max": 3}),
    "batches of nothing": changed(["batch"], {"min": 0, "max": 3}),
    "a length below zero": changed(["inputs", 0, "shape"], [-3, 1]),
    "a length of true": changed(["inputs", 0, "shape"], [True, 1]),
    "a huge length": changed(["inputs", 0, "shape"], [1 << 60, 1]),
    "too many dimensions": changed(["inputs", 0, "shape"], [1] * 9),
    "a size that nests": changed(["nodes", 6, 1, 1], deep(100)),
    "an unknown operator": changed(["nodes", 6, 1, 1], ["**", 2, "B"]),
    "no tensor tells B": as_bytes(
        linear(inputs=[{**one, "shape": [["+", "B", 0] if n == "B" else n for n in one["shape"]]}
                       for one in linear()["inputs"]])),
    "a constant of another length": changed(["inputs", 1, "data"], "AAAA", pooling()),
    "a constant that is no base64": changed(["inputs", 1, "data"], "%%%%", pooling()),
    "a constant in other letters": changed(["inputs", 1, "data"], "\u0431AAA", pooling()),
    "a constant of 10 GB": changed(["inputs", 1, "shape"], [10 * 2**30 // 8], pooling()),
    "a constant that depends on B": changed(["inputs", 1, "shape"], ["B"], pooling()),
    "noise of another kind": changed(["inputs", 2, "distribution"], "cauchy", pooling()),
    "indices from elsewhere": changed(["nodes", 1, 1, 7], "%1", pooling()),
    "indices of another window": changed(["nodes", 1, 1, 2], [1, 1], pooling()),
    "another number of arguments": changed(["takes"], {"tuple": ["*", "*"]}, pooling()),
    "a structure that is none": changed(["takes"], {"set": ["*"]}, pooling()),
    "not JSON": b"{",
    "nothing": b"",
    "a number": b"7",
    "deep lists": b"[" * 100_000,
    "a long integer": b'{"format":"grid.plan","version":' + b"1" * 10_000 + b"}",
    "many lists": b"[" + b"[]," * 1_100_000 + b"[]]",
    "too many bytes": b" " * (MAX_BYTES + 1),
}  # fmt: skip


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
def test_a_plan_is_refused_that_has(raw: bytes):
    with pytest.raises(PlanInvalidError) as error:
        read_plan(raw)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


def test_ten_million_nodes_are_refused():
    node = as_bytes(linear()["nodes"][2])
    raw = as_bytes(linear()).replace(b'"nodes":[', b'"nodes":[' + (node + b",") * 60_000)
    with pytest.raises(PlanInvalidError, match="limit of 50000"):
        read_plan(raw)
    with pytest.raises(PlanInvalidError, match="over the limit"):
        read_plan(raw * 5)


BOMBS = {
    "memory": [["full", [[1 << 35], 0.0, "float32"], [["float32", [1 << 35]]]]],
    "memory by expand": [["expand", ["%0", [1 << 20, 3, 1 << 20]], [["float32", [1 << 20, 3, 1 << 20]]]]],
    "memory by B": [["full", [[["*", "B", 1 << 30]], 0.0, "float32"], [["float32", [["*", "B", 1 << 30]]]]]],
    "work": [["full", [[8192, 8192], 0.0, "float32"], [["float32", [8192, 8192]]]],
             *(["mm", ["%13", "%13"], [["float32", [8192, 8192]]]] for _ in range(5))],
    "says that this gives": [["full", [[7], 0.0, "float32"], [["float32", [8]]]]],
    "divides by zero": [["full", [[["//", 5, ["-", "B", 1]]], 0.0, "float32"], [["float32", [1]]]]],
    "negative length": [["full", [[["-", 0, "B"]], 0.0, "float32"], [["float32", [["-", 0, "B"]]]]]],
    "out of range": [["full", [[["*", MAX_NUMBER, ["*", MAX_NUMBER, "B"]]], 0.0, "float32"], [["float32", [1]]]]],
    "a product of": [["mm", ["%0", "%0"], [["float32", [3, 1]]]]],
    "is for floating dtypes": [["cast", ["%0", "int64"], [["int64", [3, 1]]]], ["exp", ["%13"], [["int64", [3, 1]]]]],
}  # fmt: skip


@pytest.mark.parametrize("text", BOMBS)
def test_the_check_refuses_before_anything_is_allocated(text: str):
    tree = linear()
    tree["nodes"] += BOMBS[text]
    document = read_plan(as_bytes(tree))
    with pytest.raises(PlanInvalidError, match=text.split(" by ")[0]):
        check(document, batch=1)


def test_limits_are_the_callers():
    document = read_plan(as_bytes(linear()))
    with pytest.raises(PlanInvalidError, match="memory"):
        check(document, batch=100, limits=Limits(memory_bytes=1000))
    with pytest.raises(PlanInvalidError, match="work"):
        check(document, batch=100, limits=Limits(work=100))
    with pytest.raises(PlanInvalidError, match="batches of 1 to 4096"):
        check(document, batch=5000)


def mutated(raw: bytes, seed: int) -> bytes:
    """Some bytes changed, cut, doubled or moved; digits and brackets more often than others."""
    choose = random.Random(seed)  # noqa: S311
    data = bytearray(raw)
    for _ in range(choose.randint(1, 4)):
        at, end = sorted(choose.randrange(len(data) + 1) for _ in range(2))
        end = min(end, at + choose.choice((1, 1, 2, 8, 40)))
        what = choose.randrange(4)
        piece = bytes(choose.choice(b'0123456789[]{}",:%-.eBtrufalsn"') for _ in range(choose.randint(0, 4)))
        if what == 0:
            data[at:end] = piece
        elif what == 1:
            del data[at:end]
        elif what == 2:
            data[at:at] = data[at:end]
        else:
            other = choose.randrange(len(data) + 1)
            data[other : other + end - at] = data[at:end]
    return bytes(data)


def test_changed_bytes_are_a_plan_or_are_refused():
    for seed in range(4000):
        raw = mutated(as_bytes(PLANS["linear" if seed % 2 else "pooling"]), seed)
        try:
            document = read_plan(raw)
            assert document.to_bytes() == raw
            check(document, batch=document.batch[0])
        except PlanInvalidError:
            continue
        code(document)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("%0") | st.just("B"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(tree, dict):
        found += [place for key in sorted(tree) for place in places(tree[key], (*path, key))]
    elif isinstance(tree, list):
        found += [place for k, part in enumerate(tree) for place in places(part, (*path, k))]
    return found


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_json_anywhere_in_a_plan_is_refused_or_harmless(data: st.DataObject):
    tree = data.draw(st.sampled_from(list(PLANS.values())))
    place = data.draw(st.sampled_from(places(tree)))
    raw = changed(list(place), data.draw(json_values), tree)
    try:
        document = read_plan(raw)
        check(document, batch=data.draw(st.integers(*document.batch)))
    except PlanInvalidError:
        return
    assert read_plan(document.to_bytes()) == document


# ------------------------------------------------------------------ expressions


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (lambda b: b, "B"),
        (lambda b: 36 * b, ("*", 36, "B")),
        (lambda b: 2 * b - 1, ("+", ("*", 2, "B"), -1)),
        (lambda b: b * b, ("*", "B", "B")),
        (lambda b: 7, 7),
        (lambda b: 1 / b, ("/", 1.0, "B")),
        (lambda b: 0.1 * b / (b - 1), None),
        (lambda b: b**3, None),
    ],
)
def test_sizes_are_fitted_to_what_was_observed(of: Any, expected: Any):
    batches = (5, 7, 11)
    found = fit([of(b) for b in batches], batches)
    if expected is not None:
        assert found == expected
    if found is not None:
        assert all(evaluate(found, b) == pytest.approx(of(b), rel=1e-9) for b in (2, 3, 64, 1000))


def test_batch_norms_correction_is_found():
    found = fit([b * 36 / (b * 36 - 1) for b in (5, 7, 11)], (5, 7, 11))
    assert found is not None
    assert evaluate(found, 64) == pytest.approx(64 * 36 / (64 * 36 - 1), rel=1e-9)


expressions = st.recursive(
    st.integers(-9, 9) | st.just("B"), lambda e: st.tuples(st.sampled_from("+-*%"), e, e).map(list), max_leaves=8
)


@given(expressions, st.integers(1, 50))
def test_expressions_mean_what_python_means(raw: Any, batch: int):
    def expected(part: Any) -> int:
        if not isinstance(part, list):
            return batch if part == "B" else part
        a, b = expected(part[1]), expected(part[2])
        return {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "%": lambda: a % b}[part[0]]()

    try:
        value = expected(raw)
    except ZeroDivisionError:
        with pytest.raises(PlanInvalidError):
            evaluate(read_expression(raw), batch)
        return
    assert evaluate(read_expression(raw), batch) == value


def test_a_length_is_no_float_and_not_below_zero():
    for expression in (("/", "B", 2), ("-", 1, "B")):
        with pytest.raises(PlanInvalidError):
            size_of(expression, 4)
    assert size_of(("//", "B", 3), 10) == 3


def test_references_are_numbers_that_show_as_such():
    assert repr(Ref(5)) == "%5"
