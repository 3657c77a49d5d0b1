"""A plan's values and what each is computed from: as a graph, and as a picture of it in SVG, layer by layer.

Every operation stands below all that it takes; inputs stand right above the first operation that takes them. Within a
layer what belongs together stands together (barycentres: Sugiyama, Tagawa and Toda, IEEE Trans. SMC 11, 1981).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from grid_jupyter.plans.document import Document, references

MAX_BOXES = 250
"""A picture of more would be read by nobody."""
_CHAR, _HEIGHT, _PAD, _GAP, _LAYER = 7, 20, 8, 10, 44
"""Pixels: of a letter, of a box, beside its text, between boxes, from layer to layer."""
_SWEEPS = 4
_COLOURS = {
    "param": "#cfe3ff",
    "buffer": "#e3e3ee",
    "state": "#e3e3ee",
    "x": "#d3f0d3",
    "y": "#d3f0d3",
    "arg": "#d3f0d3",
    "loss": "#ffd9c9",
    "metric": "#ffd9c9",
    "output": "#ffd9c9",
    "result": "#ffd9c9",
}
"""Of the roles of inputs and outputs; operations are white, other inputs grey."""


@dataclass(frozen=True)
class Graph:
    """Values as boxes (number, label), and what is computed from what as arrows (from, to)."""

    boxes: tuple[tuple[int, str], ...]
    arrows: tuple[tuple[int, int], ...]

    def _repr_svg_(self) -> str | None:
        return svg(self) or None


def graph(document: Document) -> Graph:
    """The plan's values and what each is computed from; a node with several results is drawn by its first."""
    boxes = [(number, f"{one.role} {one.name}") for number, one in enumerate(document.inputs)]
    first = {number: number for number, _ in boxes}
    arrows: list[tuple[int, int]] = []
    number = len(boxes)
    for node in document.nodes:
        boxes.append((number, node.operation))
        first.update((number + k, number) for k in range(len(node.results)))
        arrows.extend((first[source], number) for source in sorted(set(references(node.arguments))))
        number += len(node.results)
    for k, output in enumerate(document.outputs):
        boxes.append((number + k, f"{output.role} {output.name}"))
        arrows.append((first[output.value], number + k))
    return Graph(tuple(boxes), tuple(arrows))


def svg(graph: Graph) -> str:
    """The picture; empty where the graph has more than MAX_BOXES boxes."""
    if not 0 < len(graph.boxes) <= MAX_BOXES:
        return ""
    labels = dict(graph.boxes)
    layers = _ordered(_layers(graph), graph.arrows)
    widths = {box: len(label) * _CHAR + 2 * _PAD for box, label in labels.items()}
    lengths = [sum(widths[box] + _GAP for box in layer) for layer in layers]
    width = max(lengths) + _GAP
    places: dict[int, tuple[float, float]] = {}
    for depth, (layer, length) in enumerate(zip(layers, lengths, strict=True)):
        left = (width - length + _GAP) / 2
        for box in layer:
            places[box] = left + widths[box] / 2, depth * _LAYER + _GAP + _HEIGHT / 2
            left += widths[box] + _GAP
    height = (len(layers) - 1) * _LAYER + _HEIGHT + 2 * _GAP
    drawn = [_arrow(places[source], places[target]) for source, target in graph.arrows]
    drawn += [_box(places[box], widths[box], label) for box, label in labels.items()]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
        f'viewBox="0 0 {width:.0f} {height}" font-family="monospace" font-size="11">'
        '<defs><marker id="tip" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0,0L6,3L0,6z" fill="#888"/></marker></defs>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(drawn)}</svg>'
    )


def _layers(graph: Graph) -> list[list[int]]:
    """Boxes by how far down they stand."""
    takers: dict[int, list[int]] = {box: [] for box, _ in graph.boxes}
    sources: dict[int, list[int]] = {box: [] for box, _ in graph.boxes}
    for source, target in graph.arrows:
        takers[source].append(target)
        sources[target].append(source)
    depth: dict[int, int] = {}
    for box, _ in graph.boxes:  # arrows lead from earlier boxes to later ones
        depth[box] = max((depth[source] + 1 for source in sources[box]), default=0)
    for box, _ in graph.boxes:
        if not sources[box] and takers[box]:
            depth[box] = min(depth[taker] for taker in takers[box]) - 1
    layers: list[list[int]] = [[] for _ in range(max(depth.values()) + 1)]
    for box, _ in graph.boxes:
        layers[depth[box]].append(box)
    return [layer for layer in layers if layer]


def _ordered(layers: list[list[int]], arrows: Sequence[tuple[int, int]]) -> list[list[int]]:
    near: dict[int, list[int]] = {}
    for source, target in arrows:
        near.setdefault(source, []).append(target)
        near.setdefault(target, []).append(source)
    at = {box: k / len(layer) for layer in layers for k, box in enumerate(layer)}
    for sweep in range(_SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            layer.sort(key=lambda box: _mean(at, near.get(box, [box])))
            at.update({box: (k + 0.5) / len(layer) for k, box in enumerate(layer)})
    return layers


def _mean(at: Mapping[int, float], boxes: Sequence[int]) -> float:
    return sum(at[box] for box in boxes) / len(boxes)


def _arrow(source: tuple[float, float], target: tuple[float, float]) -> str:
    (x, y), (to_x, to_y) = source, target
    y, to_y = y + _HEIGHT / 2, to_y - _HEIGHT / 2
    middle = (y + to_y) / 2
    return (
        f'<path d="M{x:.0f},{y:.0f}C{x:.0f},{middle:.0f} {to_x:.0f},{middle:.0f} {to_x:.0f},{to_y:.0f}" fill="none" '
        'stroke="#888" marker-end="url(#tip)"/>'
    )


def _box(place: tuple[float, float], width: int, label: str) -> str:
    x, y = place
    role, _, name = label.partition(" ")
    colour = _COLOURS.get(role, "#eeeeee") if name else "#ffffff"
    return (
        f'<rect x="{x - width / 2:.0f}" y="{y - _HEIGHT / 2:.0f}" width="{width}" height="{_HEIGHT}" rx="4" '
        f'fill="{colour}" stroke="#555"/><text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle">{escape(label)}</text>'
    )
