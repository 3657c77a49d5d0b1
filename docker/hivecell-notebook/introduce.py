"""Keep the credentials that the grid gave to the notebook's user, and where its Nodes are.

`introduce.py FOLDER`: each folder in it is a Node's, or the Network's, with a file for each of its people, as `jupyter
grid token issue --json` prints it. What is written is what `jupyter grid up` writes, so that `user="Ana"` and
`grid_jupyter.local()` work.
"""

import json
import os
import sys
from pathlib import Path

from grid_jupyter.client.credentials import Credentials
from grid_jupyter.wire.home import data_home, private_directory

nodes = {}
for answer in sorted(Path(sys.argv[1]).glob("*/[!.]*")):
    told = json.loads(answer.read_text())
    Credentials().store(told["address"], told["username"], told["token"])
    nodes[answer.parent.name] = told["address"]
network = nodes.pop("Network", os.environ.get("GRID_NETWORK", ""))
if nodes:
    place = private_directory(data_home()) / "local.json"
    place.write_text(json.dumps({"network": network, "nodes": nodes}))
