"""The live face of a cluster: the page asks while somebody looks at it, the kernel answers, and nobody else is asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import traitlets

from raykit.codec import encode
from raykit.errors import OptionError, RaykitError
from raykit.jupyter.answering import STATIC, Answering
from raykit.jupyter.table import Table
from raykit.render.cluster import cluster_face
from raykit.views import ClusterView

LEAST_S = 0.5  # two pages that look at one widget are shown one look


class ClusterWidget(Answering):
    """Shows a cluster's nodes, its GPUs as a map, and who waits.

    The map's shape travels when it changes, the rest at each look.

    Args:
        view: what is known now.
        look: asks the cluster.
    """

    _esm = STATIC / "cluster.js"
    now = traitlets.Dict().tag(sync=True)
    domains = traitlets.Tuple().tag(sync=True)

    def __init__(self, view: ClusterView, look: Callable[[], ClusterView]) -> None:
        super().__init__(again="%ray status")
        self._look, self._node = look, ""
        self._looked_s = time.monotonic()
        self._draw(view)
        self.on_command(self._carry_out)
        self.on_look(self._look_again)

    def faces(self) -> dict[str, str]:
        face = cluster_face(self._view)
        table = Table(face.headers, face.rows, empty="")
        return {"text/html": table._repr_html_(), "text/plain": repr(table)}

    def _carry_out(self, message: Mapping[str, Any]) -> str:
        match message:
            case {"command": "choose", "node": str(node)}:
                self._node = node
                self._draw(self._view)
                return ""
        raise OptionError(f"The widget sent {dict(message)!r}.", "This page is of another version of raykit: reload it.")

    def _look_again(self) -> None:
        """Ask the cluster; one that cannot be asked says why, and what was seen last stays."""
        if time.monotonic() - self._looked_s < LEAST_S:
            return
        try:
            self._draw(self._look())
            self.said = ""
        except RaykitError as exc:
            self.said = str(exc)
        self._looked_s = time.monotonic()

    def _draw(self, view: ClusterView) -> None:
        self._view = view
        face = encode(cluster_face(view, self._node))
        with self.hold_sync():
            self.domains = face.pop("domains")
            self.now = face
