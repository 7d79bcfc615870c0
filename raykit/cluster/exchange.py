"""One question to a program, and its answer."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping


def exchange(
    command: list[str], line: str, timeout_s: float, *, only_looks: bool = False, settings: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Run a program to its end, and give its status, its output and its complaints; ``settings`` go to its environment.

    An interrupt is raised when it has answered: what it does has an end, and what it began can be undone then. One that
    ``only_looks`` is ended at once. It has a session of its own, which a terminal's interrupt does not reach.

    Raises:
        FileNotFoundError: there is no such program.
        subprocess.TimeoutExpired: it did not answer in time.
    """
    pipe = subprocess.PIPE
    environment = os.environ | (settings or {})
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=environment
    ) as process:
        try:
            said, complaints = process.communicate(line, timeout_s)
        except KeyboardInterrupt:
            if only_looks:
                process.kill()
            process.communicate(timeout=timeout_s)
            raise
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return process.returncode, said, complaints
