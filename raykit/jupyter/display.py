"""A run in the cell that waits for it: a widget where there is a notebook, plain lines where there is a terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from raykit.client.cluster import Cluster
from raykit.client.run import Run
from raykit.errors import RunError
from raykit.jupyter.table import Table
from raykit.render import to_text
from raykit.render.nodes import NODE_HEADERS, node_rows
from raykit.views import ClusterView, RunView
from raykit.wire.door import DoorClosedError

if TYPE_CHECKING:
    from raykit.jupyter.cluster_widget import ClusterWidget
    from raykit.jupyter.widget import RunWidget

WIDGET_S = 0.2
SAVED_S = 5.0
QUIET_S = 2.0
LOOK_WAIT_S = 1.0  # for the samplers of a cluster that is looked at
ENDING_S, ENDING_LOOK_S = 1.0, 0.02  # so long after an interrupt a kernel may hear that it is to end
MAX_OPEN = 400  # characters of the line that is being written
TICK_S = 1.0  # a run without news is looked at so often


class Said(str):
    """A sentence that a notebook shows without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class Face(Protocol):
    """What shows a run while it goes on."""

    def show(self, view: RunView) -> None:
        """Show a newer view; may be skipped when one was shown a moment ago."""

    def finish(self, view: RunView) -> None:
        """Show the last view, which stays."""


def follow(run: Run, *, quiet_s: float = QUIET_S, only_looks: bool = False) -> None:
    """Show a run until it is over, and raise if it did not end well; a task that is done within ``quiet_s`` only prints.

    An interrupt asks the run to end at its next commit or batch, and a second one ends the wait for that. The one with which a
    kernel's end begins leaves the run alone. Where a cell ``only_looks`` at a run that another has started, an interrupt ends
    the looking.

    Raises:
        RunError: it is not looked at any more, and is still running.
        RunFailedError: the user's code raised.
        RunStoppedError: it was stopped.
        RunLostError: its cluster went away.
    """
    face: Face = _Widget(run, quiet_s=quiet_s) if _in_notebook() else _Lines()
    try:
        _show_until_over(run, face)
    except KeyboardInterrupt:
        if only_looks:
            again = f"See it: %ray watch {run.name}. Stop it: %ray stop {run.name}"
            raise RunError(f"The run {run.name} is not watched any more, and goes on.", again) from None
        if kernel_ends():
            raise
        stop_in_order(run, lambda: _show_until_over(run, face))
    finally:
        face.finish(run.view)
    run.raise_if_failed()


def stop_in_order(run: Run, wait: Callable[[], object]) -> None:
    """Ask a run to end, and wait until it has.

    Raises:
        RunError: another interrupt came before; the run was asked, and is still running.
    """
    try:
        run.stop()
        wait()
    except KeyboardInterrupt:
        run.stop()  # the first one may not have reached the cluster
        if not run.refresh().ended:
            at = f" at step {run.view.step}" if run.view.run_kind == "training" else ""
            raise RunError(
                f"The run {run.name} is still running{at}. It was asked to end at its next commit or batch, and goes on until then.",
                f"See it: %ray watch {run.name}",
            ) from None


def beside(run: Run) -> Callable[[], None]:
    """Show a run that the cell itself executes, and give what takes in its news; nothing waits for it."""
    face: Face = _Widget(run, quiet_s=0) if _in_notebook() else _Lines()

    def news() -> None:
        view = run.refresh()
        (face.finish if view.ended else face.show)(view)

    return news


def watched(run: Run) -> RunWidget | Said:
    """Show a run that goes on for ever, such as a service: live where there is a notebook, and no cell waits."""
    if not _in_notebook():
        return Said(to_text(run.refresh()))
    widget = _widget(run)
    widget.ask(run.refresh)
    return widget


def nodes_of(cluster: Cluster) -> ClusterWidget | Table:
    """Show the nodes and GPUs of a cluster: live where there is a notebook."""
    view = cluster.status()
    if not _in_notebook():
        return Table(NODE_HEADERS, list(node_rows(view)), empty="")
    from raykit.jupyter.cluster_widget import ClusterWidget

    watched = Cluster(cluster.record)  # with a door of its own: nobody closes it while an answer is awaited
    return ClusterWidget(view, lambda: _look_at(watched))


