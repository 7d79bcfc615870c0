"""What tests leave behind, also when they are killed: nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from raykit.cluster.record import MARK

ROOT = Path(__file__).parents[2]
CHILD = """
import os, pathlib, time
import raykit as rk

def test_that_is_killed():
    cluster = rk.up("killed", num_cpus=1, object_store_bytes=80_000_000)
    places = pathlib.Path({places!r})
    places.with_suffix(".new").write_text(os.environ["RAYKIT_HOME"] + "\\n" + cluster.record.ray_temp)
    places.with_suffix(".new").rename(places)
    time.sleep(600)
"""

pytestmark = pytest.mark.ray


def _of_home(home):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(home):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_test_session_that_is_ended_leaves_no_process_and_no_folder(tmp_path, until, number):
    places, child = tmp_path / "places", tmp_path / "test_child.py"
    child.write_text(CHILD.format(places=str(places)))
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider"),
        f"--rootdir={tmp_path}",
        child,
    ]
    session = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Whoever runs these tests in the background has interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  (no thread runs here)
    )
    until(lambda: places.exists() or session.poll() is not None)
    home, ray_temp = places.read_text().splitlines()
    assert _of_home(home)
    os.kill(session.pid, number)
    session.wait(60)
    until(lambda: not _of_home(home) and not Path(home).exists())
    assert not Path(ray_temp).exists()
