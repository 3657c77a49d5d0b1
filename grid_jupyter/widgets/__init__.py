"""What the Grid panel shows, inside a notebook: live views of a Node, whose buttons call documented functions.

Importing this loads neither anywidget nor torch; the first view does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grid_jupyter.client.watching import needed

if TYPE_CHECKING:
    from grid_jupyter.client.node import NodeClient
    from grid_jupyter.widgets.inbox_view import Inbox
    from grid_jupyter.widgets.jobs_view import Jobs

__all__ = ["inbox", "jobs"]


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
