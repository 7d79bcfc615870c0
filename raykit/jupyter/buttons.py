"""What a click in a run's widget does: the words of a magic, read by the magic's own parser."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from raykit.client.run import Run
from raykit.errors import OptionError, RaykitError
from raykit.spec.lines import DrillLine, ResizeLine
from raykit.spec.parse import parse


def carry_out(run: Run, message: Mapping[str, Any]) -> str:
    """Hand on the command of a click, and give the sentence to show; one that is refused says why."""
    try:
        return _command(run, message)
    except RaykitError as exc:
        return str(exc)


def _command(run: Run, message: Mapping[str, Any]) -> str:
    name = shlex.quote(run.name)
    match message:
        case {"command": "stop"}:
            run.stop()
            return ""  # the state says it
        case {"command": "apply"}:
            run.apply()
            return "The advice is applied; what comes of it becomes a card."
        case {"command": "resize", "workers": str(workers)}:
            resize = parse(ResizeLine, f"{name} {shlex.quote(workers)}", command="Resize")
            run.resize(resize.workers)
            return resize.said
        case {"command": "drill", "action": str(action)}:
            drill = parse(DrillLine, f"{shlex.quote(action)} {name}", command="Drill")
            run.drill(drill.action)
            return drill.said
    raise OptionError(f"The widget sent {dict(message)!r}.", "This page is of another version of raykit: reload it.")
