"""`jupyter grid`: its sub-commands and their options. What a command needs is imported when it runs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from grid_jupyter import __version__
from grid_jupyter.cli import values
from grid_jupyter.errors import GridError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed with a reason on stderr, 2 misused, 130 interrupted."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if getattr(options, "verbose", False) else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for noisy in ("asyncio", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
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


# ------------------------------------------------------------------ the commands


def _node(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.serve import node

    return node(options)


def _network(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.serve import network

    return network(options)


def _device(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.device import device

    return device(options)


def _up(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.up import up

    return up(options)


def _demo(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.demo import demo

    return demo(options)


def _token(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.owner import token

    return token(options)


def _invite(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.owner import invite

    return invite(options)


def _status(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.owner import status

    return status(options)


def _requests(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.sign_off import requests

    return requests(options)


def _approve(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.sign_off import approve

    return approve(options)


def _deny(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.sign_off import deny

    return deny(options)


def _audit(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.sign_off import audit

    return audit(options)


def _reset(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.reset import reset

    return reset(options)


# ------------------------------------------------------------------ their options


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="jupyter grid",
        description="Private data science where the data stays: run Nodes and Networks, and let people in.",
        epilog="State is kept in $GRID_JUPYTER_HOME, or else in the user's data directory; see 'jupyter grid status'.",
    )
    parser.add_argument("--version", action="version", version=f"grid_jupyter {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_up(commands)
    _add_demo(commands)
    _add_node(commands)
    _add_network(commands)
    _add_device(commands)
    _add_invite(commands)
    _add_token(commands)
    _add_sign_off(commands)
    _add_status(commands)
    _add_reset(commands)
    return parser


_Commands = argparse._SubParsersAction  # the type that add_subparsers returns has no public name


def _command(
    commands: _Commands[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    text: str,
    examples: str,
) -> argparse.ArgumentParser:
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


def _add_up(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "up",
        _up,
        summary="start a whole grid on this machine: a Network and the Nodes Bob, Alice, Bill and James",
        text=(
            "Makes the users Bob, Ana and Alice on each Node and stores their credentials for you, so that "
            "'import grid_jupyter as sy; sy.local()' finds everything. It is a grid to try things: guests may "
            "compute, and tags are public. Ctrl-C ends all of it; what was published is there again next time."
        ),
        examples=(
            "  jupyter grid up                    # ports 5000 and 3000 to 3003, or the next free ones\n"
            '  jupyter grid up --json             # first line: {"network": URL, "nodes": {NAME: URL}}\n'
            "  jupyter grid up --lab              # and JupyterLab; prints one URL"
        ),
    )
    parser.add_argument("--lab", action="store_true", help="start JupyterLab too; its notebook server is the Node Bob")
    parser.add_argument("--lab-port", type=values.port, default=8888, metavar="PORT", help="port of JupyterLab (8888)")
    parser.add_argument(
        "--network-port", type=values.port, default=5000, metavar="PORT", help="port of the Network (5000)"
    )
    parser.add_argument(
        "--node-port",
        type=values.port,
        default=3000,
        metavar="PORT",
        help="port of the first Node; the others follow (3000)",
    )
    _add_json(parser, "print the addresses as JSON, on the first line")
    _add_verbose(parser)


def _add_demo(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "demo",
        _demo,
        summary="see the main job done in a minute or two, without a browser",
        text=(
            "Starts a grid that is forgotten afterwards. Four owners publish parts of a set of handwritten digits; "
            "a guest finds them, computes, and is refused every value; Ana computes statistics and trains a model "
            "over the four Nodes without downloading a row."
        ),
        examples="  jupyter grid demo\n  jupyter grid demo --output accuracy.png --json",
    )
    parser.add_argument("--output", type=Path, metavar="PNG", help="where the plot of accuracy by round goes")
    _add_json(parser, "print the results as JSON, on the last line")
    _add_verbose(parser)


def _add_node(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "node",
        _node,
        summary="run one Node: a data owner's server",
        text=(
            "The first start prints a one-time owner invite. Beyond this machine give a certificate: without one, "
            "credentials and values cross the network unencrypted."
        ),
        examples=(
            "  jupyter grid node --name ward7\n"
            "  jupyter grid node --name ward7 --invite 'https://grid.example.org:5000/#gji1_…'\n"
            "  jupyter grid node --name ward7 --host 0.0.0.0 --address https://ward7.example.org:3000 \\\n"
            "      --certfile cert.pem --keyfile key.pem"
        ),
    )
    parser.add_argument("--name", type=values.node_name, required=True, help="the Node's name in the grid")
    _add_serving(parser, port=3000, state="nodes/NAME")
    parser.add_argument("--network", metavar="URL", help="the Network to join; an invite link names it as well")
    parser.add_argument(
        "--invite",
        metavar="LINK",
        default=os.environ.get("GRID_JUPYTER_INVITE"),
        help="one-time invite for the first join; other users of this machine cannot read it from "
        "$GRID_JUPYTER_INVITE, as they can from a command line",
    )
    parser.add_argument(
        "--peer",
        metavar="URL",
        action="append",
        default=[],
        help="address of a Node to which values may be moved, besides those of the Network; may be repeated",
    )
    parser.add_argument("--allow-guests", action="store_true", help="let people without a credential compute")
    parser.add_argument("--public-tags", action="store_true", help="show the tags of data sets to anyone")
    workers = parser.add_argument_group("how soon a session computes")
    workers.add_argument(
        "--warm", action="store_true", help="load torch at the start, not when the first client connects"
    )
    workers.add_argument(
        "--spare-workers", type=values.whole, default=2, metavar="N", help="Workers ready for the next sessions (2)"
    )
    where = parser.add_argument_group("where Workers run, and how they are kept apart")
    where.add_argument(
        "--workers", type=values.workers, default="local", metavar="WHERE",
        help="local, or a Dask scheduler: dask://HOST:8786 or tls://HOST:8786 (local)",
    )  # fmt: skip
    where.add_argument(
        "--workers-link", type=values.link, metavar="HOST[:PORT]",
        help="where Dask workers reach this Node, if not at the address that faces the scheduler",
    )  # fmt: skip
    where.add_argument(
        "--workers-resources", type=values.resources, default=(), metavar="NAME=NUMBER,…",
        help="what one Worker takes of a Dask worker's resources, like GPU=1,MEMORY=2G",
    )  # fmt: skip
    where.add_argument(
        "--require-isolation", action="store_true", help="refuse to compute where there is no sandbox for Workers"
    )
    devices = parser.add_argument_group("what Workers compute on")
    devices.add_argument(
        "--device", type=values.device, default=("cpu",), metavar="WHAT",
        help="cpu; cuda (all GPUs), or cuda:0,cuda:1; auto: GPUs where there are any (cpu)",
    )  # fmt: skip
    devices.add_argument(
        "--device-fraction", type=values.parts, default=250, metavar="F",
        help="share of a device's memory that one Worker gets, unless a job asks for another (0.25)",
    )  # fmt: skip
    devices.add_argument(
        "--device-memory", type=values.size, default=0, metavar="SIZE",
        help="memory that Workers on cpu share in this way (each has --session-memory, and nothing is shared)",
    )  # fmt: skip
    limits = parser.add_argument_group("limits of one session")
    limits.add_argument("--session-memory", type=values.size, default=2 << 30, metavar="SIZE", help="memory (2G)")
    limits.add_argument(
        "--session-idle", type=values.duration, default=1800.0, metavar="TIME", help="rest before it ends (30m)"
    )
    limits.add_argument(
        "--session-grace", type=values.duration, default=120.0, metavar="TIME",
        help="how long it waits for a client whose connection was lost (2m)",
    )  # fmt: skip
    limits.add_argument(
        "--operation-time", type=values.duration, default=60.0, metavar="TIME", help="one operation (60s)"
    )
    limits.add_argument(
        "--session-threads", type=values.positive, metavar="N",
        help="threads of one operation (half of this machine's processors; say it for Workers elsewhere)",
    )  # fmt: skip
    limits.add_argument("--max-sessions", type=values.positive, default=16, metavar="N", help="sessions at once (16)")
    limits.add_argument("--max-upload", type=values.size, default=64 << 30, metavar="SIZE", help="one data set (64G)")
    jobs = parser.add_argument_group("jobs")
    jobs.add_argument("--max-jobs", type=values.positive, default=4, metavar="N", help="that run at once (4)")
    jobs.add_argument(
        "--job-storage", type=values.size, default=16 << 30, metavar="SIZE", help="of one user's jobs (16G)"
    )
    jobs.add_argument("--jobs-per-user", type=values.positive, default=2, metavar="N", help="of one user at once (2)")
    jobs.add_argument(
        "--job-time", type=values.duration, default=43_200.0, metavar="TIME", help="one job, or one round of it (12h)"
    )


def _add_device(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "device",
        _device,
        summary="take part in training a model that a Node hosts",
        text=(
            "The data stays here; what goes to the Node is how the model changed. Needs no torch and no account. Ends "
            "when training is over."
        ),
        examples=(
            "  jupyter grid device http://ward7.example.org:3000 --model digits --data mine.npz\n"
            "  jupyter grid device https://ward7.example.org:3000 --model digits --data mine.npz \\\n"
            "      --auth-token-file token.txt --cycles 10"
        ),
    )
    parser.add_argument("address", metavar="ADDRESS", help="the Node")
    parser.add_argument("--model", required=True, metavar="NAME", help="the model's name")
    parser.add_argument("--version", metavar="VERSION", help="its version (the newest)")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FILE",
        help="a .npz or .safetensors file with an array for each input of the plan, such as x and y; rows first",
    )  # fmt: skip
    parser.add_argument("--plan", metavar="NAME", help="the training step, where the model has several")
    parser.add_argument("--epochs", type=values.positive, default=1, metavar="N", help="over the data in a cycle (1)")
    parser.add_argument(
        "--cycles", type=values.positive, metavar="N", help="leave after so many (when training is over)"
    )
    parser.add_argument("--seed", type=values.whole, default=0, metavar="N", help="of the order of rows (0)")
    parser.add_argument("--threads", type=values.positive, default=1, metavar="N", help="that compute (1)")
    parser.add_argument("--gzip", action="store_true", help="compress reports")
    parser.add_argument("--auth-token-file", type=Path, metavar="FILE", help="the JWT that the training asks for")
    parser.add_argument("--ca-file", type=Path, metavar="PEM", help="certificates to trust, if not the system's")
    parser.add_argument(
        "--patience",
        type=values.duration,
        default=60.0,
        metavar="TIME",
        help="how long to ask a Node that is away (60s)",
    )
    _add_json(parser, "print each cycle as JSON")
    _add_verbose(parser)


def _add_network(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "network",
        _network,
        summary="run a Network: where Nodes are found",
        text="Nodes join by invite; who is connected is open to anyone, a search needs a credential.",
        examples=(
            "  jupyter grid network\n"
            "  jupyter grid network --host 0.0.0.0 --address https://grid.example.org:5000 \\\n"
            "      --certfile cert.pem --keyfile key.pem\n"
            "  jupyter grid invite --network --role Node     # while it runs: an invite for one Node"
        ),
    )
    parser.add_argument("--name", type=values.node_name, default="Network", help="the Network's name (Network)")
    _add_serving(parser, port=5000, state="network")
    parser.add_argument("--allow-guests", action="store_true", help="let people without a credential search")
    parser.add_argument(
        "--replicas", type=values.positive, default=1, metavar="N", help="how many hosts choose-model-host names (1)"
    )


def _add_serving(parser: argparse.ArgumentParser, *, port: int, state: str) -> None:
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
    _add_json(parser, "print name, address, socket as JSON when it is ready")
    _add_verbose(parser)


def _add_invite(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "invite",
        _invite,
        summary="let a person or a Node in, with a link that works once",
        text="For a person on a Node that runs here; or, with --network, for a Node or a person on a Network.",
        examples=(
            "  jupyter grid invite                                   # one User, within 7 days\n"
            "  jupyter grid invite --node Bob --role Publisher --for Ana --expires 1h\n"
            "  jupyter grid invite --network                         # a Node, for 'jupyter grid node --invite …'\n"
            "  jupyter grid invite --network --for ward7             # the same, also if ward7 lost its credential"
        ),
    )
    _add_target(parser)
    parser.add_argument("--role", help="what the account may do (User; with --network: Node)")
    parser.add_argument("--for", dest="username", metavar="NAME", help="the only name that the link is good for")
    parser.add_argument("--expires", type=values.duration, default=7 * 86_400.0, metavar="TIME", help="good for (7d)")
    _add_json(parser, "print invite and expiry as JSON")


def _add_token(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "token",
        _token,
        summary="make or end credentials on a Node or Network that runs here",
        text="'issue' prints a new token of a user; it is shown once. 'revoke' ends all tokens of a user.",
        examples=(
            "  jupyter grid token issue Bob --store                  # kept for user='Bob' in notebooks\n"
            "  jupyter grid token issue Ana --node Bob --role User --expires 30d\n"
            "  jupyter grid token revoke Ana --node Bob"
        ),
    )
    parser.add_argument("action", choices=("issue", "revoke"))
    parser.add_argument("username")
    _add_target(parser)
    parser.add_argument("--role", help="make the account with this role, if it is not there")
    parser.add_argument("--expires", type=values.duration, metavar="TIME", help="good for (until it is revoked)")
    parser.add_argument("--store", action="store_true", help="keep it with your credentials, instead of printing it")
    _add_json(parser, "print the answer as JSON")


def _add_status(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "status",
        _status,
        summary="show what runs here, and how it is",
        text="Every Node and Network with state in the data directory, also those that do not run.",
        examples="  jupyter grid status\n  jupyter grid status --json",
    )
    _add_json(parser, "print it as JSON")


def _add_reset(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "reset",
        _reset,
        summary="forget what the grid of 'jupyter grid up' has stored",
        text="Says what it removes, and asks. Refuses while any of it runs.",
        examples="  jupyter grid reset\n  jupyter grid reset --yes",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--all", action="store_true", help="every Node of the data directory, not only the grid's four")


def _add_sign_off(commands: _Commands[argparse.ArgumentParser]) -> None:
    """`requests`, `approve`, `deny` and `audit`."""
    parser = _command(
        commands,
        "requests",
        _requests,
        summary="show what people ask of the data on a Node that runs here",
        text="Who asks, why, for what, and how it was computed.",
        examples="  jupyter grid requests\n  jupyter grid requests --node Bob --in-state approved",
    )
    _add_node_target(parser)
    parser.add_argument("--in-state", metavar="STATE", help="those in this state (those that wait for a decision)")
    _add_json(parser, "print them as JSON")
    parser = _command(
        commands,
        "approve",
        _approve,
        summary="let something go that was asked for",
        text="It decides in place of all owners of the data.",
        examples="  jupyter grid approve 7\n  jupyter grid approve 7 --expires 1h",
    )
    parser.add_argument("request", type=values.positive, metavar="ID", help="the request's number")
    _add_node_target(parser)
    parser.add_argument("--expires", type=values.duration, metavar="TIME", help="good for (7d)")
    parser.add_argument("--review", action="store_true", help="of a job: run it, and ask again before its result goes")
    _add_json(parser, "print the request as JSON")
    parser = _command(
        commands,
        "deny",
        _deny,
        summary="refuse something that was asked for",
        text="It decides in place of all owners of the data; who asked reads the reason.",
        examples="  jupyter grid deny 7 --reason identifying",
    )
    parser.add_argument("request", type=values.positive, metavar="ID", help="the request's number")
    _add_node_target(parser)
    parser.add_argument("--reason", required=True, help="what the asker is told")
    _add_json(parser, "print the request as JSON")
    parser = _command(
        commands,
        "audit",
        _audit,
        summary="show what the gates of a Node decided, or check that nobody changed that",
        text="The log is append-only; each row has the hash of the one before.",
        examples="  jupyter grid audit\n  jupyter grid audit --verify",
    )
    _add_node_target(parser)
    parser.add_argument("--rows", type=values.positive, default=50, metavar="N", help="how many (50, at most 1000)")
    parser.add_argument("--verify", action="store_true", help="check the whole chain, and name the first broken row")
    _add_json(parser, "print it as JSON")


def _add_node_target(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--node", metavar="NAME", help="the Node that is meant; needed where several run")
    which.add_argument("--state", type=Path, metavar="DIR", help="the one with this state directory is meant")
    parser.set_defaults(network=False)


def _add_target(parser: argparse.ArgumentParser) -> None:
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--node", metavar="NAME", help="the Node that is meant; needed where several run")
    target.add_argument("--network", action="store_true", help="the Network is meant")
    target.add_argument("--state", type=Path, metavar="DIR", help="the one with this state directory is meant")


def _add_json(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--json", action="store_true", help=text)


def _add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="log every request (never a query, header or body)")


if __name__ == "__main__":
    sys.exit(main())
