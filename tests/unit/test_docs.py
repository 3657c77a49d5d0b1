"""The documentation is complete and true: what the code has is in docs/, and what docs/ names is in the code."""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from tornado.web import RequestHandler

import grid_jupyter
from grid_jupyter.cli.main import build_parser
from grid_jupyter.errors import BY_CODE
from grid_jupyter.ops.allowed import ALLOWED
from grid_jupyter.ops.guards import GUARDS
from grid_jupyter.plans.check import check
from grid_jupyter.plans.operations import OPERATIONS
from grid_jupyter.plans.reader import read_plan
from grid_jupyter.push.bus import EVENTS
from grid_jupyter.server.gauge_doors import GAUGE_RULES, OWNER_GAUGE_RULES
from grid_jupyter.server.network_door import NETWORK_RULES
from grid_jupyter.server.node_door import NODE_RULES
from grid_jupyter.server.owner_door import OWNER_RULES
from grid_jupyter.server.owner_doors import OWNER_NODE_RULES
from grid_jupyter.server.owner_trainings import OWNER_TRAINING_RULES
from grid_jupyter.server.panel_api import GRID_API_RULES
from grid_jupyter.server.public_door import PUBLIC_RULES
from grid_jupyter.server.push_doors import OWNER_PUSH_RULES
from grid_jupyter.server.request_doors import OWNER_REQUEST_RULES
from grid_jupyter.wire import commands, frames, limits, messages, network, owner, push, requests

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # mypy's, which is in the same extra

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def page(name: str) -> str:
    return (DOCS / name).read_text()


def section(text: str, heading: str) -> str:
    """From a heading to the next one of its level or a higher one."""
    level = len(heading) - len(heading.lstrip("#"))
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{level}}} |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"there is no heading {heading!r}"
    return found[1]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def rows(text: str) -> dict[str, str]:
    """Rows of tables by their first cell, without its backticks; the heads of tables are left out."""
    lines = without_code(text).splitlines()
    heads = {number - 1 for number, line in enumerate(lines) if line.startswith("|--")}
    found = {}
    for number, line in enumerate(lines):
        if line.startswith("| ") and number not in heads:
            first, _, rest = line[1:].partition("|")
            found[first.strip().strip("`")] = rest
    return found


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


# ------------------------------------------------------------------ routes


def routes(rules: Iterable[tuple[str, type[RequestHandler]]]) -> Iterator[str]:
    """`GET /users/<>` for each method of each rule."""
    for pattern, handler in rules:
        path = pattern.removesuffix("/?")
        choice = re.search(r"\((\w+(?:\|\w+)+)\)", path)
        for word in choice[1].split("|") if choice else [""]:
            chosen = path.replace(choice[0], word) if choice else path
            shown = re.sub(r"\([^()]*\)", "<>", chosen)
            for method in RequestHandler.SUPPORTED_METHODS:
                if getattr(handler, method.lower()) is not RequestHandler._unimplemented_method:
                    yield f"{method} {shown}"


def documented_routes() -> set[str]:
    text = page("protocol.md").replace("<base_url>/", "/jupyter/")
    found = re.findall(r"`((?:GET|HEAD|POST|PUT|PATCH|DELETE) /[^\s`?]*)", text)
    return {re.sub(r"<[^>]*>", "<>", route) for route in found}


def test_every_route_is_documented_and_every_documented_route_exists():
    existing = {
        *routes(NODE_RULES),
        *routes(NETWORK_RULES),
        *routes(OWNER_RULES),
        *routes(OWNER_NODE_RULES),
        *routes(OWNER_REQUEST_RULES),
        *routes(OWNER_PUSH_RULES),
        *routes(OWNER_TRAINING_RULES),
        *routes(OWNER_GAUGE_RULES),
        *routes(GAUGE_RULES),
        *routes((f"/jupyter/{path}", handler) for path, handler in [*GRID_API_RULES, *PUBLIC_RULES]),
    }
    assert documented_routes() == {route for route in existing if not route.startswith("OPTIONS")}


