"""A view in a notebook: what it shows, which actions its page may name, and the one thread that looks and acts.

The page gets `state` and never sets it; what it sends is taken for hostile, and names one of the actions that a view
declares, or nothing. The thread runs while a page shows the view and is looked at, and ends with the view, or with
its kernel.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Union

import anywidget
import msgspec
import traitlets

from grid_jupyter.client.owner import owner
from grid_jupyter.client.texts import line
from grid_jupyter.errors import GridError, NodeUnavailableError
from grid_jupyter.widgets import hearing

if TYPE_CHECKING:
    from grid_jupyter.client.node import NodeClient

log = logging.getLogger("grid_jupyter")

LOOK_S = 1.0
"""How often a view looks, in seconds; what its buttons do is shown at once."""
LONGEST_S = 4.0
"""How often it looks at a Node that does not answer, at last."""
GRACE_S = 5.0
"""How long after its last page a view goes on looking: pages come and go when cells are moved."""
PAGE_S = 75.0
"""A page that says nothing for so long is gone; while it is looked at it says every 20 s that it is there."""
MAX_PAGES = 64
MAX_WAITING = 32
"""Actions that may wait: a page sends the next one when it has the answer to the last."""

_STATIC = Path(__file__).parent / "static"
_open: weakref.WeakSet[View] = weakref.WeakSet()

Key = Annotated[str, msgspec.Meta(max_length=64)]
Text = Annotated[str, msgspec.Meta(max_length=10_000)]


class Action(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="action"):
    """What a page may ask for. `call` is the page's own number for it, with which it knows the answer."""

    call: Key = ""


class Shown(Action, frozen=True, tag="shown"):
    """A page shows the view from now on."""

    page: Key


class Gone(Action, frozen=True, tag="gone"):
    """A page shows it no longer."""

    page: Key


def script(name: str, *before: str) -> str:
    """The ESM of a view: what all of them have, what this one draws, and nothing from elsewhere."""
    return "\n".join((_STATIC / file).read_text() for file in (*before, "parts.js", f"{name}.js"))


def style(*before: str) -> str:
    """The CSS of all views."""
    return "\n".join((_STATIC / file).read_text() for file in (*before, "views.css"))


