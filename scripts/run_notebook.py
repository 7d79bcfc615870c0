"""Run a notebook cell by cell, show how it goes, and keep what it became: out/NAME.ipynb and out/NAME.html.

Both are written also when a cell fails; the exit status is then 1. The run has a raykit home of its own, so that it
meets no cluster of the user's, and what it leaves running is taken down.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.filters import strip_ansi

import raykit
from raykit.cluster.home import clusters_home
from raykit.cluster.record import MARK

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_S = 1.0


def main() -> int:
    """Run the notebook that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--home", type=Path, help="keep clusters' logs and runs in this folder; else in one that ends with the run")
    parser.add_argument("--timeout", type=int, default=600, metavar="S", help="seconds a cell may take (600)")
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="folder of the results (out)")
    arguments = parser.parse_args()
    path: Path = arguments.notebook
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    notebook = nbformat.read(path, as_version=4)
    begun = time.monotonic()
    with own_home(arguments.home) as home, PeakMemory(home) as peak:
        try:
            error = execute(notebook, path.parent, arguments.timeout)
        finally:
            saved, page = save(notebook, arguments.out, path.stem)
    print(f"{error or 'all cells ran'}, {time.monotonic() - begun:.0f} s in all")
    if peak.peak_bytes:
        print(f"peak memory {peak.peak_bytes / 2**30:.2f} GiB (PSS of all processes together)")
    print(f"executed notebook: {saved}\nas a page:         {page}\nscripts/lab opens JupyterLab on the notebooks")
    return 1 if error else 0


def stop(number: int, _: object) -> None:
    """End the program by way of its cleanup, which a second signal must not cut short: no cluster is left behind."""
    signal.signal(number, signal.SIG_IGN)
    print("\nstopping: saving the notebook, taking the clusters down", flush=True)
    sys.exit(128 + number)


def execute(notebook: nbformat.NotebookNode, folder: Path, timeout_s: int) -> str | None:
    """Run all cells in a fresh kernel, up to the first that fails; give the sentence that says which, or None."""
    client = NotebookClient(
        notebook,
        timeout=timeout_s,
        kernel_name="python3",
        store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--log-level=ERROR"],  # the kernel warns at each start that loopback is not encrypted
    )
    cells = [(index, cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.source.strip()]
    digits = len(str(len(cells)))
    with client.setup_kernel():
        for number, (index, cell) in enumerate(cells, 1):
            place, title = f"[{number:{digits}}/{len(cells)}]", cell.source.strip().partition("\n")[0][:80]
            if sys.stdout.isatty():
                print(f"{place}    ...   {title}", end="\r", flush=True)
            begun = time.monotonic()
            try:
                client.execute_cell(cell, index)
            except (CellControlSignal, DeadKernelError) as exc:
                text = exc.traceback if isinstance(exc, CellExecutionError) else str(exc)
                print(f"{place} {time.monotonic() - begun:5.1f} s  {title}\n{text if sys.stdout.isatty() else strip_ansi(text)}")
                return f"cell {number} of {len(cells)} failed ({title})"
            print(f"{place} {time.monotonic() - begun:5.1f} s  {title}", flush=True)
    return None


def save(notebook: nbformat.NotebookNode, folder: Path, name: str) -> tuple[Path, Path]:
    """Write the executed notebook and its page, and give their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    saved, page = folder / f"{name}.ipynb", folder / f"{name}.html"
    nbformat.write(notebook, saved)
    html, _ = HTMLExporter().from_notebook_node(notebook, resources={"metadata": {"name": name}})
    page.write_text(html, encoding="utf-8")
    return saved, page


@contextmanager
def own_home(chosen: Path | None) -> Iterator[Path]:
    """Set RAYKIT_HOME for the block; afterwards every cluster that began in it is down, and a folder of our own gone."""
    home = chosen.resolve() if chosen else Path(tempfile.mkdtemp(prefix="raykit-home-"))
    os.environ["RAYKIT_HOME"] = str(home)
    earlier = {cluster.name for cluster in raykit.clusters()}
    try:
        yield home
    finally:
        # By folder, not by record: an interrupted start has no record yet.
        for folder in clusters_home().iterdir():
            if folder.name not in earlier:
                raykit.down(folder.name)
        if not chosen:
            shutil.rmtree(home)


class PeakMemory:
    """Samples the memory of the kernel's process tree and of every process of a cluster under ``home``.

    Ray's processes are sessions of their own; they are found by the mark in their environment. Shared pages count once:
    each process has its proportional share (PSS), which only Linux knows; elsewhere the peak stays 0, for unknown.
    """

    def __init__(self, home: Path) -> None:
        self.peak_bytes = 0
        self._home = str(home)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_S):
            tree = {process.pid for process in psutil.Process().children(recursive=True)}
            total = 0
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    if process.pid in tree or process.environ().get(MARK, "").startswith(self._home):
                        total += getattr(process.memory_full_info(), "pss", 0)
            self.peak_bytes = max(self.peak_bytes, total)


if __name__ == "__main__":
    sys.exit(main())
