"""`jupyter grid server`: the Node of a Jupyter server of this user, started and stopped as by the panel's buttons."""

from __future__ import annotations

import argparse
import json

from grid_jupyter.client.jupyter_node import jupyter_node
from grid_jupyter.tensors.text import plain


def server(options: argparse.Namespace) -> int:
    """Start, stop or restart it, or say how it is. Raises GridError."""
    status = jupyter_node(options.verb, url=options.url)
    detail = f": {plain(status['detail'])}" if status["detail"] else ""
    where = plain(status["node"]["name"]) if status["node"] else "of your Jupyter server"
    print(json.dumps(status) if options.json else f"The Node {where} is {status['state']}{detail}", flush=True)
    return 0
