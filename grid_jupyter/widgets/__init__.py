"""What the Grid panel shows, inside a notebook: live views of a Node, whose buttons call documented functions.

Importing this loads neither anywidget nor torch; the first view does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grid_jupyter.client.watching import needed

if TYPE_CHECKING:
    from grid_jupyter.client.node import NodeClient
    from grid_jupyter.widgets.browse_view import Browse
    from grid_jupyter.widgets.inbox_view import Inbox
    from grid_jupyter.widgets.jobs_view import Jobs
    from grid_jupyter.widgets.publish_view import Publish
    from grid_jupyter.widgets.rounds_view import Rounds

__all__ = ["browse", "inbox", "jobs", "publish", "rounds"]


def publish(data: Any = None, node: NodeClient | None = None) -> Publish:
    """A form that publishes: what others may do with it, and a preview for its owner alone.

    `data` is a tensor, a pandas DataFrame, or the path of a CSV, Parquet, NPZ or safetensors file; without it, a
    variable of the notebook is chosen. `node` is a client of the Node; by default this user's own Node, as its owner.
    The button is `node.publish(…)`, and `pointer` of the view is what that gave.

    Raises DependencyError without anywidget, NodeUnavailableError.
    """
    needed("anywidget")
    from grid_jupyter.widgets.publish_view import Publish

    return Publish(data, node)


def browse(grid: Any = None) -> Browse:
    """A search by tags, with results by Node, and the code that opens them.

    `grid` is a PublicGridNetwork, or a client of one Node; by default the Network that was started on this machine,
    as a guest. The buttons are `grid.search(*tags)`, whose result is `found` of the view, and `node.pointer(id)`,
    which is its `pointer`.

    Raises DependencyError without anywidget, NodeUnavailableError, BadRequest for something else.
    """
    needed("anywidget")
    from grid_jupyter.widgets.browse_view import Browse

    return Browse(grid)


def inbox(node: NodeClient | None = None) -> Inbox:
    """What waits for the decision of a Node's caller, with approve, deny and ask; live.

    `node` is a client of the Node; by default this user's own Node, as its owner. The buttons are
    `node.request(n).approve()`, `deny(reason)`, `ask(question)` and `revoke()`.

    Raises DependencyError without anywidget, NodeUnavailableError.
    """
    needed("anywidget")
    from grid_jupyter.widgets.inbox_view import Inbox

    return Inbox(node)


def jobs(node: Any = None) -> Jobs:
    """Jobs, with their progress, log and newest metrics, as far as they are released; live.

    `node` is a client of a Node, of which it shows `node.jobs()`: by default this user's own Node. Or it is what
    `submit` gave: a Job, or GridJobs. The button is `job.cancel()`.

    Raises DependencyError without anywidget, NodeUnavailableError, BadRequest for something else.
    """
    needed("anywidget")
    from grid_jupyter.widgets.jobs_view import Jobs

    return Jobs(node)


def rounds(of: Any = None, version: str | None = None, client: Any = None) -> Rounds:
    """Accuracy and loss against the round, as they grow; each participant on demand; saved as PNG or CSV.

    `of` is the name of a model-centric training, with its version (the newest by default) and the client of who hosts
    it (this user's own Node by default); or a Fit, or a Job. Without it, it waits for the training that is given to
    it: `grid.train(…, live=False, after_round=view.show)`. Below it stays a matplotlib picture in the notebook's file.

    Raises DependencyError without anywidget, NodeUnavailableError, BadRequest for something else.
    """
    needed("anywidget")
    from grid_jupyter.widgets.rounds_view import Rounds

    return Rounds(of, version, client)
