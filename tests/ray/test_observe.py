"""Plain Ray Data code that is observed: its views, from a driver and a small cluster of its own, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

import pytest

pytestmark = pytest.mark.ray

DRIVER = """
import json, os, sys, time, traceback
import ray, ray.data
from raykit.client import observed

ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=sys.argv[1], object_store_memory=100_000_000)
ray.data.DataContext.get_current().enable_progress_bars = False
for line in sys.stdin:
    error = ""
    try:
        exec(json.loads(line), {"__name__": "__main__"})
    except BaseException:
        error = traceback.format_exc()
    observed.leave()
    print("ENDED", json.dumps(error), flush=True)
ray.shutdown()
"""

BEGIN = """
import os, time
import ray.data
from raykit.client import observed
from raykit.render import to_text

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
assert "in bad" in view.traceback_text and "UserCodeException" not in view.traceback_text, view.traceback_text
assert view.stages[-1].num_failed_tasks == 1, view
assert view.stages[-1].rows_out == 0, view
"""

LIMITED = """
def slow(row):
    time.sleep(0.01)
    return row
for dataset in (ray.data.range(4000, override_num_blocks=40).map(slow), before):
    for _ in range(2):
        assert len(dataset.take(5)) == 5
        assert runs[-1].view.state == "done", runs[-1].view
        assert runs[-1].view.stages[-1].rows_out == 5, runs[-1].view
assert dataset.limit(30).materialize().count() == 30
view = runs[-1].view
assert view.state == "done" and view.stages[-1].rows_out == 30, view
"""

UNKNOWN = """
class Add:
    def __call__(self, batch):
        time.sleep(0.5)
        return batch
views = []
def show(run):
    runs.append(run)
    return lambda: views.append(run.refresh())
observed.observe(show)
ray.data.range(40, override_num_blocks=4).map_batches(Add, concurrency=1, num_cpus=0.5).random_shuffle().materialize()
read, add, shuffle = views[-1].stages
assert (read.rows_in, read.num_replicas, read.rows_waiting) == (None, None, None), read
assert (add.rows_in, add.rows_out, shuffle.rows_in, shuffle.rows_out) == (40, 40, 40, 40), views[-1]
assert (shuffle.num_cpus, shuffle.num_replicas, shuffle.num_failed_tasks, shuffle.word) == (None, None, None, ""), shuffle
assert any(view.stages[1].num_replicas == 1 and view.stages[1].num_cpus == 0.5 for view in views), views
first = views[0].stages[1]
assert first.num_replicas is None and first.num_failed_tasks is None and first.held_by is None, first
ray.data.from_items([{"x": 1}] * 7).map(lambda row: row).materialize()
assert views[-1].stages[0].rows_in == 7, views[-1]
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
many = ray.data.range(4000, override_num_blocks=40).limit(2000).flat_map(lambda row: time.sleep(0.01) or [row] * 30)
for batch in many.iter_batches(batch_size=10):
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

def breaks_on_the_way(run):
    def news():
        if any(stage.rows_out for stage in run.refresh().stages) and not run.view.ended:
            raise RuntimeError("the observer's own error")
    runs.append(run)
    return news
observed.observe(breaks_on_the_way)
assert before.materialize().count() == 1000
assert runs[-1].view.state == "lost", runs[-1].view
"""


@pytest.fixture(scope="module")
def driver():
    """A process that runs code as the driver of a small cluster of its own, and gives the traceback of what failed."""
    with tempfile.TemporaryDirectory(prefix="rk-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        line = [sys.executable, "-c", DRIVER, folder]
        process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def run(code):
            process.stdin.write(json.dumps(BEGIN + code) + "\n")
            process.stdin.flush()
            ended = next(line for line in process.stdout if line.startswith("ENDED "))
            return json.loads(ended.removeprefix("ENDED "))

        yield run
        process.stdin.close()
        assert process.wait(60) == 0
        process.stdout.close()


@pytest.mark.slow
def test_a_dataset_made_before_has_its_rows_in_the_view_and_ends_as_done(driver):
    assert driver(DONE) == ""


def test_a_map_that_raises_is_a_failed_run_with_the_user_s_error(driver):
    assert driver(FAILED) == ""


def test_take_and_limit_end_early_and_are_done(driver):
    assert driver(LIMITED) == ""


def test_what_an_operator_does_not_say_is_unknown(driver):
    assert driver(UNKNOWN) == ""


def test_a_loop_that_is_left_early_is_a_stopped_run(driver):
    assert driver(STOPPED) == ""


def test_off_restores_the_callbacks_and_shows_nothing_more(driver):
    assert driver(OFF) == ""


def test_an_error_of_the_observer_leaves_the_execution_alone(driver):
    assert driver(BROKEN) == ""
