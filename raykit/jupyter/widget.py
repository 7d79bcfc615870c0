"""The live face of a run: a widget that draws what :mod:`raykit.render.face` says, and sends commands back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from raykit.codec import encode
from raykit.render import to_html, to_text
from raykit.render.face import face_of
from raykit.views import RunView

STATIC = Path(__file__).parent / "static"


PAST_S = 1.0


class RunWidget(anywidget.AnyWidget):
    """Shows a run; JavaScript holds no truth of its own.

    The face travels in parts, of which only those that changed are sent: the present at each call, the past and the cards
    at most once a second.
    """

    _esm = STATIC / "run.js"
    _css = STATIC / "run.css"
    now = traitlets.Dict().tag(sync=True)
    past = traitlets.Dict().tag(sync=True)
    cards = traitlets.Tuple().tag(sync=True)
    said = traitlets.Unicode().tag(sync=True)

    def __init__(self, view: RunView) -> None:
        super().__init__(**_parts(view))
        self._view = view
        self._past_sent_s = -math.inf
        _answer_beside_a_running_cell(self)

    def show(self, view: RunView, *, at_s: float | None = None) -> None:
        """Show a newer view, in one message; ``at_s`` is the time of a monotonic clock."""
        at_s = time.monotonic() if at_s is None else at_s
        self._view, parts = view, _parts(view)
        with self.hold_sync():
            self.now = parts["now"]
            if view.ended or at_s - self._past_sent_s >= PAST_S:
                self._past_sent_s = at_s
                self.past, self.cards = parts["past"], parts["cards"]

    def on_command(self, carry_out: Callable[[dict[str, Any]], str]) -> None:
        """Call ``carry_out`` with what each click sends, in another thread than the cell's, and show the sentence it gives."""

        def clicked(_: Any, message: dict[str, Any], __: Any) -> None:
            self.said = ""
            self.said = carry_out(message)

        self.on_msg(clicked)

    def bundle(self) -> dict[str, Any]:
        """Give a display's data: the live widget, and for whoever has no kernel the two other faces of the view."""
        live = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {
            "application/vnd.jupyter.widget-view+json": live,
            "text/html": to_html(self._view),
            "text/plain": to_text(self._view),
        }

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.bundle(), {}


def _parts(view: RunView) -> dict[str, Any]:
    now = encode(face_of(view))
    return {"past": now.pop("past"), "cards": now.pop("cards"), "now": now}


def _answer_beside_a_running_cell(widget: RunWidget) -> None:
    """Let clicks be answered while a cell blocks the main shell.

    JupyterLab sends a widget's messages to a subshell; ipykernel 7 would route them back to the shell from which the
    widget last spoke, that is the blocked one. Older kernels have no such attribute, and setting it changes nothing.
    """
    if widget.comm is not None:
        widget.comm._reply_subshell_for = lambda _data, default: default  # noqa: SLF001
