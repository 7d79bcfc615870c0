"""A real JupyterLab in headless Chromium, as a person has it before their eyes.

Two traps it avoids: the status bar says "idle" before the kernel is there, so the application's own session context is
asked; and the news pop-up covers outputs, so it is switched off.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Browser, Page, sync_playwright

WAIT_S = 120
ENDS_WITH_US = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
FOLDERS = {
    "JUPYTER_CONFIG_DIR": "config",
    "JUPYTER_DATA_DIR": "data",
    "JUPYTER_RUNTIME_DIR": "runtime",
    "IPYTHONDIR": "ipython",
    "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    "JUPYTERLAB_SETTINGS_DIR": "settings",
}
NO_NEWS = '{"fetchNews": "false", "checkForUpdates": false}'
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]

PANEL = "const app = window.jupyterapp; const panel = app && [...app.shell.widgets('main')].find(w => w.context?.sessionContext);"
KERNEL_IDLE = f"""async () => {{
  {PANEL}
  if (!panel) return false;
  app.shell.activateById(panel.id);
  await panel.context.sessionContext.ready;
  const kernel = panel.context.sessionContext.session?.kernel;
  return kernel?.connectionStatus === 'connected' && kernel.status === 'idle' && app.shell.currentWidget === panel;
}}"""
SAVE = "window.jupyterapp.commands.execute('docmanager:save')"
RESTART = f"async () => {{ {PANEL} await panel.context.sessionContext.session.kernel.restart(); }}"
SHUT_DOWN = f"async () => {{ {PANEL} await panel.context.sessionContext.shutdown(); }}"
START_CELL = f"""(index) => {{
  {PANEL}
  panel.content.activeCellIndex = index;
  window.ran = undefined;
  app.commands.execute('notebook:run-cell').then(() => {{
    window.ran = panel.content.widgets[index].outputArea.model.toJSON().every(output => output.output_type !== 'error');
  }});
}}"""


class Lab:
    """A server whose every folder lies under ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "work"
        self.root.mkdir(parents=True)
        self._folder, self._log = folder, folder / "lab.log"
        self._token = secrets.token_hex(16)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]

    @contextmanager
    def served(self) -> Iterator[Lab]:
        """Serve for the block; kernels end with it."""
        settings = self._folder / "settings/@jupyterlab/apputils-extension"
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text(NO_NEWS)
        command = [
            *ENDS_WITH_US,
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--allow-root"),
            *(f"--port={self._port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={self.root}"),
            *(f"--IdentityProvider.token={self._token}", "--LabApp.expose_app_in_browser=True"),
        ]
        environment = os.environ | {name: str(self._folder / place) for name, place in FOLDERS.items()}
        with self._log.open("w") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
        try:
            self._wait(server)
            yield self
        finally:
            server.terminate()
            server.wait(30)

    def write(self, name: str, cells: list[str]) -> str:
        """Put a notebook of these code cells there and give its name."""
        # Without a kernel's name JupyterLab asks for one.
        kernel = {"name": "python3", "display_name": "Python 3"}
        cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(notebook, self.root / name)
        return name

    def url(self, notebook: str) -> str:
        return f"http://127.0.0.1:{self._port}/lab/tree/{notebook}?token={self._token}&reset"

    def _wait(self, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline and server.poll() is None:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/status?token={self._token}", timeout=2).close()
                return
            time.sleep(0.1)
        raise RuntimeError(self._log.read_text())


class Notebook:
    """A notebook that is open in a page."""

    def __init__(self, page: Page, url: str, *, busy: bool = False) -> None:
        """Open it; a ``busy`` kernel is not waited for."""
        self.page = page
        page.goto(url)
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=WAIT_S * 1000)
        if not busy:
            self._wait_for_kernel()

    def save(self) -> None:
        """Write the notebook with its outputs to its file."""
        self.page.evaluate(SAVE)

    def restart_kernel(self) -> None:
        """End the kernel and start a new one."""
        self.page.evaluate(RESTART)
        self._wait_for_kernel()

    def shut_kernel_down(self) -> None:
        """End the kernel and start no other."""
        self.page.evaluate(SHUT_DOWN)

    def _wait_for_kernel(self) -> None:
        page = self.page
        self._until(lambda: page.evaluate(KERNEL_IDLE), "the kernel to be idle")

    def set_theme(self, name: str) -> None:
        """Choose JupyterLab's theme, Light or Dark; a lab keeps it for the pages that come."""
        self.page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {name}'}})")
        is_light = "true" if name == "Light" else "false"
        self._until(lambda: self.page.locator("body").get_attribute("data-jp-theme-light") == is_light, f"the theme {name}")

    def start(self, index: int) -> None:
        """Start a cell, and do not wait for its end."""
        self.page.evaluate(START_CELL, index)

    def end(self, timeout_s: float = WAIT_S) -> bool:
        """Wait for the end of the cell that was started last, and say whether it ended without an error."""
        self._until(lambda: self.page.evaluate("window.ran !== undefined"), "the cell to end", timeout_s)
        return bool(self.page.evaluate("window.ran"))

    def run(self, index: int, timeout_s: float = WAIT_S) -> bool:
        """Run a cell to its end, and say whether it ended without an error."""
        self.start(index)
        return self.end(timeout_s)

    def cell(self, index: int) -> Any:
        """Give a cell with its outputs."""
        return self.page.locator(".jp-NotebookPanel .jp-Cell").nth(index)

    def _until(self, condition: Any, what: str, timeout_s: float = WAIT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout_s} s for {what}")
            self.page.wait_for_timeout(100)


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium of this machine, headless."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise RuntimeError("The tests of what is seen need Chromium. Install it, on Debian: apt-get install chromium")
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=found, headless=True, args=QUIET)
        try:
            yield chromium
        finally:
            chromium.close()
