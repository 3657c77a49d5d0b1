"""How an OpenAPI 3.1 document is made: paths and methods from the doors, schemas from the messages, words from a table.

What is not in the doors is not in the document, and what is in them must be in the table.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec
from tornado.web import RequestHandler

from grid_jupyter import __version__

JSON = "application/json"
TEXT = "text/plain"
BYTES = "application/octet-stream"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_REF = "#/components/schemas/{name}"
_PATTERNS = {"[0-9]{1,18}": {"type": "integer", "minimum": 0}}
"""What a part of a path is, where that is not a text of the pattern."""

Rules = Iterable[tuple[str, type[RequestHandler]]]


@dataclass(frozen=True)
class Named:
    """A part of a query, or a header. `kind` is a type of which msgspec makes a schema."""

    name: str
    told: str
    kind: Any = str
    required: bool = False


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What a method of a door takes and answers. `bodies` and `answers` are by media type: a type of which msgspec
    makes a schema, several types of which it is one, or None for bytes."""

    told: str
    query: tuple[Named, ...] = ()
    headers: tuple[Named, ...] = ()
    bodies: Mapping[str, Any] = field(default_factory=dict)
    answers: Mapping[str, Any] = field(default_factory=dict)
    sent: tuple[Named, ...] = ()
    """Headers of the answer."""
    status: int = 200
    optional: bool = False
    """Whether it may come without a body."""
    refused: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Some routes, and what is said about all of them."""

    title: str
    told: str
    rules: Rules
    operations: Mapping[tuple[str, str], Operation]
    """By method and path."""
    failed: Any
    """What a refusal is told as."""
    schemes: Mapping[str, Mapping[str, str]]
    """How a caller shows who they are: OpenAPI's security schemes."""
    is_open: Callable[[type[RequestHandler], str], bool]
    """Whether a method of a door answers without that."""
    beside: Collection[Any] = ()
    """Messages that no route has for a body, such as those of a WebSocket."""
    replaced: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    """By schema and property: the type that a property has, where the message says less about it."""


def document(surface: Surface) -> dict[str, Any]:
    """The document. Raises KeyError for a route that the table has not, and for one that only the table has."""
    given = _kinds(surface)
    components, schemas = _schemas(given, surface.replaced)
    paths: dict[str, dict[str, Any]] = {}
    known = dict(surface.operations)
    for pattern, handler in surface.rules:
        for method in methods(handler):
            path, parts = path_of(pattern, handler, method)
            operation = known.pop((method, path))
            told = _operation(operation, parts, schemas, surface, method)
            if surface.is_open(handler, method):
                told["security"] = []
            paths.setdefault(path, {})[method.lower()] = told
    if known:
        raise KeyError(f"no door has {sorted(known)}")
    made = {
        "openapi": "3.1.0",
        "info": {"title": surface.title, "version": __version__, "description": surface.told,
                 "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "security": [{name: []} for name in surface.schemes],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {k: dict(v) for k, v in surface.schemes.items()}},
    }  # fmt: skip
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(made))  # defaults that are tuples, as lists
    return plain


def methods(handler: type[RequestHandler]) -> list[str]:
    """The HTTP methods that a door answers."""
    return [name for name in METHODS if getattr(handler, name.lower()) is not RequestHandler._unimplemented_method]


def path_of(pattern: str, handler: type[RequestHandler], method: str) -> tuple[str, list[dict[str, Any]]]:
    """`/requests/{request}/{verb}` of a rule's pattern, and what its parts are; they are called as in the code."""
    names = list(inspect.signature(getattr(handler, method.lower())).parameters)[1:]
    parts: list[dict[str, Any]] = []

    def named(found: re.Match[str]) -> str:
        name, inner = names[len(parts)], found[1]
        words = inner.split("|")
        plain: dict[str, Any] = {"type": "string", "pattern": f"^{inner}$"}
        schema = {"type": "string", "enum": words} if len(words) > 1 else _PATTERNS.get(inner, plain)
        parts.append({"name": name, "in": "path", "required": True, "schema": schema})
        return f"{{{name}}}"

    path = re.sub(r"\(([^()]*)\)", named, pattern.removesuffix("/?"))
    return (path if path.startswith("/") else f"/{path}"), parts


def _kinds(surface: Surface) -> list[Any]:
    """All types of which schemas are needed."""
    found: list[Any] = [surface.failed, *surface.beside, *surface.replaced.values()]
    for one in surface.operations.values():
        found += [part.kind for part in (*one.query, *one.headers, *one.sent)]
        found += [kind for bodies in (one.bodies, one.answers) for told in bodies.values() for kind in _each(told)]
    return found


def _each(told: Any) -> tuple[Any, ...]:
    return told if isinstance(told, tuple) else () if told is None else (told,)


def _schemas(kinds: list[Any], replaced: Mapping[tuple[str, str], Any]) -> tuple[dict[str, Any], dict[Any, Any]]:
    """Components, and the schema of each type."""
    made, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    schemas = dict(zip(kinds, made, strict=True))
    for (name, key), kind in replaced.items():
        components[name]["properties"][key] = schemas[kind]
    for component in components.values():
        if "description" in component:
            component["description"] = inspect.cleandoc(component["description"])
    return components, schemas


def _operation(
    one: Operation, parts: list[dict[str, Any]], schemas: Mapping[Any, Any], surface: Surface, method: str
) -> dict[str, Any]:
    told: dict[str, Any] = {"summary": one.told}
    parameters = [
        *parts,
        *(
            {"name": part.name, "in": place, "description": part.told, "required": part.required,
             "schema": schemas[part.kind]}
            for place, named in (("query", one.query), ("header", one.headers))
            for part in named
        ),
    ]  # fmt: skip
    if parameters:
        told["parameters"] = parameters
    if one.bodies:
        told["requestBody"] = {"required": not one.optional, "content": _content(one.bodies, schemas)}
    answered: dict[str, Any] = {"description": HTTPStatus(one.status).phrase}
    if one.answers:
        answered["content"] = _content(one.answers, schemas)
    if one.sent:
        answered["headers"] = {
            part.name: {"description": part.told, "schema": schemas[part.kind]} for part in one.sent
        }  # fmt: skip
    failed = {} if method == "HEAD" else {"content": _content({JSON: surface.failed}, schemas)}
    told["responses"] = {
        str(one.status): answered,
        **{str(status): {"description": HTTPStatus(status).phrase, **failed} for status in one.refused},
        "default": {"description": "Refused, or failed", **failed},
    }
    return told


def _content(bodies: Mapping[str, Any], schemas: Mapping[Any, Any]) -> dict[str, Any]:
    return {media: {} if kind is None else {"schema": _schema(kind, schemas)} for media, kind in bodies.items()}


def _schema(kind: Any, schemas: Mapping[Any, Any]) -> Any:
    return {"anyOf": [schemas[one] for one in kind]} if isinstance(kind, tuple) else schemas[kind]
