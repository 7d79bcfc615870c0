"""The stand-in for NVIDIA's library, built where there is a C compiler, and a sampler in a process that loads it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raykit.codec import decode
from raykit.engine.telemetry.sampler import Followed, Sampler
from raykit.events import Event

SOURCE = Path(__file__).parent / "nvml.c"
COMPILER = shutil.which("gcc") or shutil.which("cc")


class StandIn:
    """A folder with the library, and the file that says what it tells."""

    def __init__(self, folder: Path) -> None:
        self._state, self._calls = folder / "state", folder / "calls"
        self.environment = {"LD_LIBRARY_PATH": str(folder), "STAND_IN_NVML": str(self._state)}
        library = folder / "libnvidia-ml.so.1"
        command = [str(COMPILER), "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
        subprocess.run(command, check=True)

    def tell(self, *lines: str) -> None:
        """Have the library tell this from its next call on; see nvml.c for the words."""
        draft = self._state.with_suffix(".new")
        draft.write_text("".join(f"{line}\n" for line in lines))
        draft.replace(self._state)

    @property
    def counting(self) -> dict[str, str]:
        """The environment in which calls are counted, which costs them time."""
        return self.environment | {"STAND_IN_NVML_CALLS": str(self._calls)}

    def num_calls(self, function: str) -> int:
        return self._calls.read_text().splitlines().count(function)


class FarSampler:
    """A sampler in a process of its own, whose clock is told."""

    def __init__(self, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "tests.nvml.standin"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, env=os.environ | environment, **pipes)
        self._now_s = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid

    def look(self, *followed: Followed, after_s: float = 1.0) -> list[tuple[str, Any]]:
        """Give what the sampler tells when so much time has passed."""
        self._now_s += after_s
        asked = {"now_s": self._now_s, "followed": [asdict(each) for each in followed]}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return [(run, decode(Event, event)) for run, event in json.loads(self._process.stdout.readline())]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def gpu(index: int, utilization: int = 0, used: int = 0, *, milliwatts: int = 70_000, celsius: int = 40, reasons: int = 0) -> str:
    """Write a line about a GPU of 80 GB."""
    return f"gpu {index} {utilization} {used} 80000000000 {milliwatts} {celsius} {reasons:x}"


def _answer(lines: Iterable[str], say: Callable[[str], object]) -> None:
    from raykit.codec import encode

    now_s = 0.0
    sampler = Sampler("n", clock=lambda: now_s)
    for line in lines:
        asked = json.loads(line)
        now_s = asked["now_s"]
        told = sampler.look([Followed(**each) for each in asked["followed"]])
        say(json.dumps([(run, encode(event)) for run, event in told]))


if __name__ == "__main__":
    _answer(sys.stdin, lambda text: print(text, flush=True))