def test_the_routes_of_node_network_and_owner_are_in_their_own_sections():
    text, account = page("protocol.md"), section(page("protocol.md"), "## Accounts on Node and Network")
    for heading, rules in {
        "## HTTP of the Node": NODE_RULES,
        "## HTTP of the Network": NETWORK_RULES,
        "## The owner's door": [
            *OWNER_RULES,
            *OWNER_NODE_RULES,
            *OWNER_REQUEST_RULES,
            *OWNER_PUSH_RULES,
            *OWNER_TRAINING_RULES,
            *OWNER_GAUGE_RULES,
        ],
    }.items():
        shown = {re.sub(r"<[^>]*>", "<>", first) for first in {**rows(section(text, heading)), **rows(account)}}
        assert set(routes(rules)) <= shown


# ------------------------------------------------------------------ plans


def test_every_operation_of_a_plan_is_documented_with_its_arguments():
    shown = rows(section(page("plans.md"), "## Operations"))
    for name, operation in OPERATIONS.items():
        signature = ", ".join(f"{p.name}: {p.kind}{'?' * p.optional}" for p in operation.parameters)
        assert shown[name].partition(" | ")[0].strip() == signature


def test_the_documented_plan_is_a_plan():
    (example,) = blocks(page("plans.md"), "json")
    raw = json.dumps(json.loads(example), sort_keys=True, separators=(",", ":")).encode()
    assert check(read_plan(raw), batch=8).work


# ------------------------------------------------------------------ messages


def check_fields(kind: type[msgspec.Struct], shown: dict[str, str], name: str) -> None:
    assert name in shown, f"{name} is not documented"
    named = set(re.findall(r"`(\w+)`", shown[name].partition("|")[0]))
    missing = set(kind.__struct_fields__) - named
    assert not missing, f"the fields {missing} of {name} are not documented"


def tagged(*unions: Any) -> dict[str, type[msgspec.Struct]]:
    kinds = {kind for union in unions for kind in get_args(union)}
    return {str(kind.__struct_config__.tag): kind for kind in kinds}


def untagged(module: Any) -> list[type[msgspec.Struct]]:
    return [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, messages.Message)
        and kind is not messages.Message
        and kind.__module__ == module.__name__
        and kind.__struct_config__.tag is None
    ]


def test_every_message_of_a_session_is_documented_with_its_fields():
    shown = rows(section(page("protocol.md"), "## The session"))
    for tag, kind in tagged(messages.Request, messages.Reply).items():
        check_fields(kind, shown, tag)


def test_every_part_and_body_of_messages_is_documented_with_its_fields():
    shown = rows(page("protocol.md"))
    for kind in [*untagged(messages), *untagged(network), *untagged(requests), *untagged(owner)]:
        check_fields(kind, shown, kind.__name__)


def test_every_message_of_the_link_is_documented_with_its_fields():
    shown = rows(section(page("protocol.md"), "## The link between Node and Network"))
    for tag, kind in tagged(network.FromNetwork, network.FromNode).items():
        check_fields(kind, shown, tag)


def test_every_command_is_documented():
    text = section(page("protocol.md"), "## Operations")
    for name, code in vars(commands).items():
        if isinstance(code, int) and code < 0:
            assert re.search(rf"`\[{code}(, .*)?\]` \| {name}: ", text), f"{name} is not documented as {code}"


def test_the_example_frames_are_what_they_are_said_to_be():
    lines = [line for block in blocks(page("protocol.md"), "frame") for line in block.splitlines() if line]
    assert lines
    for shown, told in zip(lines[::2], lines[1::2], strict=True):
        cut = frames.unpack(bytes.fromhex(shown))
        assert msgspec.msgpack.decode(cut.header) == msgspec.json.decode(told)
        if cut.kind == frames.REQUEST:
            frames.decode(cut.header, messages.request_decoder)
        elif cut.kind == frames.REPLY:
            frames.decode(cut.header, messages.reply_decoder)


def test_every_limit_is_documented_with_its_value():
    shown = rows(section(page("protocol.md"), "## Limits"))
    values = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert {name: shown[name].partition("|")[0].strip() for name in values} == {n: f"{v:,}" for n, v in values.items()}


# ------------------------------------------------------------------ errors, operations


