"""The process of a Node: its doors are opened, the owner is served, and all of it ends when it is told to."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec
from tornado.httpserver import HTTPServer

from grid_jupyter import __version__
from grid_jupyter.cycles.fold_worker import FoldWorker, fold_workers
from grid_jupyter.cycles.service import Cycles
from grid_jupyter.cycles.third_party import ThirdParty
from grid_jupyter.errors import BadRequest, DependencyError, NodeUnavailableError
from grid_jupyter.link.tls import tls_context
from grid_jupyter.node.service import GridNode, local_workers
from grid_jupyter.push.bus import Bus
from grid_jupyter.push.notifier import Notifier
from grid_jupyter.server.door import http_server
from grid_jupyter.server.gauge_doors import OWNER_GAUGE_RULES
from grid_jupyter.server.gauges import Gauges
from grid_jupyter.server.node_door import node_application
from grid_jupyter.server.overview import NodeOverview
from grid_jupyter.server.owner_door import open_unix_door, owner_application
from grid_jupyter.server.owner_doors import OWNER_AT_DOOR, OWNER_NODE_RULES
from grid_jupyter.server.owner_trainings import OWNER_TRAINING_RULES
from grid_jupyter.server.pace import Pace
from grid_jupyter.server.push_doors import OWNER_PUSH_RULES
from grid_jupyter.server.request_doors import OWNER_REQUEST_RULES
from grid_jupyter.server.running import (
    PUBLIC_SOCKET,
    NodeOptions,
    Running,
    StateDir,
    address_of,
    allow_many_connections,
    listen,
    say_owner_token,
    say_ready,
    told_to_end,
    warn_if_exposed,
)
from grid_jupyter.server.socket_places import WORKERS_SOCKET, socket_place
from grid_jupyter.store.node_blobs import NodeBlobs
from grid_jupyter.store.object_claim import claim
from grid_jupyter.store.objects import ObjectStore
from grid_jupyter.wire.home import data_home
from grid_jupyter.wire.panel import Joined, NodeStatus
from grid_jupyter.wire.worker import WorkerLimits
from grid_jupyter.worker.backend import Workers
from grid_jupyter.worker.devices import Wish

_THREADS = 32
"""Of a Node with an object store."""


class NodeOwner:
    """What the Node does for its owner (owner_door.OwnerService)."""

    def __init__(self, node: GridNode, address: str, *, require_isolation: bool) -> None:
        self._node = node
        self._address = address
        self._require_isolation = require_isolation
        self._began = time.monotonic()

    async def status(self) -> dict[str, Any]:
        node = self._node
        membership = node.membership
        joined: Joined = {"address": None, "state": "none", "detail": ""}
        if membership is not None:
            joined = {"address": membership.network_url, "state": membership.state, "detail": membership.detail}
        told: NodeStatus = {
            "role": "node",
            "name": node.name,
            "id": node.node_id,
            "address": self._address,
            "status": "running",
            "version": __version__,
            "network": joined,
            "isolation": isolation_text(node.pool.isolation, required=self._require_isolation),
            "isolation_required": self._require_isolation,
            "device": node.pool.shares.text,
            "devices": node.pool.shares.describe(),
            "sessions": len(node.sessions.working()),
            "connected": node.sessions.people(),
            "datasets": len(await node.datasets.all()),
            "storage_bytes": await node.datasets.used_bytes(),
            "guests": node.guests,
            "uptime_s": time.monotonic() - self._began,
        }
        return dict(told)

    async def ensure_account(self, username: str, role: str) -> None:
        await self._node.accounts.ensure(username, role)
        self._node.audit.note("account-ensured", OWNER_AT_DOOR, username=username, role=role)

    async def issue_token(self, username: str, expires_s: float | None) -> str:
        token = await self._node.accounts.issue_token(username, label="owner door", expires_s=expires_s)
        self._node.audit.note("token-issued", OWNER_AT_DOOR, username=username)
        return token

    async def revoke_tokens(self, username: str) -> int:
        revoked = await self._node.accounts.revoke_tokens(username)
        self._node.audit.note("tokens-revoked", OWNER_AT_DOOR, username=username, revoked=revoked)
        return revoked

    async def invite(self, role: str, expires_s: float, username: str | None) -> tuple[str, float]:
        code, expires = await self._node.accounts.invite(role, expires_s, username)
        self._node.audit.note("invited", OWNER_AT_DOOR, role=role, username=username)
        return f"{self._address}/#{code}", expires


def isolation_text(found: str, *, required: bool) -> str:
    """How Workers are kept apart, as they were found to be, whether the owner requires that, and what follows."""
    if required and found.startswith("reduced"):
        follows = "required, so nothing is computed here: install bubblewrap, or start without --require-isolation"
    elif required:
        follows = "required: where there is no sandbox, nothing is computed"
    elif found.startswith("reduced"):
        follows = "not required, so Workers run all the same: install bubblewrap, or refuse by --require-isolation"
    else:
        follows = "not required: where there is no sandbox, Workers run all the same"
    return f"{found}; {follows}"


def run_node(options: NodeOptions) -> int:
    """Run a Node until it is told to end; returns the process's exit code. Raises GridError."""
    allow_many_connections()
    with StateDir(options.state_dir, "node") as state:
        objects = asyncio.run(_serve(options, state))
    if objects is not None and objects.busy:  # threads that wait for a silent store: what they do counts for nobody
        logging.shutdown()
        os._exit(0)
    return 0


