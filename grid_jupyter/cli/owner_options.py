"""The commands of `jupyter grid` for owners, and their options. What one needs is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from grid_jupyter.cli import values
from grid_jupyter.cli.options import Commands, add_json, add_node_target, add_target, command


def _token(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.owner import token

    return token(options)


def _invite(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.owner import invite

    return invite(options)


def _status(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.status import status

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


def _trainings(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.trainings import trainings

    return trainings(options)


def _reset(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.reset import reset

    return reset(options)


def _push(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.push import push

    return push(options)


def _metrics(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.owner import metrics

    return metrics(options)


def _server(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.jupyter import server

    return server(options)


def _backup(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.backup import backup

    return backup(options)


def _restore(options: argparse.Namespace) -> int:
    from grid_jupyter.cli.backup import restore

    return restore(options)


def add_server(commands: Commands[argparse.ArgumentParser]) -> None:
    """`jupyter grid server`."""
    parser = command(
        commands,
        "server",
        _server,
        summary="start, stop or restart the Node of a Jupyter server of yours on this machine",
        text=(
            "As the buttons of the Grid panel do. The token of the server is read where Jupyter keeps it for you; "
            "of one with a password alone you are asked for that."
        ),
        examples="  jupyter grid server start\n  jupyter grid server stop --url http://localhost:8888/",
    )
    parser.add_argument("verb", choices=("status", "start", "stop", "restart"), help="what to do with the Node")
    parser.add_argument("--url", metavar="URL", help="the server's address; needed where several run")
    add_json(parser, "print what GET /grid/api/status answers")


def add_backup(commands: Commands[argparse.ArgumentParser]) -> None:
    """`jupyter grid backup` and `restore`."""
    parser = command(
        commands,
        "backup",
        _backup,
        summary="write all that a Node or Network keeps into one file, also while it runs",
        text=(
            "Everything that was acknowledged before is in it, as of one moment. The file holds published data and "
            "keys: only you can read it, and copies of it are as secret as the Node."
        ),
        examples=(
            "  jupyter grid backup ward7.tar --node ward7\n"
            "  jupyter grid backup network.tar --network\n"
            "  tar tf ward7.tar; tar xOf ward7.tar SHA256SUMS        # what is in it"
        ),
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the file to make; it must not be there yet")
    add_target(parser)
    add_json(parser, "print what was written as JSON")
    parser = command(
        commands,
        "restore",
        _restore,
        summary="make the state of a Node or Network of a file of 'jupyter grid backup'",
        text=(
            "Checks every byte before it changes anything. Restore only your own backups: who made the file decides "
            "who has accounts on the Node."
        ),
        examples=("  jupyter grid restore ward7.tar\n  jupyter grid restore ward7.tar --state /srv/ward7 --replace"),
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="what 'jupyter grid backup' made")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--name", metavar="NAME", type=values.node_name, help="directory of the Node, below nodes/ (its name)"
    )
    where.add_argument("--state", type=Path, metavar="DIR", help="the directory that it becomes")
    parser.add_argument("--replace", action="store_true", help="throw away what is in that directory")
    add_json(parser, "print what was restored as JSON")


def add_push(commands: Commands[argparse.ArgumentParser]) -> None:
    """`jupyter grid push`."""
    parser = command(
        commands,
        "push",
        _push,
        summary="say something to the devices of a training on a Node that runs here",
        text="Without --model it shows how notices to devices stand.",
        examples=(
            "  jupyter grid push                                     # what was sent, what was given up and why\n"
            "  jupyter grid push --model digits --title 'Thank you' --text 'Training is over on Friday'\n"
            "  jupyter grid push --model digits --worker 1b4e28ba-2fa1-11d2-883f-0016d3cca427 --data update=2.1"
        ),
    )
    add_node_target(parser)
    parser.add_argument("--model", metavar="NAME", help="the model whose devices are meant")
    parser.add_argument("--version", metavar="VERSION", help="its version (the newest)")
    parser.add_argument("--title", default="", help="what is shown first")
    parser.add_argument("--text", default="", help="what is shown")
    parser.add_argument(
        "--data", type=values.pair, action="append", default=[], metavar="NAME=TEXT",
        help="something for the app; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--worker", action="append", default=[], metavar="ID", help="only to this worker; may be repeated"
    )
    add_json(parser, "print the answer as JSON")


def add_invite(commands: Commands[argparse.ArgumentParser]) -> None:
    """`jupyter grid invite`."""
    parser = command(
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
    add_target(parser)
    parser.add_argument("--role", help="what the account may do (User; with --network: Node)")
    parser.add_argument("--for", dest="username", metavar="NAME", help="the only name that the link is good for")
    parser.add_argument("--expires", type=values.duration, default=7 * 86_400.0, metavar="TIME", help="good for (7d)")
    add_json(parser, "print invite and expiry as JSON")


def add_token(commands: Commands[argparse.ArgumentParser]) -> None:
    """`jupyter grid token`."""
    parser = command(
        commands,
        "token",
        _token,
        summary="make or end credentials on a Node or Network that runs here",
        text="'issue' prints a new token of a user; it is shown once. 'revoke' ends all tokens of a user. "
        "With --role an account that was deleted comes back, with all that its name may do.",
        examples=(
            "  jupyter grid token issue Bob --store                  # kept for user='Bob' in notebooks\n"
            "  jupyter grid token issue Ana --node Bob --role User --expires 30d\n"
            "  jupyter grid token revoke Ana --node Bob"
        ),
    )
    parser.add_argument("action", choices=("issue", "revoke"))
    parser.add_argument("username")
    add_target(parser)
    parser.add_argument("--role", help="make the account with this role, if it is not there")
    parser.add_argument("--expires", type=values.duration, metavar="TIME", help="good for (until it is revoked)")
    parser.add_argument("--store", action="store_true", help="keep it with your credentials, instead of printing it")
    add_json(parser, "print the answer as JSON")


def add_trainings(commands: Commands[argparse.ArgumentParser]) -> None:
    """`jupyter grid trainings`."""
    parser = command(
        commands,
        "trainings",
        _trainings,
        summary="the models that devices train on a Node of yours; end or delete one",
        text="For the owner of a Node that runs here. Who hosts a model ends it with ModelCentricFLClient.end.",
        examples=(
            "  jupyter grid trainings --node Bob\n"
            "  jupyter grid trainings --node Bob --end digits --version 1.0      # its checkpoints stay\n"
            "  jupyter grid trainings --node Bob --delete digits --version 1.0   # nothing of it stays"
        ),
    )
    add_node_target(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--end", metavar="NAME", help="tell its devices that training is over")
    what.add_argument("--delete", metavar="NAME", help="end it, and forget its checkpoints, devices and reports")
    parser.add_argument("--version", metavar="VERSION", help="of the model that is to end")
    add_json(parser, "print what is told as JSON")


def add_status(commands: Commands[argparse.ArgumentParser]) -> None:
    """`jupyter grid status`."""
    parser = command(
        commands,
        "status",
        _status,
        summary="show what runs here, and how it is",
        text="Every Node and Network with state in the data directory, also those that do not run.",
        examples="  jupyter grid status\n  jupyter grid status --json",
    )
    add_json(parser, "print it as JSON")


def add_metrics(commands: Commands[argparse.ArgumentParser]) -> None:
    """`jupyter grid metrics`."""
    parser = command(
        commands,
        "metrics",
        _metrics,
        summary="print the metrics of a Node or Network that runs here, as Prometheus reads them",
        text=(
            "Nobody else reads them, until '--token make' gives out a token for a scraper: it is shown once, reads "
            "/metrics of the public door and nothing else."
        ),
        examples=(
            "  jupyter grid metrics --node ward7\n"
            "  jupyter grid metrics --node ward7 --token make        # for Prometheus' bearer_token_file\n"
            "  jupyter grid metrics --node ward7 --token end"
        ),
    )
    add_target(parser)
    parser.add_argument("--token", choices=("make", "end"), help="make the token for a scraper anew, or end it")
    add_json(parser, "print the answer about a token as JSON")


def add_reset(commands: Commands[argparse.ArgumentParser]) -> None:
    """`jupyter grid reset`."""
    parser = command(
        commands,
        "reset",
        _reset,
        summary="forget what the grid of 'jupyter grid up' has stored",
        text="Says what it removes, and asks. Refuses while any of it runs.",
        examples="  jupyter grid reset\n  jupyter grid reset --yes",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--all", action="store_true", help="every Node of the data directory, not only the grid's four")


def add_sign_off(commands: Commands[argparse.ArgumentParser]) -> None:
    """`requests`, `approve`, `deny` and `audit`."""
    parser = command(
        commands,
        "requests",
        _requests,
        summary="show what people ask of the data on a Node that runs here",
        text="Who asks, why, for what, and how it was computed.",
        examples="  jupyter grid requests\n  jupyter grid requests --node Bob --in-state approved",
    )
    add_node_target(parser)
    parser.add_argument("--in-state", metavar="STATE", help="those in this state (those that wait for a decision)")
    add_json(parser, "print them as JSON")
    parser = command(
        commands,
        "approve",
        _approve,
        summary="let something go that was asked for",
        text="It decides in place of all owners of the data.",
        examples="  jupyter grid approve 7\n  jupyter grid approve 7 --expires 1h",
    )
    parser.add_argument("request", type=values.positive, metavar="ID", help="the request's number")
    add_node_target(parser)
    parser.add_argument("--expires", type=values.duration, metavar="TIME", help="good for (7d)")
    parser.add_argument("--review", action="store_true", help="of a job: run it, and ask again before its result goes")
    add_json(parser, "print the request as JSON")
    parser = command(
        commands,
        "deny",
        _deny,
        summary="refuse something that was asked for",
        text="It decides in place of all owners of the data; who asked reads the reason.",
        examples="  jupyter grid deny 7 --reason identifying",
    )
    parser.add_argument("request", type=values.positive, metavar="ID", help="the request's number")
    add_node_target(parser)
    parser.add_argument("--reason", required=True, help="what the asker is told")
    add_json(parser, "print the request as JSON")
    parser = command(
        commands,
        "audit",
        _audit,
        summary="show what the gates of a Node decided, or check that nobody changed that",
        text="The log is append-only; each row has the hash of the one before.",
        examples="  jupyter grid audit\n  jupyter grid audit --verify",
    )
    add_node_target(parser)
    parser.add_argument("--rows", type=values.positive, default=50, metavar="N", help="how many (50, at most 1000)")
    parser.add_argument("--verify", action="store_true", help="check the whole chain, and name the first broken row")
    add_json(parser, "print it as JSON")