class View(anywidget.AnyWidget):
    """A view of something that is somewhere else: closing it, or losing it, changes nothing there."""

    state = traitlets.Dict().tag(sync=True)
    does: ClassVar[Mapping[type[Action], Callable[[Any, Any], str]]] = {}
    """What each action does: (view, action) → the same in Python."""
    look_s: ClassVar[float] = LOOK_S
    page_s: ClassVar[float] = PAGE_S
    _made = False

    def __init__(self) -> None:
        self._asked: queue.Queue[Action | None] = queue.Queue(MAX_WAITING)
        self._pages: dict[str, float] = {}  # how long each has said nothing, in seconds
        self._was_shown = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._accepts: Any = Union[tuple([Shown, Gone, *self.does])]  # noqa: C409 - of 3.10's syntax
        super().__init__(state={"ready": False, "trouble": "", "done": {}})
        self.on_msg(self._take)
        hearing.begin()
        self._made = True
        _open.add(self)

    # -------------------------------------------------------------- what a kind of view says

    def look(self) -> dict[str, Any]:
        """What is to be shown now, as JSON. Raises GridError."""
        raise NotImplementedError

    def remedy(self, error: GridError) -> str:
        """What to do about it; most errors say so themselves."""
        return ""

    def recover(self, error: GridError) -> None:
        """What can be done about it before the next look."""

    # -------------------------------------------------------------- the page

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """A page shows, and sets nothing."""

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        self._begin()
        return super()._repr_mimebundle_(**kwargs)

    def _take(self, _: object, content: Any, buffers: object) -> None:
        """A message of a page."""
        try:
            action: Action = msgspec.convert(content, type=self._accepts)
        except (msgspec.ValidationError, RecursionError):
            log.warning("%s: a page asked for something that this view does not do", type(self).__name__)
            return
        with self._lock:
            if isinstance(action, Shown) and (action.page in self._pages or len(self._pages) < MAX_PAGES):
                self._pages[action.page] = 0.0
                self._was_shown = True
            elif isinstance(action, Gone):
                self._pages.pop(action.page, None)
                return
        if isinstance(action, Shown):
            self.send({"here": True})
        else:
            try:
                self._asked.put_nowait(action)
            except queue.Full:
                log.warning("%s: too many actions wait; this one is not done", type(self).__name__)
        self._begin()

    # -------------------------------------------------------------- the thread

    def wake(self) -> None:
        """Look now, and not only when it is time."""
        try:
            self._asked.put_nowait(None)
        except queue.Full:
            pass  # there is enough to wake up for

    def _begin(self) -> None:
        """Let somebody look, if nobody does."""
        with self._lock:
            if not self._closed and self._thread is None:
                self._thread = threading.Thread(target=self._follow, name=f"view {type(self).__name__}", daemon=True)
                self._thread.start()

    def _follow(self) -> None:
        try:
            failures, alone, pause, began = 0, 0.0, 0.0, time.monotonic()
            while not self._over(alone):
                failures = 0 if self._look(self._next(pause)) else failures + 1
                before, began = began, time.monotonic()
                self._miss(min(began - before, LONGEST_S))
                alone = 0.0 if self._pages or not self._was_shown else alone + pause
                pause = max(self.look_s, min(LONGEST_S, LOOK_S * 2.0**failures)) if failures < 8 else LONGEST_S
        except Exception as error:  # the thread's outermost door: a view that stands still has to say so
            log.exception("the view %s stands still", type(self).__name__)
            trouble = f"This view stands still, by an error ({type(error).__name__}) that the kernel's log has."
            self._show({**self.state, "trouble": trouble, "remedy": "Run the cell again."})
            with self._lock:
                self._closed = True

    def _over(self, alone: float) -> bool:
        """Whether nobody needs this thread any more; then it has ended."""
        with self._lock:
            if self._closed or (alone > GRACE_S and not self._pages and self._asked.empty()):
                self._thread = None
                return True
        return False

    def _miss(self, seconds: float) -> None:
        """So long pages have said nothing, or were not heard: what they say waits for the end of a cell."""
        if not hearing.waits():
            with self._lock:
                silent = {page: before + seconds for page, before in self._pages.items()}
                self._pages = {page: now for page, now in silent.items() if now <= self.page_s}

    def _next(self, pause: float) -> Action | None:
        """An action as soon as one comes, or nothing after a pause."""
        try:
            return self._asked.get(timeout=pause) if pause else None
        except queue.Empty:
            return None

    def _look(self, action: Action | None) -> bool:
        """Do what was asked for, and show how everything stands; whether there was an answer."""
        done = self.state["done"]
        if action is not None:
            self._show({**self.state, "begun": action.call})
            done = self._do(action)
        try:
            self._show({"ready": True, "trouble": "", "remedy": "", **self.look(), "done": done})
        except GridError as error:
            trouble = line(error)
            self._show({**self.state, "trouble": trouble, "remedy": self.remedy(error), "done": done})
            self.recover(error)
            return False
        return True

    def _do(self, action: Action) -> dict[str, str]:
        if self._closed:
            return {}
        try:
            said = self.does[type(action)](self, action)
        except GridError as error:
            return {"call": action.call, "failed": line(error), "python": ""}
        return {"call": action.call, "failed": "", "python": said}

    def _show(self, state: dict[str, Any]) -> None:
        if not self._closed and state != self.state:
            self.state = state

    def end(self) -> None:
        """Look no more, and do nothing more."""
        with self._lock:
            self._closed = True
        self.wake()

    def join(self, timeout_s: float) -> bool:
        """Wait until nobody looks any more; whether that is so."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        return thread is None or not thread.is_alive()

    def close(self) -> None:
        """End the view. What it showed stays where it is: on its Node."""
        if self._made:  # else it was refused, and Python clears it away
            self.end()
            super().close()


class NodeView(View):
    """A view of what one Node says to its caller."""

    def __init__(self, node: NodeClient | None) -> None:
        """Without a client: of this user's own Node, as its owner. Raises NodeUnavailableError."""
        self._own = node is None
        self.node = owner() if node is None else node
        super().__init__()

    def remedy(self, error: GridError) -> str:
        """How a Node that does not answer is started."""
        if not isinstance(error, NodeUnavailableError):
            return ""
        if not self._own:
            return "This view goes on by itself when the Node answers."
        return "Start it in the Grid panel, or by 'jupyter grid node'. This view goes on by itself."

    def recover(self, error: GridError) -> None:
        """One's own Node may have another address when it was started again."""
        if not self._own or not isinstance(error, NodeUnavailableError):
            return
        try:
            found = owner(self.node.id)
        except GridError:
            return
        before, self.node = self.node, found
        before.close()

    def close(self) -> None:
        """End the view, and the session that it made for itself."""
        super().close()
        if self._made and self._own:
            self.node.close()


@atexit.register
def _end_all() -> None:
    """No thread says anything any more while the kernel takes its sockets apart."""
    views = list(_open)
    for view in views:
        view.end()
    for view in views:
        view.join(1.0)
