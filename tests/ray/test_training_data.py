"""Training data of every form, in a run that loses a rank: each row is seen once an epoch."""

import os
import signal

import pandas as pd
import pytest

import raykit as rk
from raykit.errors import RunFailedError

pytestmark = pytest.mark.ray

ROWS, BATCH, EPOCHS = 200, 8, 8


def total(data, pause_s=0.0, **options):
    """Count with the model: each step adds the mean of its rows' numbers to the one weight; all batches are full."""
    import time

    import torch

    import raykit as rk

    torch.set_default_dtype(torch.float64)
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    for batch in job.batches(data, batch_size=BATCH, epochs=EPOCHS, **options):
        (-model(batch["x"].double().reshape(-1, 1))).mean().backward()
        time.sleep(pause_s)
        job.commit()
    return float(model.weight) * BATCH, job.num_rows


def dataset():
    import ray.data

    return ray.data.range(ROWS).map_batches(lambda batch: {"x": batch["id"]})


class Stream:
    def __iter__(self):
        return iter({"x": number} for number in range(ROWS))


EXPECTED = sum(range(ROWS)) * EPOCHS, ROWS * EPOCHS


@pytest.fixture
def files(tmp_path):
    for number in range(4):
        rows = range(number * ROWS // 4, (number + 1) * ROWS // 4)
        pd.DataFrame({"x": rows}).to_parquet(tmp_path / f"part-{number}.parquet", row_group_size=20)
    return str(tmp_path)


def _disturbed(data, until, **options):
    run = rk.train(total, data, 0.01, workers=(1, 2), **options)
    until(lambda: run.refresh().step > 10 and any(rank.rank == 1 for rank in run.view.ranks))
    os.kill(next(rank.pid for rank in run.view.ranks if rank.rank == 1), signal.SIGKILL)
    run.wait()
    assert run.view.cards
    return run.result


def test_parquet_files_are_seen_row_by_row_once_an_epoch_also_when_a_rank_is_lost(cluster, until, files):
    assert _disturbed(files, until) == pytest.approx(EXPECTED)


def test_files_of_json_lines_are_stored_once_and_their_rows_are_seen_once_an_epoch(cluster, tmp_path):
    for number in range(2):
        rows = range(number * ROWS // 2, (number + 1) * ROWS // 2)
        pd.DataFrame({"x": rows}).to_json(tmp_path / f"part-{number}.jsonl.gz", orient="records", lines=True)
    (tmp_path / "README.md").write_text("# Two files")
    run = rk.train(total, str(tmp_path), workers=2, name="lines").wait()
    assert run.result == pytest.approx(EXPECTED)
    assert [path.name for path in _folder(run).iterdir()] == ["1"]
    assert "is not read, as no json: README.md" in run.logs()


@pytest.mark.slow
def test_a_stream_is_seen_once_an_epoch_also_when_a_rank_is_lost(cluster, until):
    assert _disturbed(Stream(), until) == pytest.approx(EXPECTED)


@pytest.mark.slow
def test_rows_taken_ahead_by_processes_are_seen_once_an_epoch_also_when_a_rank_is_lost(cluster, until, files):
    assert _disturbed(files, until, num_workers=1) == pytest.approx(EXPECTED)


def test_a_function_that_makes_a_ray_dataset_is_called_once_and_its_rows_are_seen_once_an_epoch(cluster, until):
    run = rk.train(total, dataset, workers=1, name="made").wait()
    assert run.result == pytest.approx(EXPECTED)
    assert [path.name for path in _folder(run).iterdir()] == ["1"]


def _folder(run):
    from pathlib import Path

    return Path(run.view.folder) / "data"


def test_a_ray_dataset_that_finds_no_free_cpu_says_so_instead_of_waiting(cluster):
    with pytest.raises(RunFailedError, match="Ray Data needs a free CPU"):
        rk.train(total, dataset, workers=2).wait()


def test_a_dataset_without_rows_or_of_another_kind_is_told(cluster):
    def empty():
        import ray.data

        return ray.data.from_items([])

    for make, words in ((empty, "no rows"), (lambda: 7, "made a int")):
        with pytest.raises(RunFailedError, match=words):
            rk.train(total, make, workers=1).wait()


def test_an_iterator_is_refused_because_a_joiner_would_find_it_empty(cluster):
    def once():
        import torch

        model = torch.nn.Linear(1, 1)
        job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
        next(job.batches(iter([1, 2]), batch_size=1))

    with pytest.raises(RunFailedError, match="gone through only once"):
        rk.train(once).wait()
