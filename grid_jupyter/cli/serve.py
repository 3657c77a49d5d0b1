"""`jupyter grid node` and `jupyter grid network`: from the command line's options to a running process."""

from __future__ import annotations

import argparse
import os
from urllib.parse import urlsplit

from grid_jupyter.errors import BadRequest
from grid_jupyter.identity.tokens import invite_code
from grid_jupyter.server.running import NetworkOptions, NodeOptions
from grid_jupyter.wire.home import data_home


def node(options: argparse.Namespace) -> int:
    """Run a Node. Raises BadRequest for options that do not fit together."""
    from grid_jupyter.server.node_process import run_node
    from grid_jupyter.store import object_address
    from grid_jupyter.store.postgres import VARIABLE, read_address

    os.environ.pop("GRID_JUPYTER_INVITE", None)  # what a Node starts needs none of it
    network_url, invite = _membership(options.network, options.invite)
    database = read_address(options.database, os.environ)
    os.environ.pop(VARIABLE, None)
    objects = object_address.read_address(options.objects, options.objects_options, os.environ)
    return run_node(
        NodeOptions(
            name=options.name,
            host=options.host,
            port=options.port,
            state_dir=options.state or data_home() / "nodes" / options.name,
            public_address=options.address and _address(options.address, "--address"),
            network_url=network_url,
            invite=invite,
            peers=tuple(_address(peer, "--peer").rstrip("/") for peer in options.peer),
            allow_guests=options.allow_guests,
            public_tags=options.public_tags,
            heartbeat_s=options.heartbeat,
            session_memory_bytes=options.session_memory,
            session_idle_s=options.session_idle,
            session_grace_s=options.session_grace,
            max_sessions=options.max_sessions,
            spare_workers=options.spare_workers,
            warm=options.warm,
            workers=options.workers,
            workers_link=options.workers_link,
            workers_tls=tuple(options.workers_tls) if options.workers_tls else None,
            workers_resources=options.workers_resources,
            require_isolation=options.require_isolation,
            device=options.device,
            device_parts=options.device_fraction,
            device_memory_bytes=options.device_memory,
            max_upload_bytes=options.max_upload,
            least_upload_bytes=options.least_upload,
            database=database,
            objects=objects,
            objects_cache_bytes=options.objects_cache,
            objects_sweep=options.objects_sweep,
            operation_s=options.operation_time,
            session_threads=options.session_threads,
            max_jobs=options.max_jobs,
            jobs_per_user=options.jobs_per_user,
            job_storage_bytes=options.job_storage,
            job_s=options.job_time,
            push_credentials=options.push_credentials,
            push_endpoint=options.push_endpoint,
            training_storage_bytes=options.training_storage,
            host_storage_bytes=options.host_storage,
            auth_endpoint_hosts=tuple(options.auth_endpoint_host),
            certfile=options.certfile,
            keyfile=options.keyfile,
            supervised=options.supervised,
            json=options.json,
        )
    )


def network(options: argparse.Namespace) -> int:
    """Run a Network. Raises BadRequest for options that do not fit together."""
    from grid_jupyter.server.network_process import run_network

    return run_network(
        NetworkOptions(
            name=options.name,
            host=options.host,
            port=options.port,
            state_dir=options.state or data_home() / "network",
            public_address=options.address and _address(options.address, "--address"),
            allow_guests=options.allow_guests,
            replicas=options.replicas,
            heartbeat_s=options.heartbeat,
            certfile=options.certfile,
            keyfile=options.keyfile,
            supervised=options.supervised,
            json=options.json,
        )
    )


def _membership(network: str | None, invite: str | None) -> tuple[str | None, str | None]:
    """The Network to join and the bare invite code, from options of which an invite link may name both."""
    if not invite:
        return network, None
    code = invite_code(invite)
    if code is None:
        raise BadRequest("--invite is not an invite: it looks like https://grid.example.org:5000/#gji1_…")
    link = invite.strip().rpartition("#")[0].rstrip("/")
    if network is None and not link:
        raise BadRequest("--invite is a bare code; say with --network which Network it is for, or give the whole link")
    return network or link, code


def _address(address: str, option: str) -> str:
    if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
        raise BadRequest(f"{option} {address!r} is not an address: it begins with http:// or https://")
    return address