def test_every_error_code_is_documented_with_its_status():
    shown = rows(section(page("protocol.md"), "## Errors"))
    statuses = {code: int(shown[code].partition("|")[0]) for code in shown if code in BY_CODE}
    assert statuses == {code: kind.status for code, kind in BY_CODE.items()}


def test_the_table_of_operations_is_the_allow_list():
    shown = rows(section(page("operations.md"), "## The list"))
    named = {
        f"aten.{family}.{overload.strip()}"
        for family, overloads in shown.items()
        for overload in overloads.strip(" |").split(",")
    }
    assert named == ALLOWED
    families = {name.split(".")[1] for name in ALLOWED}
    assert f"{len(ALLOWED)} operations in {len(families)} families" in page("operations.md")


def test_every_guard_is_documented():
    guards = section(page("operations.md"), "## Guards")
    assert set(re.findall(r"`(aten\.[\w.]+)`", guards)) == set(GUARDS)


# ------------------------------------------------------------------ Python, command line, configuration


def test_every_public_name_is_documented():
    headings = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^### .*$", page("api.md"), re.MULTILINE))))
    assert set(grid_jupyter._PUBLIC) <= headings | set(rows(section(page("api.md"), "## Errors")))


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (chosen,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(chosen.choices)


def test_every_command_and_option_is_documented_and_none_that_does_not_exist():
    text = section(page("api.md"), "## Command line")
    found = commands_of(build_parser())
    assert set(re.findall(r"^### `jupyter grid (\w+)`$", text, re.MULTILINE)) == set(found)
    for name, parser in found.items():
        here = section(text, f"### `jupyter grid {name}`")
        options = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
        assert set(re.findall(r"`(--[\w-]+)", here)) == options - {"--help"}, name


def test_every_trait_of_the_extension_is_documented():
    from grid_jupyter.server.extension import GridExtension

    shown = rows(section(page("api.md"), "## Configuration of the Jupyter extension"))
    traits = {name for name, trait in GridExtension.class_own_traits(config=True).items()}
    assert traits == set(shown)


def test_every_dependency_is_documented_and_no_other():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *(one for extra in extras.values() for one in extra)]
    names = {re.split(r"[\[<>=;]", one)[0].strip() for one in required} - {project["name"]}
    text = page("dependencies.md")
    parts = ["## Always", *(f"## `[{extra}]`" for extra in extras)]
    shown = {name for part in parts for name in rows(section(text, part))}
    assert shown == names


# ------------------------------------------------------------------ the pages themselves


def slugs(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(path: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text())):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        where = (path.parent / file).resolve() if file else path
        assert where.exists(), f"{target} is not there"
        if anchor:
            assert anchor in slugs(where), f"{target} has no such heading"


def test_every_module_that_is_named_exists():
    files = [str(path.relative_to(ROOT)) for path in ROOT.glob("*/**/*.py") if ".venv" not in path.parts]
    for path in PAGES:
        for named in re.findall(r"`([\w/]+\.py)`", path.read_text()):
            ours = named != "jupyter_server_config.py"
            assert not ours or any(f"/{file}".endswith(f"/{named}") for file in files), f"{path.name} names {named}"


@pytest.mark.parametrize("path", [ROOT / "README.md", DOCS / "api.md"], ids=lambda path: path.name)
def test_examples_are_python(path: Path):
    found = blocks(path.read_text(), "python")
    assert found
    for block in found:
        ast.parse(block)


def test_every_test_that_the_security_page_names_exists():
    text = page("security.md")
    files = re.findall(r"`(tests/[\w/]+\.py)`", text)
    assert files
    there = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert [file for file in files if not (ROOT / file).is_file()] == []
    assert [name for name in re.findall(r"`(test_\w+)`", text) if f"def {name}(" not in there] == []


def test_every_decision_is_in_the_list():
    listed = set(re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", page("decisions/README.md")))
    assert listed == {path.name for path in (DOCS / "decisions").glob("[0-9]*.md")}


def test_every_event_and_notice_is_documented():
    text = page("push.md")
    assert set(rows(section(text, "## Events"))) == EVENTS
    assert set(rows(section(text, "## Notices"))) == set(get_args(push.NoticeType))


def test_the_changelog_has_a_place_for_what_comes_next():
    assert re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == "Unreleased"
