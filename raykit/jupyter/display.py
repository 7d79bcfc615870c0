"""A run in the cell that waits for it: a widget where there is a notebook, plain lines where there is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from raykit.client.run import Run
from raykit.errors import RaykitError
from raykit.render import to_html, to_text
from raykit.views import RunView

WIDGET_S = 0.1
SAVED_S = 5.0


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


def follow(run: Run) -> None:
    """Show a run until it is over, and raise if it did not end well.

    An interrupt asks the run to end at its next commit or batch; a second one leaves it alone.

    Raises:
        RunFailedError: the user's code raised.
        RunStoppedError: it was stopped.
        RunLostError: its cluster went away.
    """
    face: Face = _Widget(run) if _in_notebook() else _Lines()
    try:
        _show_until_over(run, face)
    except KeyboardInterrupt:
        run.stop()
        _show_until_over(run, face)
    finally:
        face.finish(run.view)
    run.raise_if_failed()


def beside(run: Run) -> Callable[[], None]:
    """Show a run that the cell itself executes, and give what takes in its news; nothing waits for it."""
    face: Face = _Widget(run) if _in_notebook() else _Lines()

    def news() -> None:
        view = run.refresh()
        (face.finish if view.ended else face.show)(view)

    return news


def _show_until_over(run: Run, face: Face) -> None:
    for view in run.follow():
        face.show(view)


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


class _Widget:
    """The widget, with the last true state as static HTML beside it for the saved notebook."""

    def __init__(self, run: Run) -> None:
        from raykit.jupyter.widget import RunWidget

        self._widget = RunWidget(run.view)
        self._widget.on_command(_commanding(run))
        self._handle: Any = None
        self._shown_s = self._saved_s = 0.0
        self._printer = _Printer()

    def show(self, view: RunView) -> None:
        now_s = time.monotonic()
        if now_s - self._shown_s >= WIDGET_S:
            self._shown_s = now_s
            self._widget.show(view)
        if now_s - self._saved_s >= SAVED_S:
            self._saved_s = now_s
            self._save(view)
        if view.run_kind == "task":
            self._printer.show(view)

    def finish(self, view: RunView) -> None:
        self._widget.show(view)
        self._save(view)
        if view.run_kind == "task":
            self._printer.show(view)

    def _save(self, view: RunView) -> None:
        from IPython.display import display

        bundle = self._widget.bundle() | {"text/html": to_html(view), "text/plain": to_text(view)}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


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
    """Prints the lines of a run that were not printed yet."""

    def __init__(self) -> None:
        self._num_printed = 0

    def show(self, view: RunView) -> None:
        new = view.num_lines - self._num_printed
        if new <= 0:
            return
        self._num_printed = view.num_lines
        if new > len(view.lines):
            print(f"... {new - len(view.lines)} lines more: %ray logs {view.name}")  # noqa: T201
        for line in view.lines[-new:]:
            print(line.text)  # noqa: T201


def _commanding(run: Run) -> Any:
    def asked(command: str) -> None:
        """Answer a click, in a thread beside the cell's: only a command is handed on."""
        if command == "stop":
            try:
                run.stop()
            except RaykitError:
                return  # the view says what became of the run

    return asked
