"""A home of its own for the tests' clusters, which ends with the tests, also when they are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REAPER = Path(__file__).parent / "reaper.py"


@pytest.fixture(scope="session", autouse=True)
def raykit_home() -> Iterator[Path]:
    """Set RAYKIT_HOME for this process and its children.

    A second process waits for this one's end, whatever it is, and then takes down every cluster and the folder.
    """
    home = Path(tempfile.mkdtemp(prefix="raykit-tests-"))
    os.environ["RAYKIT_HOME"] = str(home)
    reaper = subprocess.Popen([sys.executable, REAPER, home], stdin=subprocess.PIPE, start_new_session=True)
    yield home
    assert reaper.stdin is not None
    reaper.stdin.close()
    assert reaper.wait(60) == 0, "the tests' clusters could not be taken down"


@pytest.fixture(autouse=True)
def no_current_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test depend on which cluster an earlier one used last."""
    session = sys.modules.get("raykit.client.session")
    if session is not None:
        monkeypatch.setattr(session, "_current", None)


@pytest.fixture(scope="module")
def clusters_end_with_module() -> Iterator[None]:
    """Take down what a module's kernels and notebooks have started, so that the next has the machine for itself."""
    from raykit.cluster.home import clusters_home
    from raykit.cluster.local import Local

    earlier = {folder.name for folder in clusters_home().iterdir()}
    yield
    for folder in clusters_home().iterdir():
        if folder.name not in earlier:
            Local().down(folder.name)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A home of this test's own; called with a word it becomes another machine's."""

    def use(name: str) -> None:
        monkeypatch.setenv("RAYKIT_HOME", str(tmp_path / name))

    use("home")
    return use


@pytest.fixture
def wait_s() -> float:
    """So long a condition is waited for; longer where machines are slow to answer."""
    return 120.0


@pytest.fixture
def until(wait_s: float) -> Callable[[Callable[[], Any]], Any]:
    """Wait for a condition to hold, and give its value; fail when it does not."""

    def wait(condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + wait_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited {wait_s} s in vain"
            time.sleep(0.02)
        return value

    return wait
