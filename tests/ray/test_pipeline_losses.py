import asyncio
import ctypes
import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import raykit as rk
from raykit.errors import CapacityError, InputError, OptionError, RunFailedError, RunStoppedError
from raykit.events import StageSampled

pytestmark = pytest.mark.ray


@rk.stage(cpus=0.25, replicas=2)
def copy_twice(row):
    time.sleep(0.002)
    yield {"x": row["item"], "copy": 0}
    yield {"x": row["item"], "copy": 1}


@rk.stage(cpus=0.25, batch=16, replicas=2)
class Square:
    def __call__(self, batch):
        time.sleep(0.005)
        return {**batch, "y": batch["x"] ** 2}


def _rows(run):
    table = run.result.to_pandas()
    return sorted(zip(table["x"], table["copy"], table["y"], strict=True))


def _expected(count):
    return [(x, copy, x * x) for x in range(count) for copy in (0, 1)]


def _folder(run):
    return Path(run.refresh().folder)


def _num_samples(run):
    return sum(isinstance(record.event, StageSampled) for record in run.cluster.door.events(run.name, after=0, wait_s=0))


def _replicas(run):
    return [each for stage in run.refresh().stages for each in stage.replicas if not each.gone]


def test_every_row_is_in_the_sink_once_though_replicas_are_killed_all_the_time(cluster, until):
    run = rk.Pipeline([copy_twice, Square]).run(range(6000), name="fire")
    num_killed = 0
    while num_killed < 6:
        until(lambda: len(_replicas(run)) >= 2 or run.view.ended)
        before = sum(stage.rows_out for stage in run.view.stages)
        victims = _replicas(run)
        if run.view.ended:
            break
        if not victims:
            continue
        with suppress(ProcessLookupError):  # it may have been let go just now
            os.kill(random.choice(victims).pid, signal.SIGKILL)
            num_killed += 1
        until(lambda before=before: sum(stage.rows_out for stage in run.refresh().stages) > before or run.view.ended)
    run.wait()
    assert num_killed
    assert _rows(run) == _expected(6000)
    assert [(stage.rows_in, stage.rows_out) for stage in run.view.stages] == [(6000, 12_000), (12_000, 12_000)]
    assert any("was lost" in card.title for card in run.view.cards)


def test_a_drill_kills_a_replica_and_says_when_its_rows_were_taken_again(cluster, until):
    run = rk.Pipeline([copy_twice, Square]).run(range(2000), name="drilled")
    run.drill("kill-worker")
    run.wait()
    card = next(card for card in run.view.cards if card.title == "Drill kill-worker: passed")
    assert any("taken again by others" in value for _, value in card.facts)
    assert _rows(run) == _expected(2000)


def test_a_host_that_is_killed_goes_on_with_what_is_not_written(cluster, until):
    run = rk.Pipeline([copy_twice, Square]).run(range(4000), name="host")
    until(lambda: list((_folder(run) / "commits").glob("*.json")))
    before = {each.replica for each in _replicas(run)}
    run.drill("kill-host")
    until(lambda: run.refresh().host_attempts == 2 and before.isdisjoint(each.replica for each in _replicas(run)))
    assert all(slot.released_at_unix_s for slot in run.view.slots if slot.holder in before)
    run.wait()
    assert _rows(run) == _expected(4000)


def test_a_stopped_run_is_taken_up_where_it_was(cluster, until):
    run = rk.Pipeline([copy_twice, Square]).run(range(4000), name="stopped")
    until(lambda: list((_folder(run) / "commits").glob("*.json")))
    run.stop()
    with pytest.raises(RunStoppedError):
        run.wait()
    written = run.view.stages[0].rows_in
    assert 0 < written < 4000
    again = rk.resume("stopped")
    again.wait()
    assert _rows(again) == _expected(4000)


