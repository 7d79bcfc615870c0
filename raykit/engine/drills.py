"""Failures on purpose."""

from __future__ import annotations

import os
import signal
import threading

from raykit.commands import Drill
from raykit.engine.run import RunContext
from raykit.events import DrillStarted


def kill_host(context: RunContext, drill: Drill) -> None:
    """SIGKILL the run's host after the drill's delay; the host that comes back has the card."""

    def strike() -> None:
        context.emit(DrillStarted(action=drill.action, target="host", pid=os.getpid()))
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()

    threading.Timer(drill.after_s, strike).start()
