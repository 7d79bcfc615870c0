"""Sources that are functions: their rows flow while they are made."""

import ctypes
import gzip
import itertools
import json
import os
import signal
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

import raykit as rk
from raykit.errors import RunFailedError, RunStoppedError

pytestmark = pytest.mark.ray


@rk.stage(cpus=0.25)
def keep(row):
    return row


def _items(run):
    return sorted(run.wait().result.to_pandas()["item"])


def _rows_in(run):
    stages = run.refresh().stages
    return stages[0].rows_in if stages else 0


def _counted(count, *, waits_at, folder):
    """Make a source of numbers that writes its process's id and waits for a gate before one of them."""

    def numbers():
        for number in range(count):
            if number == waits_at:
                (folder / f"pid-{os.getpid()}").touch()
                while not (folder / "gate").exists():
                    time.sleep(0.01)
            yield number

    return numbers


def _pids(folder):
    return {int(file.name.removeprefix("pid-")) for file in folder.glob("pid-*")}


def test_files_are_read_in_their_order_whatever_lies_beside_them(cluster, tmp_path):
    docs = [{"id": number, "text": "wörd " * (number % 7), "big": 2**53 + number if number % 3 else None} for number in range(3000)]
    for part in range(3):
        lines = "".join(json.dumps(doc, ensure_ascii=False) + "\n" for doc in docs[part * 1000 : (part + 1) * 1000])
        (tmp_path / f"part-{part}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "README.md").write_text("# Three files")
    (tmp_path / "_SUCCESS").touch()
    with pytest.raises(RunFailedError, match=r"failed in the source: SourceError: .*part-1\.jsonl\.gz, line 2 is no JSON"):
        _with_a_broken_file(tmp_path).wait()
    for limit in (None, 1500):
        table = rk.Pipeline([keep]).run(str(tmp_path), limit=limit).wait().result.to_pandas().sort_values("id")
        assert table["id"].tolist() == [doc["id"] for doc in docs[:limit]]
        assert table["text"].tolist() == [doc["text"] for doc in docs[:limit]]
    csv = tmp_path / "table.csv"
    csv.write_bytes("id;town\n007;Köln\n".encode("latin-1"))
    table = rk.Pipeline([keep]).run(csv, encoding="latin-1").wait().result.to_pandas()
    assert table.to_dict("records") == [{"id": "007", "town": "Köln"}]
    (tmp_path / "many").mkdir()
    for number in range(900):
        (tmp_path / "many" / f"{number:03}.txt").write_text(f"{number}\n")
    run = rk.Pipeline([keep]).run(tmp_path / "many").wait()
    assert run.view.source_rows == 900
    assert sorted(map(int, run.result.to_pandas()["text"])) == list(range(900))
    (tmp_path / "none").mkdir()
    pd.DataFrame({"x": pd.Series([], dtype="int64")}).to_parquet(tmp_path / "none" / "a.parquet")
    assert len(rk.Pipeline([keep]).run(tmp_path / "none").wait().result.to_pandas()) == 0


def _with_a_broken_file(folder):
    broken = folder / ".broken"
    broken.mkdir()
    (broken / "part-0.jsonl").write_text('{"x": 1}\n' * 10)
    (broken / "part-1.jsonl.gz").write_bytes(gzip.compress(b'{"x": 1}\n{"x": \n'))
    return rk.Pipeline([keep]).run(broken)


def test_rows_flow_before_their_generator_is_over(cluster, until, tmp_path):
    run = rk.Pipeline([keep]).run(_counted(10, waits_at=5, folder=tmp_path), name="flow")
    until(lambda: _rows_in(run) == 5)
    assert run.view.source_rows is None
    (tmp_path / "gate").touch()
    assert _items(run) == list(range(10))
    assert run.view.source_rows == 10
    assert run.view.progress == 1.0


def test_an_endless_generator_ends_at_the_limit_and_may_put_its_things_away(cluster, tmp_path):
    def numbers():
        try:
            yield from itertools.count()
        finally:
            (tmp_path / "put away").touch()

    run = rk.Pipeline([keep]).run(numbers, limit=300)
    assert _items(run) == list(range(300))
    assert run.view.source_rows == 300
    assert (tmp_path / "put away").exists()


@pytest.mark.parametrize("rows", [lambda: iter(range(3)), lambda: map(int, "012"), lambda: pd.DataFrame({"item": [0, 1, 2]})])
def test_a_function_may_return_its_rows_and_holds_no_cpu_meanwhile(cluster, rows):
    @rk.stage(cpus=2)
    def large(row):
        return row

    assert _items(rk.Pipeline([large]).run(rows)) == [0, 1, 2]


def test_a_generator_does_not_run_far_ahead_of_the_stages(cluster, tmp_path):
    made = tmp_path / "made"

    def numbers():
        for number in range(6000):
            if number % 50 == 0:
                made.with_suffix(".new").write_text(str(number))
                made.with_suffix(".new").rename(made)
            yield number

    @rk.stage(cpus=0.25, replicas=1)
    def slow(row):
        time.sleep(0.001)
        return {**row, "ahead": int(made.read_text()) - row["item"]}

    run = rk.Pipeline([slow]).run(numbers)
    table = run.wait().result.to_pandas()
    assert sorted(table["item"]) == list(range(6000))
    assert table["ahead"].max() < 3000


def test_an_error_of_the_generator_is_the_user_s_traceback_and_what_it_printed_is_kept(cluster):
    def broken():
        yield from range(100)
        print("now it breaks")
        raise OSError("the bucket is closed")

    run = rk.Pipeline([keep]).run(broken, name="broken")
    with pytest.raises(RunFailedError, match=r"failed in the source: OSError: the bucket is closed") as caught:
        run.wait()
    assert 'raise OSError("the bucket is closed")' in caught.value.traceback_text
    assert "now it breaks" in run.logs(source="source")


def test_a_generator_that_exits_fails_the_run(cluster):
    def leaves():
        yield 1
        raise SystemExit(3)

    with pytest.raises(RunFailedError, match="SystemExit: 3"):
        rk.Pipeline([keep]).run(leaves).wait()


@pytest.mark.parametrize("made", [7, "a text", {"x": 1}])
def test_a_function_that_makes_no_rows_fails_the_run_and_says_so(cluster, made):
    with pytest.raises(RunFailedError, match=f"made a {type(made).__name__}, neither"):
        rk.Pipeline([keep]).run(lambda: made).wait()


def test_a_row_that_cannot_travel_fails_the_run_and_says_so(cluster):
    def locks():
        yield {"x": threading.Lock()}

    with pytest.raises(RunFailedError, match=r"the source.*cannot pickle"):
        rk.Pipeline([keep]).run(locks).wait()


def test_each_row_comes_once_though_the_generator_s_process_is_killed(cluster, until, tmp_path):
    run = rk.Pipeline([keep]).run(_counted(1500, waits_at=700, folder=tmp_path), name="killed")
    until(lambda: _rows_in(run) == 700)
    os.kill(_pids(tmp_path).pop(), signal.SIGKILL)
    until(lambda: len(_pids(tmp_path)) == 2)
    (tmp_path / "gate").touch()
    assert _items(run) == list(range(1500))
    card = next(card for card in run.view.cards if card.title.startswith("The source's process was lost"))
    assert ("rows given before", "700") in card.facts


def test_a_generator_that_gives_fewer_rows_when_it_is_called_again_fails_the_run(cluster, until, tmp_path):
    def dwindles():
        is_first = not _pids(tmp_path)
        (tmp_path / f"pid-{os.getpid()}").touch()
        yield from range(700 if is_first else 500)
        while is_first:
            time.sleep(0.01)

    run = rk.Pipeline([keep]).run(dwindles, name="dwindles")
    until(lambda: _rows_in(run) == 700)
    os.kill(_pids(tmp_path).pop(), signal.SIGKILL)
    with pytest.raises(RunFailedError, match="called again it gave 500 rows, and at least 700 before"):
        run.wait()


def test_a_generator_that_always_crashes_at_the_same_row_fails_the_run(cluster):
    def crashes():
        yield from range(100)
        ctypes.string_at(0)

    run = rk.Pipeline([keep]).run(crashes)
    with pytest.raises(RunFailedError, match="its process died 3 times before it gave a row"):
        run.wait()
    assert run.view.host_attempts == 1


def test_each_row_comes_once_though_the_host_is_killed(cluster, until, tmp_path):
    run = rk.Pipeline([keep]).run(_counted(1500, waits_at=700, folder=tmp_path), name="host")
    until(lambda: list((Path(run.refresh().folder) / "commits").glob("*.json")))
    (first,) = until(lambda: _pids(tmp_path))
    run.drill("kill-host")
    until(lambda: run.refresh().host_attempts == 2 and len(_pids(tmp_path)) == 2 and not psutil.pid_exists(first))
    (tmp_path / "gate").touch()
    assert _items(run) == list(range(1500))
    assert run.view.source_rows == 1500


def test_a_stopped_run_of_a_generator_is_taken_up_and_counted_right(cluster, until, tmp_path):
    run = rk.Pipeline([keep]).run(_counted(100, waits_at=99, folder=tmp_path), name="stopped")
    until(lambda: _rows_in(run) == 99)
    run.stop()
    with pytest.raises(RunStoppedError):
        run.wait()
    (tmp_path / "gate").touch()
    again = rk.resume("stopped")
    assert _items(again) == list(range(100))
    assert again.view.source_rows == 100


@pytest.mark.parametrize("is_generator", [True, False])
def test_a_source_that_blocks_for_ever_is_stopped_and_nothing_of_it_is_left(cluster, until, tmp_path, is_generator):
    numbers = _counted(10, waits_at=3, folder=tmp_path)
    run = rk.Pipeline([keep]).run(numbers if is_generator else lambda: list(numbers()), name="blocks")
    (pid,) = until(lambda: _pids(tmp_path))
    run.stop()
    with pytest.raises(RunStoppedError):
        run.wait()
    until(lambda: not psutil.pid_exists(pid))
