"""Trials of the peers: how soon Ray Data and cosmos-xenna have a pipeline at its bound."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil
from _balance_pipelines import Shape
from _balance_watch import watched
from _marks import Trial
from _measure import processes_with

from raykit.cluster.code import python_path_here

RAY_DATA_WATCHED_S = 120.0  # as raykit is
XENNA_WATCHED_S = 240.0  # one of its cycles, and a third more
XENNA_MISSING = (
    "cosmos-xenna is left out: it is not installed. Into a folder of its own, so that it brings no other ray:\n"
    "  pip install --target DIR --no-deps cosmos-xenna==0.3.0 'obstore<0.9' portpicker attrs cattrs jinja2 loguru pulp tabulate tqdm\n"
    "and run this with PYTHONPATH=DIR."
)


def ray_data(shape: Shape, *, autoscaler: str) -> Trial:
    """Watch a pipeline of pools between one replica and all."""
    environment = {"RAY_DATA_ACTOR_AUTOSCALER": autoscaler}
    with running("_balance_ray_data.py", shape, RAY_DATA_WATCHED_S, environment) as folder:
        return watched(shape, folder, RAY_DATA_WATCHED_S)[0]


def cosmos_xenna(shape: Shape) -> Trial:
    """Watch a pipeline at its defaults, which look each 180 s."""
    with running("_balance_xenna.py", shape, XENNA_WATCHED_S, {}) as folder:
        return watched(shape, folder, XENNA_WATCHED_S)[0]


def xenna_is_there() -> bool:
    return importlib.util.find_spec("cosmos_xenna") is not None


@contextmanager
def running(program: str, shape: Shape, watched_s: float, environment: dict[str, str]) -> Iterator[Path]:
    """Give the folder of the marks; the program and its cluster end with the block."""
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:
        rows = shape.rows(2 * watched_s)
        settings = {"stages": [asdict(stage) for stage in shape.stages], "folder": folder, "temp": f"{folder}/ray", "rows": rows}
        command = [sys.executable, str(Path(__file__).parent / program), json.dumps(settings)]
        mark = {"RAYKIT_BENCHMARK": folder, "RAY_TMPDIR": folder}
        # With the import shim, as raykit's own cluster: it is their rules that are compared, and not the start of Python.
        path = python_path_here()
        with (Path(folder) / "log").open("w") as log:
            peer = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | environment | mark | {"PYTHONPATH": path}, start_new_session=True
            )
        try:
            yield Path(folder)
        except TimeoutError as exc:
            exc.add_note((Path(folder) / "log").read_text()[-3000:])
            raise
        finally:
            while left := processes_with(mark):
                for process in left:
                    process.kill()
                psutil.wait_procs(left, timeout=10)
            peer.wait(10)
