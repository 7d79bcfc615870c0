"""How long from a fresh kernel to the first task's result: raykit beside ray.init, each with its own defaults.

Both with Ray's token on, in the same environment with JupyterLab. The time starts when the kernel is idle, and ends
with the reply to the cell that shows the result. The peer without the import trap is Ray with raykit's stand-in of the
module that is slow to import (raykit/cluster/shim) on its path: it shows how much of the ratio is that alone.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
from _measure import ROUNDS, Figure, alternate, end_in_order, processes_with, ratio, report
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from raykit.cluster import record
from raykit.cluster.code import SHIM

TIMEOUT_S = 120
DOWN_S = 5
RAYKIT = ["%load_ext raykit\n%ray up{options}", "%%ray run -o answer\nanswer = 6 * 7", "assert answer == 42"]
RAY = ["import ray\nray.init({options})", "@ray.remote\ndef f():\n    return 6 * 7\nassert ray.get(f.remote()) == 42"]


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round: only whether it runs")
    rounds = 1 if parser.parse_args().quick else ROUNDS
    left: list[float] = []
    with homes() as (home, ray_environment):
        os.environ["RAYKIT_HOME"] = str(home)
        times = alternate(
            {
                "raykit": partial(raykit_starts, "", left),
                "ray.init": partial(ray_starts, "", ray_environment),
                "raykit, dashboard": partial(raykit_starts, " --dashboard", left),
                "ray.init, dashboard": partial(ray_starts, "include_dashboard=True", ray_environment),
                "ray.init without the import trap": partial(ray_starts, "", ray_environment | {"PYTHONPATH": str(SHIM)}),
                "import raykit": partial(imports, "raykit"),
                "import ray": partial(imports, "ray"),
            },
            rounds=rounds,
        )
    report(
        "start",
        {
            "first task, raykit / ray.init": Figure(value=ratio(times, "raykit", "ray.init"), goal="<= 0.5"),
            "first task with dashboard, raykit / ray.init": Figure(
                value=ratio(times, "raykit, dashboard", "ray.init, dashboard"), goal="<= 0.7"
            ),
            "import raykit / import ray": Figure(value=ratio(times, "import raykit", "import ray"), goal="<= 0.1"),
            "first task, raykit / ray.init without the import trap": Figure(
                value=ratio(times, "raykit", "ray.init without the import trap")
            ),
            "first task, raykit, s": Figure(value=statistics.median(times["raykit"])),
            f"processes {DOWN_S} s after %ray down": Figure(value=max(left), goal="<= 0"),
        },
    )


def raykit_starts(options: str, left: list[float]) -> float:
    """Time raykit's cells; afterwards count what ``%ray down`` leaves."""
    with kernel() as run:
        run("pass")
        begun = time.perf_counter()
        for cell in RAYKIT:
            run(cell.format(options=options))
        took = time.perf_counter() - begun
        run("%ray down")
        time.sleep(DOWN_S)
        left.append(len(record.processes("local")))
        return took


def ray_starts(options: str, environment: dict[str, str]) -> float:
    """Time Ray's cells in a kernel that has ``environment`` too."""
    with kernel(environment) as run:
        run("pass")
        begun = time.perf_counter()
        for cell in RAY:
            run(cell.format(options=options))
        took = time.perf_counter() - begun
        run("ray.shutdown()")
        return took


def imports(module: str) -> float:
    """Time an import, by the kernel's own clock."""
    with kernel() as run:
        return float(run(f"import time; begun = time.perf_counter()\nimport {module}\nprint(time.perf_counter() - begun)"))


@contextmanager
def kernel(environment: dict[str, str] | None = None) -> Iterator[Callable[[str], str]]:
    """Give a function that runs a cell in a fresh kernel and gives what it printed; a failed cell ends the benchmark."""
    client: BlockingKernelClient
    quiet = ["--log-level=ERROR"]  # the kernel warns at each start that loopback is not encrypted
    manager, client = start_new_kernel(kernel_name="python3", env=os.environ | (environment or {}), extra_arguments=quiet)

    def run(cell: str) -> str:
        printed: list[str] = []

        def take(message: dict[str, dict[str, str]]) -> None:
            printed.append(message["content"].get("text", ""))

        reply = client.execute_interactive(cell, timeout=TIMEOUT_S, output_hook=take)["content"]
        if reply["status"] != "ok":
            raise RuntimeError("\n".join(reply["traceback"]))
        return "".join(printed)

    try:
        yield run
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@contextmanager
def homes() -> Iterator[tuple[Path, dict[str, str]]]:
    """Give raykit's home and the environment of the peer's kernels; both sides' folders and processes end with the block."""
    folder = Path(tempfile.mkdtemp(prefix="rk-"))
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    mark = {"RAY_TMPDIR": str(folder / "ray"), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    (folder / "ray").mkdir()
    try:
        yield folder / "home", mark
    finally:
        psutil.wait_procs(processes_with(mark), timeout=30)
        for process in processes_with(mark):
            process.kill()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
