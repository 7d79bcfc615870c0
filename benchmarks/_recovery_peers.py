"""Trials of the peers: one run of a program that trains with Ray Train, and the loss of one of its workers or nodes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from _marks import LATEST_STEPS, Marks, Trial, strike, until
from _measure import processes_with
from _recovery_raykit import WORKERS, processes_of_a_further_node

from raykit.cluster.code import SHIM

END_S = 20
TUNED = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_preload_python_modules": "torch,pandas", "PYTHONPATH": str(SHIM)}
TORCHFT = {
    "lighthouse": {"min_replicas": 1, "heartbeat_timeout_ms": 1000, "join_timeout_ms": 60_000},
    "operation_timeout_s": 10,
}
TORCHFT_MISSING = (
    "torchft is left out: it is not installed. Into a folder of its own, so that it brings no other torch:\n"
    "  pip install --target DIR opentelemetry-sdk opentelemetry-exporter-otlp-proto-http\n"
    "  pip install --target DIR --no-deps torchft==0.2.0\n"
    "and run this with PYTHONPATH=DIR."
)


def ray_train(kind: str, *, every: int, environment: dict[str, str]) -> list[Trial]:
    """Kill a worker of a run of fixed size."""
    with training("_ray_train.py", kind, environment, every=every) as marks:
        return [{"what": "kill", **strike(marks, {_last_rank(marks)}, signal.SIGKILL)}]


def ray_train_elastic(kind: str) -> list[Trial]:
    """Kill a node of an elastic run, not the one with its controller."""
    with training("_ray_train_elastic.py", kind, {}, every=10) as marks:
        node = processes_of_a_further_node(list(_newest(marks).values()))
        return [{"what": "kill", **strike(marks, node, signal.SIGKILL)}]


def ray_train_torchft(kind: str) -> list[Trial]:
    """Kill a worker of a run whose others go on, and wait for the one that takes its place."""
    with training("_ray_train_torchft.py", kind, {}, **TORCHFT) as marks:
        return [{"what": "kill", **strike(marks, {_last_rank(marks)}, signal.SIGKILL, world=WORKERS)}]


def torchft_is_there() -> bool:
    return importlib.util.find_spec("torchft") is not None


@contextmanager
def training(program: str, kind: str, environment: dict[str, str], **more: Any) -> Iterator[Marks]:
    """Give the marks of a run whose workers have all come and trained for a while; all of it ends with the block."""
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:
        settings = {
            "kind": kind,
            "folder": folder,
            "workers": WORKERS,
            "temp": f"{folder}/ray",
            "storage": f"{folder}/kept",
        } | more
        marks = Marks(Path(folder))
        command = [sys.executable, str(Path(__file__).parent / program), json.dumps(settings)]
        mark = {"RAYKIT_BENCHMARK": folder, "RAY_TMPDIR": folder}
        with (Path(folder) / "log").open("w") as log:
            peer = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment | mark, start_new_session=True)
        try:
            until(lambda: _alive(peer, folder) and _trains(marks))
            yield marks
            marks.ask_to_stop()
            with suppress(subprocess.TimeoutExpired):
                peer.wait(END_S)
        finally:
            while left := processes_with(mark):
                for process in left:
                    process.kill()
                psutil.wait_procs(left, timeout=10)
            peer.wait(10)


def _alive(peer: subprocess.Popen[bytes], folder: str) -> bool:
    if peer.poll() is not None:
        raise RuntimeError((Path(folder) / "log").read_text()[-3000:])
    return True


def _trains(marks: Marks) -> bool:
    """Say whether the latest steps were those of all workers."""
    read = marks.read()
    if not read or len(_newest(marks)) < WORKERS:
        return False
    whole = [mark for mark in read if mark.step == read[-1].step - LATEST_STEPS]
    return len({mark.rank for mark in whole}) == WORKERS


def _newest(marks: Marks) -> dict[int, int]:
    """Give each rank's process."""
    return {mark.rank: mark.pid for mark in marks.read()}


def _last_rank(marks: Marks) -> int:
    return _newest(marks)[WORKERS - 1]
