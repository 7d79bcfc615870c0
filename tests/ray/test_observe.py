"""Plain Ray Data code that is observed: its views, from a driver and a small cluster of its own, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile

import pytest

pytestmark = pytest.mark.ray

BEGIN = """
import os, sys, time
import ray, ray.data
from raykit.client import observed
from raykit.render import to_text

ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=sys.argv[1], object_store_memory=100_000_000)
ray.data.DataContext.get_current().enable_progress_bars = False
runs = []
before = ray.data.range(1000, override_num_blocks=4).map_batches(lambda batch: batch, batch_size=10)

def show(run):
    runs.append(run)
    return run.refresh

observed.observe(show)
"""

DONE = """
before.materialize()
view = runs[-1].view
assert view.state == "done", view
assert view.stages[-1].rows_out == 1000, view
assert "1,000" in to_text(view)
"""

FAILED = """
def bad(row):
    raise ValueError("no good")
try:
    ray.data.range(10).map(bad).materialize()
except Exception:
    pass
view = runs[-1].view
assert view.state == "failed", view
assert view.error == "ValueError: no good", view.error
"""

STOPPED = """
def slow(batch):
    time.sleep(0.3)
    return batch
for batch in ray.data.range(4000, override_num_blocks=40).map_batches(slow).iter_batches(batch_size=10):
    break
deadline = time.monotonic() + 30
while not runs[-1].view.ended and time.monotonic() < deadline:
    runs[-1].refresh(wait_s=1)
assert runs[-1].view.state == "stopped", runs[-1].view
"""

OFF = """
assert observed.leave()
assert "RAY_DATA_EXECUTION_CALLBACKS" not in os.environ
ray.data.range(10).map(lambda row: row).materialize()
assert runs == []
"""

BROKEN = """
def broken(run):
    raise RuntimeError("the observer's own error")
observed.observe(broken)
assert before.materialize().count() == 1000
"""


def observed_code(code: str) -> None:
    with tempfile.TemporaryDirectory(prefix="rk-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        subprocess.run([sys.executable, "-c", BEGIN + code + "\nray.shutdown()\n", folder], check=True, timeout=150)


def test_a_dataset_made_before_has_its_rows_in_the_view_and_ends_as_done():
    observed_code(DONE)


def test_a_map_that_raises_is_a_failed_run_with_the_user_s_error():
    observed_code(FAILED)


def test_a_loop_that_is_left_early_is_a_stopped_run():
    observed_code(STOPPED)


def test_off_restores_the_callbacks_and_shows_nothing_more():
    observed_code(OFF)


def test_an_error_of_the_observer_leaves_the_execution_alone():
    observed_code(BROKEN)