def test_a_row_that_fails_is_put_aside_with_its_traceback_and_can_be_tried_again(cluster, tmp_path):
    mended = tmp_path / "mended"
    large = np.arange(200_000.0)  # travels beside the stage, and has to be there for the retry too

    @rk.stage(cpus=0.25, on_error="quarantine")
    def invert(row):
        if row["item"] % 10 == 0 and not mended.exists():
            raise ValueError(f"no {row['item']}")
        return {"x": int(large[row["item"]])}

    run = rk.Pipeline([invert]).run(range(50), name="aside").wait()
    assert sorted(run.result.to_pandas()["x"]) == [x for x in range(50) if x % 10]
    aside = run.quarantine.to_pandas()
    assert sorted(row["item"] for row in aside["row"]) == [0, 10, 20, 30, 40]
    assert set(aside["stage"]) == {"invert"}
    assert "raise ValueError" in aside["traceback"][0]
    assert "ValueError: no" in aside["error"][0]
    assert run.view.stages[0].num_bad == 5
    mended.touch()
    again = run.quarantine.retry().wait()
    assert sorted(again.result.to_pandas()["x"]) == [0, 10, 20, 30, 40]
    with pytest.raises(InputError, match="no row aside"):
        again.quarantine.retry()


def test_of_a_failing_batch_only_the_bad_rows_are_put_aside(cluster):
    @rk.stage(cpus=0.25, batch=16, on_error="quarantine")
    def check(batch):
        if (batch["item"] == 21).any():
            raise RuntimeError("a bad one")
        return batch

    run = rk.Pipeline([check]).run(range(64), name="batch").wait()
    assert sorted(run.result.to_pandas()["item"]) == [x for x in range(64) if x != 21]
    assert [row["item"] for row in run.quarantine.to_pandas()["row"]] == [21]


def test_a_batch_that_does_not_fit_the_gpu_is_halved_and_no_row_is_lost(cluster):
    @rk.stage(cpus=0.25, batch=16)
    def tight(batch):
        import torch  # its error alone: there is no GPU here

        if len(batch["item"]) > 5:
            raise torch.cuda.OutOfMemoryError("too large")
        return {"x": batch["item"], "rows": [len(batch["item"])] * len(batch["item"])}

    table = rk.Pipeline([tight]).run(range(64)).wait().result.to_pandas()
    assert sorted(table["x"]) == list(range(64))
    assert table["rows"].max() == 4


def test_more_memory_than_a_node_has_is_refused_before_anything_starts(cluster):
    @rk.stage(memory=10**12)
    def large(row):
        return row

    with pytest.raises(CapacityError, match=r"1e\+03 GB of memory"):
        rk.Pipeline([large]).run([1])


def test_what_cannot_be_marked_as_a_stage_is_refused_in_words():
    with pytest.raises(InputError, match="cannot be marked"):
        rk.stage()(len)


def test_a_row_that_kills_its_replica_is_found_and_put_aside(cluster):
    @rk.stage(cpus=0.25, batch=8, on_error="quarantine")
    def crash(batch):
        if 13 in batch["item"]:
            ctypes.string_at(0)
        return batch

    run = rk.Pipeline([crash]).run(range(40), name="poison").wait()
    assert sorted(run.result.to_pandas()["item"]) == [x for x in range(40) if x != 13]
    aside = run.quarantine.to_pandas()
    assert [row["item"] for row in aside["row"]] == [13]
    assert sum("was lost" in card.title for card in run.view.cards) == 3


def test_a_replica_that_looks_for_the_row_has_no_other_call_to_which_the_blame_could_go(cluster, until, tmp_path):
    begins, looks, ends = (tmp_path / name for name in ("begins", "looks", "ends"))

    @rk.stage(cpus=0.25, batch=8, replicas=1)
    def slow(batch):
        (looks if len(batch["item"]) == 1 else begins).touch()
        while not ends.exists():
            time.sleep(0.02)
        return batch

    run = rk.Pipeline([slow]).run(range(400), name="alone")
    until(begins.exists)
    told = _num_samples(run)
    until(lambda: _num_samples(run) > told + 1)  # between two of them the host has given all the calls that it gives
    os.kill(until(lambda: _replicas(run))[0].pid, signal.SIGKILL)
    until(looks.exists)
    os.kill(until(lambda: _replicas(run))[0].pid, signal.SIGKILL)
    ends.touch()
    run.wait()
    taken_again = [dict(card.facts)["rows taken again"] for card in run.view.cards if "was lost" in card.title]
    assert taken_again == ["16", "8"]


