"""The live face of a run: a widget that draws what :mod:`raykit.render.face` says, and sends commands back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import traitlets

from raykit.codec import encode
from raykit.errors import RaykitError
from raykit.jupyter.answering import STATIC, Answering
from raykit.render import to_html, to_text
from raykit.render.face import face_of
from raykit.views import RunView

PAST_S = 1.0


class RunWidget(Answering):
    """Shows a run; JavaScript holds no truth of its own.

    The face travels in parts, of which only those that changed are sent: the present at each call, the past and the cards
    at most once a second.
    """

    _esm = STATIC / "run.js"
    now = traitlets.Dict().tag(sync=True)
    past = traitlets.Dict().tag(sync=True)
    cards = traitlets.Tuple().tag(sync=True)
    asks = traitlets.Bool().tag(sync=True)

    def __init__(self, view: RunView) -> None:
        super().__init__(again=f"%ray watch {view.name}", **_parts(view))
        self._view = view
        self._past_sent_s = -math.inf

    def show(self, view: RunView, *, at_s: float | None = None) -> None:
        """Show a newer view, in one message; ``at_s`` is the time of a monotonic clock."""
        at_s = time.monotonic() if at_s is None else at_s
        self._view, parts = view, _parts(view)
        with self.hold_sync():
            self.now = parts["now"]
            if view.ended or at_s - self._past_sent_s >= PAST_S:
                self._past_sent_s = at_s
                self.past, self.cards = parts["past"], parts["cards"]

    def ask(self, look: Callable[[], RunView]) -> None:
        """Let the page ask for news while somebody looks at it; for a run that no cell follows."""
        self.asks = True

        def look_again() -> None:
            try:
                self.show(look())
            except RaykitError as exc:
                self.said = str(exc)

        self.on_look(look_again)

    def faces(self) -> dict[str, str]:
        return {"text/html": to_html(self._view), "text/plain": to_text(self._view)}


def _parts(view: RunView) -> dict[str, Any]:
    now = encode(face_of(view))
    return {"past": now.pop("past"), "cards": now.pop("cards"), "now": now}
