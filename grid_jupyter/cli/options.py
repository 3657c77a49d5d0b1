"""How the options of `jupyter grid` are declared: what its sub-commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from grid_jupyter.cli import values

Commands = argparse._SubParsersAction  # the type that add_subparsers returns has no public name


def command(
    commands: Commands[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    text: str,
    examples: str,
) -> argparse.ArgumentParser:
    """One sub-command, with help that has examples."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}. {text}",
        epilog=f"examples:\n{examples}",
        formatter_class=_Help,
    )
    parser.set_defaults(run=run)
    return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    """Descriptions are wrapped, examples are not."""

    def add_text(self, text: str | None) -> None:
        if text is not None and text is not argparse.SUPPRESS and not text.startswith("examples:"):
            text = self._fill(text)
        super().add_text(text)

    def _fill(self, text: str) -> str:
        return argparse.HelpFormatter._fill_text(self, text, self._width, "")


def add_serving(parser: argparse.ArgumentParser, *, port: int, state: str) -> None:
    """Where a process listens, and where its state is."""
    where = parser.add_argument_group("where it listens")
    where.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    where.add_argument(
        "--port", type=values.port, default=port, help=f"port; if it is taken, the next free one; 0: any ({port})"
    )
    where.add_argument("--address", metavar="URL", help="what others are told, if host and port are not what they see")
    where.add_argument("--certfile", type=Path, metavar="PEM", help="certificate (with its chain) for TLS")
    where.add_argument("--keyfile", type=Path, metavar="PEM", help="its private key, if it is in a file of its own")
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help=f"private directory of its data ({state} in the data directory)"
    )
    parser.add_argument(
        "--heartbeat", type=values.duration, default=5.0, metavar="TIME", help="how often Nodes say that they live (5s)"
    )
    parser.add_argument(
        "--supervised", action="store_true", help="end when standard input ends, and with it the parent process"
    )
    parser.add_argument(
        "--log-format", choices=("text", "json"), default="text",
        help="how standard error is written: for people, or one JSON object a line (text)",
    )  # fmt: skip
    add_json(parser, "print name, address, socket as JSON when it is ready")
    add_verbose(parser)


def add_node_target(parser: argparse.ArgumentParser) -> None:
    """Which Node is meant."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--node", metavar="NAME", help="the Node that is meant; needed where several run")
    which.add_argument("--state", type=Path, metavar="DIR", help="the one with this state directory is meant")
    parser.set_defaults(network=False)


def add_target(parser: argparse.ArgumentParser) -> None:
    """Which Node or Network is meant."""
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--node", metavar="NAME", help="the Node that is meant; needed where several run")
    target.add_argument("--network", action="store_true", help="the Network is meant")
    target.add_argument("--state", type=Path, metavar="DIR", help="the one with this state directory is meant")


def add_json(parser: argparse.ArgumentParser, text: str) -> None:
    """`--json`: the answer for a program."""
    parser.add_argument("--json", action="store_true", help=text)


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """`--verbose`: a log of requests."""
    parser.add_argument("--verbose", action="store_true", help="log every request (never a query, header or body)")