def _workers(options: NodeOptions) -> Workers:
    """What runs Workers for this Node. Raises BadRequest, DependencyError, NodeUnavailableError."""
    limits = WorkerLimits(
        memory_bytes=options.session_memory_bytes,
        operation_s=options.operation_s,
        threads=options.session_threads or max(1, (os.cpu_count() or 1) // 2),
    )
    if options.device_memory_bytes and options.device != ("cpu",):
        raise BadRequest("--device-memory is what Workers on the CPU share: it goes with --device cpu")
    if options.workers == "shared" and options.device != ("cpu",):
        raise BadRequest("a fork server that Nodes share is for --device cpu: with GPUs each Node has its own")
    if options.computes_here:
        shared = socket_place(data_home(), WORKERS_SOCKET) if options.workers == "shared" else None
        wish = Wish(options.device, options.device_memory_bytes, options.device_parts)
        return local_workers(
            limits, options.spare_workers, require_isolation=options.require_isolation, wish=wish, shared=shared
        )
    [device, *more] = options.device
    if more or device == "auto" or options.device_memory_bytes:
        raise BadRequest("on Dask say --device cpu, cuda, or one like cuda:0: each Dask worker has GPUs of its own")
    if device != "cpu":
        device = "cuda:0" if device == "cuda" else device
        limits = msgspec.structs.replace(limits, device=device, device_parts=options.device_parts)
    try:
        from grid_jupyter.worker.dask_client import Certificates
        from grid_jupyter.worker.dask_pool import DaskPool, Link
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"{error.name} is not installed, and Workers on Dask need it; pip install 'grid-jupyter[dask]'"
        ) from None
    return DaskPool(
        limits,
        options.workers,
        spare_workers=options.spare_workers,
        resources=dict(options.workers_resources),
        link=Link(*options.workers_link) if options.workers_link else None,
        certificates=Certificates(*options.workers_tls) if options.workers_tls else None,
        require_isolation=options.require_isolation,
    )


def _push(options: NodeOptions) -> Notifier | None:
    """What reaches devices that are not connected. Raises BadRequest, DependencyError."""
    if options.push_credentials is None:
        if options.push_endpoint is not None:
            raise BadRequest("--push-endpoint is where messages go: it needs --push-credentials")
        return None
    from grid_jupyter.push.fcm import FcmNotifier  # an extra, and half a second

    return FcmNotifier(options.push_credentials, endpoint=options.push_endpoint)


async def _kept(options: NodeOptions, state: StateDir) -> NodeBlobs:
    """Where the bytes of this Node are. Raises what `claim` raises."""
    try:
        objects = await asyncio.to_thread(claim, state.path, options.objects, options.name)
    except NodeUnavailableError:
        raise NodeUnavailableError(
            "the object store cannot be used, for the reason that the log has: check --objects, that the bucket is "
            "there, and the credentials"
        ) from None
    if objects is not None:  # threads wait for the store as well as for the disk
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="grid"))
    return NodeBlobs(state.path, objects, options.objects_cache_bytes, sweeps=options.objects_sweep)


