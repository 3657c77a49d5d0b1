"""`jupyter grid`: the whole command line, and what becomes of its errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from grid_jupyter import __version__
from grid_jupyter.cli.owner_options import (
    add_backup,
    add_invite,
    add_metrics,
    add_push,
    add_reset,
    add_server,
    add_sign_off,
    add_status,
    add_token,
    add_trainings,
)
from grid_jupyter.cli.run_options import add_demo, add_device, add_network, add_node, add_up
from grid_jupyter.errors import GridError
from grid_jupyter.server.logs import begin_logging


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed with a reason on stderr, 2 misused, 130 interrupted."""
    options = build_parser().parse_args(arguments)
    begin_logging(getattr(options, "log_format", "text"), verbose=getattr(options, "verbose", False))
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except GridError as error:
        print(f"jupyter grid: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("grid_jupyter"):
            raise
        print(f"jupyter grid: {error.name} is not installed; pip install 'grid-jupyter[lab]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output had enough, as in `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="jupyter grid",
        description="Private data science where the data stays: run Nodes and Networks, and let people in.",
        epilog="State is kept in $GRID_JUPYTER_HOME, or else in the user's data directory; see 'jupyter grid status'.",
    )
    parser.add_argument("--version", action="version", version=f"grid_jupyter {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_up(commands)
    add_demo(commands)
    add_node(commands)
    add_network(commands)
    add_device(commands)
    add_invite(commands)
    add_token(commands)
    add_sign_off(commands)
    add_push(commands)
    add_status(commands)
    add_metrics(commands)
    add_server(commands)
    add_backup(commands)
    add_trainings(commands)
    add_reset(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
