"""The commands of `jupyter grid` that run something, and their options. What one needs is imported when it runs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from grid_jupyter.cli import values
from grid_jupyter.cli.options import Commands, add_json, add_serving, add_verbose, command


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


def add_up(commands: Commands[argparse.ArgumentParser]) -> None:
    """`jupyter grid up`."""
    parser = command(
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
            "  jupyter grid up --lab              # and JupyterLab; prints one URL\n"
            "  jupyter grid up --nodes Bob,Alice  # two Nodes, for a small machine"
        ),
    )
    parser.add_argument("--lab", action="store_true", help="start JupyterLab too; its notebook server is the Node Bob")
    parser.add_argument(
        "--nodes",
        type=values.grid_nodes,
        default=values.GRID_NODES,
        metavar="NAMES",
        help="which of Bob, Alice, Bill and James, with commas between (all)",
    )
    parser.add_argument(
        "--elsewhere",
        type=values.grid_nodes,
        default=(),
        metavar="NAMES",
        help="of these Nodes, those that something else starts, such as a notebook server: wait until they are there",
    )
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
    add_json(parser, "print the addresses as JSON, on the first line")
    add_verbose(parser)


def add_demo(commands: Commands[argparse.ArgumentParser]) -> None:
    """`jupyter grid demo`."""
    parser = command(
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
    add_json(parser, "print the results as JSON, on the last line")
    add_verbose(parser)


def add_node(commands: Commands[argparse.ArgumentParser]) -> None:
    """`jupyter grid node`."""
    parser = command(
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
    add_serving(parser, port=3000, state="nodes/NAME")
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
    push = parser.add_argument_group("push to devices of trainings")
    push.add_argument(
        "--push-credentials", type=Path, metavar="FILE",
        help="key of a service account of Firebase, a JSON file of mode 600; it is read once and never copied",
    )  # fmt: skip
    push.add_argument("--push-endpoint", metavar="URL", help="where messages go (https://fcm.googleapis.com)")
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
        help="local; shared: likewise, but of the fork server that all Nodes of 'jupyter grid up' have together; or a "
        "Dask scheduler: dask://HOST:8786 or tls://HOST:8786 (local)",
    )  # fmt: skip
    where.add_argument(
        "--workers-link", type=values.link, metavar="HOST[:PORT]",
        help="where Dask workers reach this Node, if not at the address that faces the scheduler",
    )  # fmt: skip
    where.add_argument(
        "--workers-tls", type=Path, nargs=3, metavar=("CA", "CERT", "KEY"),
        help="PEM files by which this Node and a tls:// scheduler know each other (those of Dask's configuration)",
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
    kept = parser.add_argument_group("where rows, and bytes of data and models, are kept in place of --state")
    kept.add_argument(
        "--database", metavar="URL",
        help="postgresql+psycopg://USER@HOST/NAME, or @FILE with one and its password, in place of a SQLite file",
    )  # fmt: skip
    kept.add_argument(
        "--objects", metavar="URL",
        help="an object store of fsspec's, such as s3://BUCKET/PREFIX, that keeps the bytes in place of the disk",
    )  # fmt: skip
    kept.add_argument(
        "--objects-options", type=Path, metavar="FILE",
        help="its storage_options as JSON, credentials among them; S3 reads those of the environment as well",
    )  # fmt: skip
    kept.add_argument(
        "--objects-cache", type=values.size, default=10 << 30, metavar="SIZE", help="copies kept on the disk (10G)"
    )
    parser.add_argument(
        "--objects-sweep", action="store_true",
        help="remove there, at this start, what no row names: only where the database is the newest one",
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
    limits.add_argument(
        "--least-upload", type=values.size, default=64 << 10, metavar="SIZE",
        help="what whoever sends a large body comes to in 30 seconds (64K)",
    )  # fmt: skip
    jobs = parser.add_argument_group("jobs")
    jobs.add_argument("--max-jobs", type=values.positive, default=4, metavar="N", help="that run at once (4)")
    jobs.add_argument(
        "--job-storage", type=values.size, default=16 << 30, metavar="SIZE", help="of one user's jobs (16G)"
    )
    jobs.add_argument("--jobs-per-user", type=values.positive, default=2, metavar="N", help="of one user at once (2)")
    jobs.add_argument(
        "--job-time", type=values.duration, default=43_200.0, metavar="TIME", help="one job, or one round of it (12h)"
    )
    trainings = parser.add_argument_group("model-centric training")
    trainings.add_argument(
        "--training-storage", type=values.size, default=64 << 30, metavar="SIZE",
        help="of all models that devices train, their checkpoints and reports (64G)",
    )  # fmt: skip
    trainings.add_argument(
        "--host-storage", type=values.size, default=None, metavar="SIZE",
        help="of those that one account hosts (half of --training-storage)",
    )  # fmt: skip
    trainings.add_argument(
        "--auth-endpoint-host", action="append", default=[], metavar="HOST[:PORT]",
        help="that a training may ask about tokens of devices: a name, an address, a network; may be repeated",
    )  # fmt: skip


def add_device(commands: Commands[argparse.ArgumentParser]) -> None:
    """`jupyter grid device`."""
    parser = command(
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
    parser.add_argument(
        "--held-out", type=Path, metavar="FILE",
        help="rows of the same form that are not trained on, to measure loss and metrics with (--data)",
    )  # fmt: skip
    parser.add_argument(
        "--no-metrics", dest="metrics", action="store_false", help="measure nothing, and tell the Node nothing of it"
    )
    parser.add_argument("--plan", metavar="NAME", help="the training step, where the model has several")
    parser.add_argument("--epochs", type=values.positive, default=1, metavar="N", help="over the data in a cycle (1)")
    parser.add_argument(
        "--cycles", type=values.positive, metavar="N", help="leave after so many (when training is over)"
    )
    parser.add_argument("--seed", type=values.whole, default=0, metavar="N", help="of the order of rows (0)")
    parser.add_argument("--threads", type=values.positive, default=1, metavar="N", help="that compute (1)")
    parser.add_argument(
        "--diff", choices=("float32", "float16", "int8", "topk"), metavar="FORM",
        help="what reports come as: float32, float16, int8, or topk (the first that the Node takes)",
    )  # fmt: skip
    parser.add_argument(
        "--keep", type=float, default=0.05, metavar="PART", help="with topk: the part of the values that is sent (0.05)"
    )
    parser.add_argument(
        "--residual", type=Path, metavar="FILE", help="with topk: keeps what was not sent yet, for later cycles"
    )
    parser.add_argument("--gzip", action="store_true", help="compress reports")
    parser.add_argument("--auth-token-file", type=Path, metavar="FILE", help="the JWT that the training asks for")
    parser.add_argument(
        "--listen", action="store_true", help="sleep until the Node invites this device, in place of asking"
    )
    parser.add_argument(
        "--push-token-file", type=Path, metavar="FILE", help="a push token of Firebase by which the Node reaches it"
    )
    parser.add_argument("--ca-file", type=Path, metavar="PEM", help="certificates to trust, if not the system's")
    parser.add_argument(
        "--patience",
        type=values.duration,
        default=60.0,
        metavar="TIME",
        help="how long to ask a Node that is away (60s)",
    )
    add_json(parser, "print each cycle as JSON")
    add_verbose(parser)


def add_network(commands: Commands[argparse.ArgumentParser]) -> None:
    """`jupyter grid network`."""
    parser = command(
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
    add_serving(parser, port=5000, state="network")
    parser.add_argument("--allow-guests", action="store_true", help="let people without a credential search")
    parser.add_argument(
        "--replicas", type=values.positive, default=1, metavar="N", help="how many hosts choose-model-host names (1)"
    )