async def _serve(options: NodeOptions, state: StateDir) -> ObjectStore | None:
    """Serve until told to end; the object store, which may not have answered yet."""
    workers, push, kept = _workers(options), _push(options), await _kept(options, state)
    tls = tls_context(options.certfile, options.keyfile, options=("--certfile", "--keyfile"))
    node = await GridNode.open(
        state.path,
        name=options.name,
        workers=workers,
        guests=options.allow_guests,
        public_tags=options.public_tags,
        max_sessions=options.max_sessions,
        idle_s=options.session_idle_s,
        grace_s=options.session_grace_s,
        max_upload_bytes=options.max_upload_bytes,
        warm=options.warm,
        max_jobs=options.max_jobs,
        jobs_per_user=options.jobs_per_user,
        job_storage_bytes=options.job_storage_bytes,
        job_s=options.job_s,
        postgres=options.database,
        kept=kept,
    )
    if options.computes_here:
        folds = FoldWorker(fold_workers(require_isolation=options.require_isolation))
    else:
        folds = FoldWorker(workers, far=True)
    bus = Bus()
    cycles = Cycles(
        node.database,
        kept.training,
        folds=folds,
        bus=bus,
        push=push,
        storage_bytes=options.training_storage_bytes,
        host_storage_bytes=options.of_one_host(),
        third_party=ThirdParty(options.auth_endpoint_hosts),
    )
    cycles.on_change(lambda: node.changes.tell("trainings"))
    overview = NodeOverview(node, cycles, state.path, options)
    gauges = Gauges(overview, node.settings, bus)
    servers: list[HTTPServer] = []
    try:
        owner_code = await node.start()
        await cycles.start()
        gauges.start()
        sockets = listen(options.host, options.port)
        address = address_of(sockets, options.host, tls=tls is not None, public_address=options.public_address)
        node.reachable_at(address, options.peers)
        warn_if_exposed("Node", options.host, tls=tls is not None)
        async with told_to_end(supervised=options.supervised) as end:
            doors = node_application(
                node, lambda: address, cycles, gauges, pace=partial(Pace, options.least_upload_bytes)
            )
            public = http_server(doors, tls)
            public.add_sockets(sockets)
            socket_path, public_path = state.socket_path(), state.socket_path(PUBLIC_SOCKET)
            passed = open_unix_door(doors, public_path, behind=True)
            rules = [*OWNER_NODE_RULES, *OWNER_REQUEST_RULES, *OWNER_PUSH_RULES, *OWNER_TRAINING_RULES]
            rules += OWNER_GAUGE_RULES
            owner = NodeOwner(node, address, require_isolation=options.require_isolation)
            owner_doors = owner_application(
                owner, rules, node=node, cycles=cycles, overview=overview, gauges=gauges, door="owner"
            )
            servers += [public, passed, open_unix_door(owner_doors, socket_path)]
            if options.network_url is not None:
                node.join(
                    options.network_url,
                    address=lambda: address,
                    invite=options.invite,
                    heartbeat_s=options.heartbeat_s,
                )
            running = Running(
                role="node",
                name=options.name,
                id=node.node_id,
                address=address,
                socket=str(socket_path),
                public_socket=str(public_path),
                pid=os.getpid(),
            )
            state.announce(running)
            say_ready(running, supervised=options.supervised, json=options.json)
            if owner_code is not None:
                say_owner_token(owner_code, address, supervised=options.supervised, json=options.json)
            await end.wait()
    finally:
        for server in servers:
            server.stop()
        for public in servers[:2]:
            await public.close_all_connections()  # no report begins any more; those whose bytes are here count
        await gauges.stop()
        await cycles.stop()
        await node.stop()
        for server in servers:
            await server.close_all_connections()
        if kept.objects is not None and kept.objects.busy:  # asyncio would wait for them
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    return kept.objects