def _look_at(cluster: Cluster) -> ClusterView:
    """Ask a cluster; one whose door is closed says whether it is gone, or only restarts its hub."""
    try:
        return cluster.status(wait_s=LOOK_WAIT_S)
    except DoorClosedError:
        cluster.wait_for_door(timeout_s=LOOK_WAIT_S)
        return cluster.status(wait_s=LOOK_WAIT_S)


def _show_until_over(run: Run, face: Face) -> None:
    for view in run.follow(poll_s=TICK_S):
        face.show(view)


def kernel_ends() -> bool:
    """Return whether an interrupt came because the kernel is restarted or shut down: Jupyter interrupts first, and then says so.

    Another interrupt meanwhile is a person's.
    """
    deadline_s = time.monotonic() + ENDING_S
    with suppress(KeyboardInterrupt):
        while _in_notebook() and time.monotonic() < deadline_s:
            if _shell().exit_now:
                return True
            time.sleep(ENDING_LOOK_S)
    return False


def _in_notebook() -> bool:
    return hasattr(_shell(), "kernel")


def _shell() -> Any:
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()


class _Widget:
    """The widget, with the last true state as static HTML beside it for the saved notebook.

    A task that is done within ``quiet_s`` shows what it printed and no more, unless something went wrong.
    """

    def __init__(self, run: Run, *, quiet_s: float) -> None:
        self._run = run
        self._widget: RunWidget | None = None
        self._handle: Any = None
        self._begun_s, self._quiet_s = time.monotonic(), quiet_s
        self._shown_s = self._saved_s = -math.inf
        self._printer = _Printer()

    def show(self, view: RunView) -> None:
        now_s = time.monotonic()
        if not self._is_quiet(view) and now_s - self._shown_s >= WIDGET_S:
            self._shown_s = now_s
            self._draw(view, save=now_s - self._saved_s >= SAVED_S)
        if view.run_kind == "task":
            self._printer.show(view)

    def finish(self, view: RunView) -> None:
        went_well = view.state == "done" and all(card.good for card in view.cards)
        if self._widget is not None or not went_well or not self._is_quiet(view):
            self._draw(view, save=True)
        if view.run_kind == "task":
            self._printer.show(view)

    def _is_quiet(self, view: RunView) -> bool:
        return view.run_kind == "task" and time.monotonic() - self._begun_s < self._quiet_s

    def _draw(self, view: RunView, *, save: bool) -> None:
        if self._widget is None:
            self._widget = _widget(self._run)
        self._widget.show(view)
        if save:
            self._saved_s = self._shown_s
            self._save(self._widget)

    def _save(self, widget: RunWidget) -> None:
        from IPython.display import display

        if self._handle is None:
            display(widget.live(), raw=True)
            self._handle = display(widget.static(), raw=True, display_id=True)
        else:
            self._handle.update(widget.static(), raw=True)


def _widget(run: Run) -> RunWidget:
    from raykit.jupyter.buttons import carry_out
    from raykit.jupyter.widget import RunWidget

    widget = RunWidget(run.view)
    widget.on_command(lambda message: carry_out(run, message))
    return widget


class _Lines:
    """Printed lines and cards as they come, and the whole view at the end."""

    def __init__(self) -> None:
        self._printer = _Printer()

    def show(self, view: RunView) -> None:
        self._printer.show(view)

    def finish(self, view: RunView) -> None:
        self._printer.show(view)
        print(to_text(view))  # noqa: T201  (a terminal's face)


class _Printer:
    """Prints the lines of a run that were not printed yet, and the one that is being written, over and over."""

    def __init__(self) -> None:
        self._num_printed = self._num_dropped = 0
        self._open = ""

    def show(self, view: RunView) -> None:
        new = view.num_lines - view.num_lines_dropped - self._num_printed
        dropped = view.num_lines_dropped - self._num_dropped + max(0, new - len(view.lines))
        self._num_printed, self._num_dropped = self._num_printed + new, view.num_lines_dropped
        lines = [line.text for line in view.lines[-new:]] if new else []
        if dropped:
            lines.append(f"... {dropped} lines more: %ray logs {view.name}")
        being_written = "   ".join(line.text for line in view.open_lines)[:MAX_OPEN]
        if lines or being_written != self._open:
            print(self._over("".join(f"{line}\n" for line in lines) + being_written), end="", flush=True)  # noqa: T201
            self._open = being_written

    def _over(self, text: str) -> str:
        """Return a text that is written over the open line, with spaces where its first line is shorter."""
        if not self._open:
            return text
        first, newline, rest = text.partition("\n")
        return f"\r{first.ljust(len(self._open))}{newline}{rest}"
