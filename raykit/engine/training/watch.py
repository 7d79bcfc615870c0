"""A look at a worker's process from outside, on its own node: whether it is stopped, and where it stands."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

LOOKS = 3
LOOK_S = 0.1
STACK_TIMEOUT_S = 3.0
STACK_LINES = 12
ANSI = re.compile(r"\x1b\[[0-9;]*m")

Condition = Literal["gone", "stopped", "still", "works"]


class Watch:
    """Looks at processes of the node on which it is; blocking."""

    def condition(self, pid: int) -> Condition:
        """Say whether a process is stopped, or neither uses a CPU nor waits for one in three looks; a slow one ``works``."""
        spent, wants_cpu = [], True
        try:
            process = psutil.Process(pid)
            for _ in range(LOOKS):
                if process.status() == psutil.STATUS_STOPPED:
                    return "stopped"
                times = process.cpu_times()
                spent.append(times.user + times.system)
                wants_cpu = wants_cpu and _is_runnable(pid)
                time.sleep(LOOK_S)
        except psutil.NoSuchProcess:
            return "gone"
        return "still" if len(set(spent)) == 1 and not wants_cpu else "works"

    def stack(self, pid: int) -> str:
        """Give the Python stacks of a process, as py-spy reads them, or why they cannot be read."""
        beside = Path(sys.executable).parent / "py-spy"
        command = str(beside) if beside.exists() else shutil.which("py-spy")
        if command is None:
            return "py-spy is not installed: pip install py-spy"
        try:
            done = subprocess.run(
                [command, "dump", "--nonblocking", "--pid", str(pid)],
                capture_output=True, text=True, timeout=STACK_TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"py-spy gave no stack within {STACK_TIMEOUT_S:.0f} s"
        return _training_thread(done.stdout) if done.returncode == 0 else done.stderr.strip()

    def kill(self, pid: int) -> None:
        """SIGKILL, which ends a stopped process too, at once; Ray's own way to end an actor took 6 s there."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def kill_node(self) -> None:
        """SIGKILL this node's raylet and all that runs under it, this process last."""
        raylet = psutil.Process(os.getppid())
        others = [each for each in raylet.children(recursive=True) if each.pid != os.getpid()]
        for each in (raylet, *others):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        os.kill(os.getpid(), signal.SIGKILL)


def on_node(node_id: str) -> Any:
    """Give a watch on another node, as an actor that ends with the host."""
    affinity = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(Watch).options(num_cpus=0, scheduling_strategy=affinity).remote()


def _is_runnable(pid: int) -> bool:
    """Say whether a thread of a process runs, or would if it had a CPU, where the system tells of threads."""
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):  # a thread that has ended
            if stat.read_text().rpartition(")")[2].split()[0] == "R":
                return True
    return False


def _training_thread(dump: str) -> str:
    """Cut the thread of the user's code out of py-spy's text, down to the user's first frame."""
    threads = ANSI.sub("", dump).split("\nThread ")
    mine = next((text for text in threads if "MainThread" in text.partition("\n")[0]), threads[-1])
    lines = [line.strip() for line in mine.splitlines()[1:]]
    users = list(takewhile(lambda line: not line.startswith(("CellWork.run", "FunctionWork.run")), lines))
    return "\n".join(users[:STACK_LINES])
