"""A picker of clusters: plan one, start it, scale it, use it, end it, by clicks that are the magics of the same name."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from threading import Lock, Thread
from typing import Any

import traitlets

from raykit.client import session
from raykit.client.cluster import health_of
from raykit.cluster.base import Plan
from raykit.codec import encode
from raykit.errors import OptionError, RaykitError
from raykit.jupyter.answering import STATIC, Answering
from raykit.jupyter.table import Table
from raykit.render.picker import ClusterRow, PickerFace, form, line_of
from raykit.spec import ClusterSpec
from raykit.spec.cluster import shown
from raykit.spec.lines import ScaleLine
from raykit.spec.parse import HelpAsked, parse

HEADERS = ("cluster", "place", "state", "nodes", "why")


class ClusterPicker(Answering):
    """Shows a person's clusters, and a form for another.

    What takes long goes on beside the kernel's cells, one thing at a time, and tells what it waits for.
    """

    _esm = STATIC / "picker.js"
    form = traitlets.Dict().tag(sync=True)
    now = traitlets.Dict().tag(sync=True)

    def __init__(self) -> None:
        super().__init__(again="%ray pick", form=encode(form()))
        self._doing, self._line = "", ""
        self._told: tuple[str, ...] = ()
        self._plan: Plan | None = None
        self._working: Thread | None = None
        self._drawing = Lock()
        self.on_command(self._carry_out)
        self.on_look(self._draw)

    def faces(self) -> dict[str, str]:
        rows = [(each.name, each.place, each.state, each.nodes, each.why) for each in _rows()]
        table = Table(HEADERS, rows, empty="No cluster is up. Start one: %ray up")
        return {"text/html": table._repr_html_(), "text/plain": repr(table)}

    def live(self) -> dict[str, Any]:
        self._draw()
        return super().live()

    def wait(self, *, timeout_s: float | None = None) -> None:
        """Wait for the end of what a click has begun."""
        if self._working is not None:
            self._working.join(timeout_s)

    def _carry_out(self, message: Mapping[str, Any]) -> str | None:
        """Do what a click asks; what is refused says why."""
        try:
            return self._command(message)
        except (RaykitError, HelpAsked) as exc:
            return str(exc)
        finally:
            self._draw()

    def _command(self, message: Mapping[str, Any]) -> str | None:
        match message:
            case {"command": "plan", "name": str(name), "place": str(place), "options": dict(options)}:
                spec = self._read(name, place, options)
                self._plan = session.plan_spec(spec)
            case {"command": "start", "name": str(name), "place": str(place), "options": dict(options)}:
                spec = self._read(name, place, options)
                self._begin(f"{spec.name} starts", lambda: repr(session.up_spec(spec, told=self._tell)))
            case {"command": "scale", "name": str(name), "nodes": str(nodes)}:
                scale = parse(ScaleLine, f"{shlex.quote(name)} {shlex.quote(nodes)}", command="%ray scale")
                self._begin(f"{name} gets {nodes} nodes", lambda: repr(session.scale(name, num_nodes=scale.num_nodes)))
            case {"command": "use", "name": str(name)}:
                return repr(session.use(name))
            case {"command": "suspend", "name": str(name)}:
                self._begin(f"{name} gives its machines back", lambda: session.suspend(name))
            case {"command": "stop", "name": str(name)}:
                self._begin(f"{name} ends", lambda: session.down(name))
            case _:
                raise OptionError(f"The widget sent {dict(message)!r}.", "This page is of another version of raykit: reload it.")
        return None

    def _read(self, name: str, place: str, options: Mapping[str, str]) -> ClusterSpec:
        line = line_of(name, place, options)
        self._line, self._plan = f"%ray up {line}", None
        return parse(ClusterSpec, line, command="%ray up", make=session.spec_of)

    def _begin(self, doing: str, work: Callable[[], str]) -> None:
        """Do it in a thread of its own, which says what came of it.

        Raises:
            OptionError: something else is being done.
        """
        if self._doing:
            raise OptionError(f"Not yet: {self._doing}.", "Wait for its end.")
        self._doing, self._told, self._plan = doing, (), None
        self._working = Thread(target=self._work, args=(work,), name=doing, daemon=True)
        self._working.start()

    def _work(self, work: Callable[[], str]) -> None:
        try:
            said = work()
        except RaykitError as exc:
            said = str(exc)
        finally:
            self._doing = ""
        self.said = said
        self._draw()

    def _tell(self, sentence: str) -> None:
        self._told = (*self._told, sentence)
        self._draw()

    def _draw(self) -> None:
        with self._drawing:  # what was looked at first is shown first
            plan = self._plan
            face = PickerFace(
                clusters=tuple(_rows()),
                doing=self._doing,
                told=self._told,
                line=self._line,
                plan=plan.things if plan else (),
                price=plan.price if plan else "",
            )
            self.now = encode(face)


def _rows() -> list[ClusterRow]:
    current = session.current_name()
    return [
        ClusterRow(
            name=each.name,
            place=each.record.spec.place,
            state=health.state,
            nodes=shown(each.record.spec.nodes),
            why=health.why,
            current=each.name == current,
        )
        for each in session.clusters()
        for health in (health_of(each),)
    ]