def test_without_quarantine_a_row_that_kills_its_replica_ends_the_run_and_is_named(cluster):
    @rk.stage(cpus=0.25)
    def crash(row):
        if row["item"] == 3:
            ctypes.string_at(0)
        return row

    with pytest.raises(RunFailedError, match="kills its replica"):
        rk.Pipeline([crash]).run(range(8), name="poison").wait()


def test_more_bad_rows_than_allowed_end_the_run(cluster):
    @rk.stage(cpus=0.25, on_error="quarantine", max_bad=3)
    def broken(row):
        raise ValueError("never")

    with pytest.raises(RunFailedError, match="max_bad is 3"):
        rk.Pipeline([broken]).run(range(50)).wait()


def test_a_call_is_made_again_as_often_as_asked_and_then_fails(cluster, tmp_path):
    @rk.stage(cpus=0.25, on_error="retry:2")
    def flaky(row):
        tries = tmp_path / str(row["item"])
        tries.write_text(tries.read_text() + "." if tries.exists() else ".")
        if len(tries.read_text()) < row["item"]:
            raise OSError("not yet")
        return row

    assert len(rk.Pipeline([flaky]).run([1, 2, 3]).wait().result) == 3
    with pytest.raises(RunFailedError, match="not yet"):
        rk.Pipeline([flaky]).run([4]).wait()


def test_a_result_that_cannot_travel_ends_the_run_and_says_so(cluster):
    @rk.stage(cpus=0.25)
    def locked(row):
        return {"x": threading.Lock()}

    @rk.stage(cpus=0.25)
    def after(row):
        return row

    with pytest.raises(RunFailedError, match=r"locked.*cannot pickle"):
        rk.Pipeline([locked, after]).run(range(4)).wait()


def test_a_function_may_stand_in_for_a_result(cluster):
    def stand_in(row, error):
        return {"x": -1, "why": str(error)} if row["item"] else None

    @rk.stage(cpus=0.25, on_error=stand_in)
    def broken(row):
        if row["item"] < 2:
            raise ValueError("small")
        return {"x": row["item"], "why": ""}

    table = rk.Pipeline([broken]).run(range(4)).wait().result.to_pandas()
    assert sorted(table["x"]) == [-1, 2, 3]
    assert "small" in set(table["why"])


def test_a_call_that_takes_too_long_is_ended_and_made_again(cluster, tmp_path):
    @rk.stage(cpus=0.25, timeout_s=4.0)
    def sleepy(row):
        if row["item"] == 2 and not (tmp_path / "slept").exists():
            (tmp_path / "slept").touch()
            time.sleep(600)
        return row

    run = rk.Pipeline([sleepy]).run(range(4)).wait()
    assert len(run.result) == 4
    assert any("took longer" in value for card in run.view.cards for _, value in card.facts)


def test_calls_of_a_replica_run_at_once_by_async_and_by_threads(cluster):
    @rk.stage(cpus=0.25, concurrency=8)
    async def fetch(row):
        await asyncio.sleep(0.2)
        return {"x": row["item"], "task": id(asyncio.current_task())}

    @rk.stage(cpus=0.25, concurrency=8)
    def wait(row):
        time.sleep(0.02)
        return {**row, "thread": threading.get_ident()}

    table = rk.Pipeline([fetch, wait]).run(range(32)).wait().result.to_pandas()
    assert sorted(table["x"]) == list(range(32))
    assert table["thread"].nunique() > 1


def test_a_slow_stage_grows_within_what_it_may_have_and_says_why(cluster, until):
    @rk.stage(cpus=0.25, replicas=(1, 5))
    def slow(row):
        time.sleep(0.1)
        return row

    @rk.stage(cpus=0.25, replicas=(1, 5))
    def quick(row):
        return row

    run = rk.Pipeline([quick, slow]).run(range(300), name="grow")
    assert until(lambda: run.refresh().ended or run.view.stages[1].num_replicas == 5)
    assert not run.view.ended
    until(lambda: run.refresh().stages[1].word == "bottleneck")
    run.wait()
    assert run.view.stages[0].num_replicas <= 1
    assert len(run.result) == 300


