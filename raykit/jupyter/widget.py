"""The live face of a run: a widget that draws what :mod:`raykit.render.face` says, and sends commands back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from raykit.codec import encode
from raykit.render.face import face_of
from raykit.views import RunView

STATIC = Path(__file__).parent / "static"


class RunWidget(anywidget.AnyWidget):
    """Shows a run; JavaScript holds no truth of its own."""

    _esm = STATIC / "run.js"
    _css = STATIC / "run.css"
    face = traitlets.Dict().tag(sync=True)

    def __init__(self, view: RunView) -> None:
        super().__init__(face=encode(face_of(view)))
        _answer_beside_a_running_cell(self)

    def show(self, view: RunView) -> None:
        """Show a newer view."""
        self.face = encode(face_of(view))

    def on_command(self, take: Callable[[str], None]) -> None:
        """Call ``take`` with the word of each button that is clicked, in another thread than the cell's."""
        self.on_msg(lambda _, message, __: take(str(message.get("command"))))

    def bundle(self) -> dict[str, Any]:
        """Give the part of a display's data that stands for the live widget."""
        return {"application/vnd.jupyter.widget-view+json": {"version_major": 2, "version_minor": 0, "model_id": self.model_id}}


def _answer_beside_a_running_cell(widget: RunWidget) -> None:
    """Let clicks be answered while a cell blocks the main shell.

    JupyterLab sends a widget's messages to a subshell; ipykernel 7 would route them back to the shell from which the
    widget last spoke, that is the blocked one. Older kernels have no such attribute, and setting it changes nothing.
    """
    if widget.comm is not None:
        widget.comm._reply_subshell_for = lambda _data, default: default  # noqa: SLF001
