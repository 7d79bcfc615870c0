"""Ray Data in a host: quiet, since what it would print is shown by the run's view."""

from __future__ import annotations

import logging
from typing import Any


def quiet(context: Any) -> None:
    """Switch a dataset's bars and lines off, and take Ray Data's handler out of this process; its log file stays."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logger = logging.getLogger("ray.data")
    for handler in list(logger.handlers):
        if type(handler).__name__ == "PlainRayHandler":
            logger.removeHandler(handler)
