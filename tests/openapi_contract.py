"""An OpenAPI document held against what is really sent and answered, closed to fields that it does not name."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from tornado.web import RequestHandler


class Contract:
    """What a document says about requests and answers; `seen` is what was held against it."""

    def __init__(self, document: dict[str, Any]) -> None:
        OpenAPIV31SpecValidator(document).validate()
        self.document = document
        self.seen: set[tuple[str, str, int]] = set()
        self._components = copy.deepcopy(document["components"])
        for schema in self._components["schemas"].values():
            if "properties" in schema:
                schema.setdefault("additionalProperties", False)

    def operations(self) -> set[tuple[str, str]]:
        """Method and path of each operation."""
        return {(method.upper(), path) for path, told in self.document["paths"].items() for method in told}

    def check(self, method: str, target: str, status: int, media: str, body: bytes, sent: Any = None) -> None:
        """Hold one exchange against the document: `sent` is the JSON of a request that was taken."""
        path, _, query = target.partition("?")
        template = next(one for one in self.document["paths"] if re.fullmatch(_pattern(one), path))
        operation = self.document["paths"][template][method.lower()]
        names = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"}
        assert status >= 400 or {part.partition("=")[0] for part in query.split("&") if part} <= names, target
        if sent is not None and status < 400:
            self._valid(operation["requestBody"]["content"]["application/json"]["schema"], sent)
        answered = operation["responses"].get(str(status))
        assert answered is not None, f"{method} {template} answers {status}, and the document does not say so"
        contents = answered.get("content", {})
        media = media.partition(";")[0]
        if body or contents:
            assert media in contents or method == "HEAD", f"{method} {template} answers {status} with {media}"
        if media == "application/json" and contents.get(media):
            self._valid(contents[media]["schema"], json.loads(body))
        self.seen.add((method, template, status))

    def _valid(self, schema: dict[str, Any], value: Any) -> None:
        Draft202012Validator({**schema, "components": self._components}).validate(value)

    def component(self, name: str, value: Any) -> None:
        """Hold a value against one of the schemas."""
        self._valid({"$ref": f"#/components/schemas/{name}"}, value)


def routes(rules: Iterable[tuple[str, type[RequestHandler]]], below: str) -> Iterator[tuple[str, str]]:
    """Method and path, with `{}` for its parts, of each route of a door table below a path."""
    for pattern, handler in rules:
        path = re.sub(r"\([^()]*\)", "{}", pattern.removesuffix("/?"))
        if path.startswith(below):
            for method in RequestHandler.SUPPORTED_METHODS:
                own = getattr(handler, method.lower()) is not RequestHandler._unimplemented_method
                if own and method != "OPTIONS":
                    yield method, path


def nameless(operations: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Operations with `{}` for the parts of their paths."""
    return {(method, re.sub(r"\{[^}]*\}", "{}", path)) for method, path in operations}


def _pattern(template: str) -> str:
    return re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(template))