def test_a_stage_that_finds_no_place_gets_that_of_one_that_others_can_spare(cluster, until):
    @rk.stage(cpus=0.5, replicas=2)
    def make(row):
        return {"x": row["item"]}

    @rk.stage(cpus=1)
    def settle(row):
        return {"y": 2 * row["x"]}

    holder = rk.run(time.sleep, 600, name="half", cpus=0.5)
    until(lambda: holder.refresh().started_at_unix_s)
    run = rk.Pipeline([make, settle]).run(range(500), name="crowded").wait()
    assert sorted(run.result.to_pandas()["y"]) == list(range(0, 1000, 2))
    assert not holder.refresh().ended
    holder.stop()
    until(lambda: holder.refresh().ended)


@pytest.mark.slow
def test_an_advice_names_the_limit_that_holds_the_run_up_and_is_carried_out_and_measured(cluster, until):
    @rk.stage(cpus=0.25, replicas=1)
    def slow(row):
        time.sleep(0.1)
        return row

    run = rk.Pipeline([slow]).run(range(3000), name="advised")
    until(lambda: run.refresh().advice)
    assert "replicas of slow 1:8" in run.advise()
    run.apply()
    until(lambda: run.refresh().stages[0].num_replicas == 8)
    until(lambda: run.refresh().advice.measured_rows_s)
    assert run.view.advice.measured_rows_s > 1.5 * run.view.advice.rows_s
    run.stop()
    until(lambda: run.refresh().ended)


def _batches_noted(folder, most=None):
    """Give a stage whose calls cost as much whatever their rows, and which notes how many there were."""

    @rk.stage(cpus=2, batch=2)
    class Slow:
        def __call__(self, batch):
            size = len(batch["item"])
            if most is not None and size > most:
                raise RuntimeError("does not fit")
            (folder / str(size)).touch()
            time.sleep(0.05)
            return batch

    return Slow


@pytest.mark.slow
def test_a_larger_batch_is_tried_advised_and_kept_when_the_host_comes_back(cluster, until, tmp_path):
    run = rk.Pipeline([_batches_noted(tmp_path)]).run(range(100_000), name="batches")
    until(lambda: run.refresh().advice)
    assert "batch of Slow 32" in run.advise()
    run.apply()
    until(lambda: run.refresh().advice.measured_rows_s)
    assert run.view.advice.measured_rows_s > 4 * run.view.advice.rows_s
    run.drill("kill-host")
    until(lambda: run.refresh().host_attempts == 2)
    (tmp_path / "32").unlink()
    until(lambda: (tmp_path / "32").exists() or run.refresh().ended)
    run.stop()
    until(lambda: run.refresh().ended)
    assert [str(change.batch_size) for change in run.view.changes] == ["32"]


def test_a_larger_batch_that_fails_costs_no_row_and_is_not_advised(cluster, tmp_path):
    run = rk.Pipeline([_batches_noted(tmp_path, most=2)]).run(range(300), name="fits").wait()
    assert sorted(run.result.to_pandas()["item"]) == list(range(300))
    assert {file.name for file in tmp_path.iterdir()} == {"2"}
    records = run.cluster.door.events(run.name, after=0, wait_s=0)
    assert [record.event.about for record in records if getattr(record.event, "decision", "") == "Try"] == [
        ("Slow", "batch_size 4")
    ]
    assert run.view.changes == ()


@pytest.mark.parametrize(
    "options",
    [{"on_error": "ignore"}, {"concurrency": 0}, {"timeout_s": 0}, {"max_bad": -1}, {"memory": -1}, {"batch": 2, "concurrency": 2}],
)
def test_an_option_that_cannot_be_is_refused_at_once(options):
    with pytest.raises(OptionError):
        rk.stage(**options)(len)
