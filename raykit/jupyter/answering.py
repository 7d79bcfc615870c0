"""A widget whose clicks are answered, also while a cell blocks the kernel's main shell, with its faces for whoever has no kernel."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import anywidget
import traitlets

STATIC = Path(__file__).parent / "static"
LOOK = {"command": "look"}


class Answering(anywidget.AnyWidget):
    """Draws what it was told, and sends commands back; ``said`` is what became of the last one.

    ``gone`` is what the page says when the kernel was restarted, and nobody answers any more.
    A page that wants news asks for a look while somebody looks at it, and ``looks`` counts those that were answered.
    It is shown as two outputs: JupyterLab draws a widget whose kernel is gone, or too busy to tell of it, as an error, and
    would not fall back to another form of the same output.
    """

    _css = STATIC / "raykit.css"
    said = traitlets.Unicode().tag(sync=True)
    gone = traitlets.Unicode().tag(sync=True)
    looks = traitlets.Int().tag(sync=True)

    def __init__(self, *, again: str, **parts: Any) -> None:
        """Store; ``again`` is the line that shows the same in another kernel."""
        super().__init__(gone=f"The kernel that showed this is gone. See it again: {again}", **parts)
        _answer_beside_a_running_cell(self)

    @abstractmethod
    def faces(self) -> dict[str, str]:
        """Give the face for a page without a kernel, and the one for a terminal, by their MIME types."""

    def on_command(self, carry_out: Callable[[dict[str, Any]], str | None]) -> None:
        """Call ``carry_out`` with what each click sends, in another thread than the cell's, and show the sentence it gives.

        It gives None where the sentence comes later, and is set by whoever has it.
        """

        def clicked(_: Any, message: dict[str, Any], __: Any) -> None:
            if message != LOOK:
                self.said = ""
                if (sentence := carry_out(message)) is not None:
                    self.said = sentence

        self.on_msg(clicked)

    def on_look(self, look: Callable[[], None]) -> None:
        """Call ``look`` when a page asks for news, in a thread of its own: a slow answer keeps no click waiting.

        Pages that ask while it looks share what it finds.
        """
        looking = Lock()

        def look_once() -> None:
            try:
                look()
            finally:
                looking.release()
                self.looks += 1

        def asked(_: Any, message: dict[str, Any], __: Any) -> None:
            if message == LOOK and looking.acquire(blocking=False):
                Thread(target=look_once, name="look", daemon=True).start()

        self.on_msg(asked)

    def live(self) -> dict[str, Any]:
        """Give the data of an output that is the widget, and nothing where there is no kernel."""
        model = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {"application/vnd.jupyter.widget-view+json": model, "text/plain": ""}

    def static(self) -> dict[str, Any]:
        """Give the data of the output beside it, which a live widget hides (raykit.css), and which stays without a kernel."""
        faces = self.faces()
        return faces | {"text/html": f'<div class="raykit-static">{faces["text/html"]}</div>'}

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.live(), raw=True)
        display(self.static(), raw=True)


def _answer_beside_a_running_cell(widget: Answering) -> None:
    """Let clicks be answered while a cell blocks the main shell.

    JupyterLab sends a widget's messages to a subshell; ipykernel 7 would route them back to the shell from which the
    widget last spoke, that is the blocked one. Older kernels have no such attribute, and setting it changes nothing.
    """
    if widget.comm is not None:
        widget.comm._reply_subshell_for = lambda _data, default: default  # noqa: SLF001
