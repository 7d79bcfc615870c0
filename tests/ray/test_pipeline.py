import os
import time

import pandas as pd
import pytest

import raykit as rk
from raykit.errors import CapacityError, InputError, OptionError, RunFailedError, RunStoppedError, SourceError

pytestmark = pytest.mark.ray


@rk.stage(cpus=0.5)
def twice(row):
    yield {"x": row["item"] * 2}
    yield {"x": row["item"] * 2 + 1}


@rk.stage(cpus=0.5, batch=16)
class Add:
    def __init__(self):
        self.one = 1

    def __call__(self, batch):
        return {"x": batch["x"], "y": batch["x"] + self.one}


@rk.stage(cpus=0.5)
def fail_at_seven(row):
    return {"z": 1 / (row["x"] - 7)}


@rk.stage(cpus=0.5)
def drop_odd(row):
    return row if row["x"] % 2 == 0 else None


@rk.stage(cpus=0.5)
def as_tensors(row):
    import torch

    x = torch.full((2,), float(row["item"]))
    return {"x": x, "wanted": x.requires_grad_() * 2}


def test_rows_of_tensors_are_written_as_arrays_also_where_a_gradient_is_wanted(cluster):
    table = rk.Pipeline([as_tensors]).run(range(3), name="tensors").wait().result.to_pandas()
    rows = zip(table["x"], table["wanted"], strict=True)
    assert sorted((list(x), list(wanted)) for x, wanted in rows) == [([n, n], [2 * n, 2 * n]) for n in (0.0, 1.0, 2.0)]


def test_a_list_of_dicts_of_tensors_is_a_source_of_rows_and_batches(cluster):
    import torch

    @rk.stage
    def scaled(row):
        return {**row, "twice": row["x"] * 2}

    @rk.stage(batch=3)
    def summed(batch):
        return {**batch, "sum": batch["x"].sum(axis=(1, 2))}

    rows = [{"x": torch.full((2, 3), float(n), dtype=torch.float16), "y": n} for n in range(7)]
    table = rk.Pipeline([scaled, summed]).run(rows, name="tensor-rows").wait().result.to_pandas()
    assert table["y"].tolist() == list(range(7))
    for n, (x, twice, total) in enumerate(zip(table["x"], table["twice"], table["sum"], strict=True)):
        assert x.dtype == twice.dtype == "float16"
        assert torch.equal(torch.from_numpy(x.copy()), rows[n]["x"])
        assert torch.equal(torch.from_numpy(twice.copy()), rows[n]["x"] * 2)
        assert total == rows[n]["x"].sum()


def test_every_row_of_every_stage_comes_out_once_and_is_counted(cluster):
    run = rk.Pipeline([twice, Add]).run(range(300), name="rows").wait()
    table = run.result.to_pandas().sort_values("x")
    assert table["x"].tolist() == list(range(600))
    assert (table["y"] == table["x"] + 1).all()
    assert [(stage.rows_in, stage.rows_out) for stage in run.view.stages] == [(300, 600), (600, 600)]
    assert run.view.progress == 1.0


def test_none_is_no_row(cluster):
    run = rk.Pipeline([twice, drop_odd]).run(range(20)).wait()
    assert sorted(run.result.to_pandas()["x"]) == list(range(0, 40, 2))


def test_a_decorated_function_is_still_a_function():
    assert list(twice({"item": 3})) == [{"x": 6}, {"x": 7}]


def test_an_error_of_a_stage_is_the_user_s_traceback_with_the_stage_s_name(cluster):
    with pytest.raises(RunFailedError, match=r"failed in fail_at_seven: ZeroDivisionError") as caught:
        rk.Pipeline([twice, fail_at_seven]).run(range(50)).wait()
    assert "1 / (row" in caught.value.traceback_text


def test_an_error_of_a_stage_s_init_ends_the_run(cluster):
    @rk.stage(cpus=0.5)
    class Broken:
        def __init__(self):
            raise RuntimeError("no weights here")

        def __call__(self, row):
            return row

    with pytest.raises(RunFailedError, match="no weights here"):
        rk.Pipeline([Broken]).run(range(3)).wait()


def test_what_stages_print_is_in_the_run_s_log(cluster):
    @rk.stage(cpus=0.5)
    class Talks:
        def __init__(self):
            print("built here")

        def __call__(self, row):
            print("took", row["item"])
            return row

    run = rk.Pipeline([Talks]).run(range(3)).wait()
    printed = run.logs()
    assert "built here" in printed
    assert "took 2" in printed


def test_a_stopped_pipeline_ends_and_gives_its_slots_back(cluster, until):
    @rk.stage(cpus=0.5)
    def slow(row):
        time.sleep(0.05)
        return row

    run = rk.Pipeline([slow]).run(range(100_000), name="slow")
    until(lambda: run.refresh().stages and run.view.stages[0].rows_in)
    run.stop()
    with pytest.raises(RunStoppedError):
        run.wait()
    assert until(lambda: rk.status().num_cpus_free == 2)


def test_tables_and_files_are_sources_and_a_folder_is_a_sink(cluster, tmp_path):
    source = tmp_path / "in.csv"
    pd.DataFrame({"item": [1, 2, 3]}).to_csv(source, index=False)
    out = tmp_path / "out"
    rk.Pipeline([twice]).run(str(source), output=str(out)).wait()
    assert sorted(pd.read_parquet(out)["x"]) == [2, 3, 4, 5, 6, 7]
    run = rk.Pipeline([twice]).run(pd.DataFrame({"item": [1]})).wait()
    assert sorted(run.result.to_pandas()["x"]) == [2, 3]


def test_a_file_that_cannot_be_read_is_told_with_what_to_do(cluster, tmp_path):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "bad.txt").write_bytes(b"K\xf6ln")
    with pytest.raises(RunFailedError, match=r"bad\.txt is not utf-8: byte 0xf6 does not belong there\. .*--encoding latin-1"):
        rk.Pipeline([twice]).run(str(tmp_path / "*.txt")).wait()


def test_tensors_of_any_shape_objects_and_columns_of_several_types_are_written_and_read_as_they_were_made(cluster):
    @rk.stage(cpus=1)
    def make(row):
        import numpy as np

        count = row["item"]
        return {"image": np.full((count % 3 + 1, 2), count), "z": complex(count, 1), "mixed": count if count % 2 else str(count)}

    frame = rk.Pipeline([make]).run(range(6)).wait().result.to_pandas()
    assert sorted(image.shape for image in frame["image"]) == [(1, 2), (1, 2), (2, 2), (2, 2), (3, 2), (3, 2)]
    assert sorted(z.real for z in frame["z"]) == list(range(6))
    assert sorted(frame["mixed"], key=int) == ["0", 1, "2", 3, "4", 5]


def test_a_function_may_make_the_dataset_in_the_cluster(cluster):
    def numbers():
        import ray.data

        return ray.data.range(10).map_batches(lambda batch: {"item": batch["id"]})

    run = rk.Pipeline([twice]).run(numbers).wait()
    assert run.result.count() == 20


def test_a_dataset_of_the_user_gets_the_cpus_that_the_stages_take_after_it(cluster):
    @rk.stage(cpus=2)
    def keep(row):
        return row

    def numbers():
        import ray.data

        return ray.data.range(10).map_batches(lambda batch: {"item": batch["id"]})

    assert rk.Pipeline([keep]).run(numbers).wait().result.count() == 10


def test_a_limit_takes_the_first_rows_only(cluster):
    assert rk.Pipeline([twice]).run(range(1000), limit=5).wait().result.count() == 10


@pytest.mark.parametrize("source", [[], iter(()), "/no/such/file.parquet", "*.nothing", 7])
def test_a_source_that_is_empty_or_not_there_is_refused_before_anything_starts(source):
    with pytest.raises(SourceError):
        rk.Pipeline([twice]).run(source)


def test_lambdas_are_stages_called_by_their_places(cluster):
    stages = [lambda row: {"x": row["item"] + 1}, rk.stage(cpus=0.5)(lambda row: {"x": row["x"] * 2})]
    run = rk.Pipeline(stages).run(range(3), name="lambdas").wait()
    assert run.result.to_pandas()["x"].tolist() == [2, 4, 6]
    assert [stage.name for stage in run.view.stages] == ["lambda-1", "lambda-2"]


@pytest.mark.parametrize("replicas", ["2", (1, 2, 3), (1, "4"), 1.5])
def test_replicas_that_are_no_numbers_are_refused_in_words(replicas):
    with pytest.raises(OptionError, match="replicas of a stage is"):
        rk.stage(replicas=replicas)


def test_no_stage_is_refused_before_anything_starts():
    with pytest.raises(InputError, match="no stage"):
        rk.Pipeline([]).run([1])


def test_the_result_outlives_the_cluster(own):
    own("gone")
    result = rk.Pipeline([twice]).run(range(4)).wait().result
    rk.down("gone")
    assert len(result) == 8


def test_a_source_with_an_error_fails_the_run_with_the_user_s_words(cluster):
    def broken():
        raise OSError("the bucket is closed")

    with pytest.raises(RunFailedError, match="the bucket is closed"):
        rk.Pipeline([twice]).run(broken).wait()


def test_stages_run_in_processes_of_their_own(cluster):
    @rk.stage(cpus=0.5)
    def first(row):
        return {"a": os.getpid()}

    @rk.stage(cpus=0.5)
    def second(row):
        return {"a": row["a"], "b": os.getpid()}

    table = rk.Pipeline([first, second]).run(range(5)).wait().result.to_pandas()
    assert set(table["a"]).isdisjoint(table["b"])


def test_rows_that_differ_are_batched_by_what_they_cost(cluster):
    rows = [{"name": f"{seconds} s", "seconds": seconds} for seconds in (1, 2, 30, 3, 4, 5, 6, 80)] + [
        {"name": "broken", "seconds": None}
    ]

    @rk.stage(cpus=0.5, batch=4, cost="seconds", max_cost=10, on_error="quarantine")
    def listen(batch):
        return {
            "name": batch["name"],
            "mates": [len(batch["name"])] * len(batch["name"]),
            "of": [sum(batch["seconds"])] * len(batch["name"]),
        }

    result = rk.Pipeline([listen]).run(rows).wait().result
    table = result.to_pandas().set_index("name")
    assert sorted(table.index) == sorted(row["name"] for row in rows[:-1])
    assert all(total <= 10 for name, total in table["of"].items() if name not in ("30 s", "80 s"))
    assert table.loc[["30 s", "80 s"], "mates"].tolist() == [1, 1]
    assert table["mates"].max() > 1
    assert result.quarantine.to_pandas()["error"].str.contains("TypeError").tolist() == [True]


NOTEBOOK = """
import dataclasses
import enum


class Kind(enum.Enum):
    CAT = "cat"
    DOG = "dog"


@dataclasses.dataclass(frozen=True)
class Box:
    side: int
    num_seen = 0


def tag(row):
    Box.num_seen += 1
    return {**row, "is_cat": row["kind"] is Kind.CAT, "is_box": isinstance(row["box"], Box), "seen": Box.num_seen}


def route(row):
    by_key = {Kind.CAT: 1, Kind.DOG: 2}[row["kind"]]
    return {**row, "same": row["box"] == Box(3), "by_key": by_key, "still_cat": row["kind"] is Kind.CAT}
"""


def test_classes_of_the_notebook_are_the_same_in_rows_code_and_results(cluster):
    def started():
        names = {"__name__": "__main__"}
        exec(NOTEBOOK, names)
        rows = [{"id": n, "kind": names["Kind"].CAT if n % 2 else names["Kind"].DOG, "box": names["Box"](3)} for n in range(9)]
        return names, rows

    plain, rows = started()
    expected = [plain["route"](plain["tag"](row)) for row in rows]
    names, rows = started()
    stages = [rk.stage(cpus=0.5, replicas=1)(names[name]) for name in ("tag", "route")]
    table = rk.Pipeline(stages).run(rows, name="classes").wait().result.to_pandas()
    for name in ("id", "is_cat", "is_box", "seen", "same", "by_key", "still_cat"):
        assert table[name].tolist() == [row[name] for row in expected], name
    assert all(kind in set(names["Kind"]) for kind in table["kind"])
    assert table["box"].tolist() == [names["Box"](3)] * 9
    assert names["Box"].num_seen == 0, "the notebook's own class is as it was"


def test_rows_come_back_in_the_order_of_the_source(cluster):
    @rk.stage(cpus=0.5, replicas=2)
    def uneven(row):
        time.sleep(0.002 * (row["item"] % 7))
        for copy in range(row["item"] % 3):
            yield {"x": 10 * row["item"] + copy}

    @rk.stage(cpus=0.5, batch=8, replicas=2)
    def filtered(batch):
        return {"x": batch["x"][batch["x"] % 4 != 0]}

    result = rk.Pipeline([uneven, filtered]).run(range(500), name="order").wait().result
    expected = [10 * item + copy for item in range(500) for copy in range(item % 3) if (10 * item + copy) % 4]
    assert result.to_pandas()["x"].tolist() == expected
    assert result.head(7)["x"].tolist() == expected[:7]


@rk.stage
def plain(row):
    return {"i": row["i"] + 1}


def test_stages_share_cpus_where_the_cluster_has_fewer_than_stages_and_the_view_says_so(cluster):
    stages = [plain, rk.stage(name="second")(lambda row: {"i": row["i"] * 2}), rk.stage(name="third")(lambda row: row)]
    run = rk.Pipeline(stages).run([{"i": n} for n in range(50)], name="shared").wait()
    assert run.result.to_pandas()["i"].tolist() == [(n + 1) * 2 for n in range(50)]
    card = next(card for card in run.view.cards if card.title == "Stages share CPUs")
    assert ("why", "3 stages ask for more than the 2 CPUs of the cluster") in card.facts
    with pytest.raises(CapacityError):
        rk.Pipeline([rk.stage(cpus=3)(lambda row: row)]).run([1])
    with pytest.raises(CapacityError):
        rk.Pipeline([rk.stage(replicas=3)(lambda row: row)]).run([1])


def test_a_stage_has_as_many_replicas_as_make_it_fast_where_none_are_asked_for(cluster):
    @rk.stage
    def slow(row):
        time.sleep(0.05)
        return {"pid": os.getpid()}

    assert rk.Pipeline([slow]).run(range(200), name="many").wait().result.to_pandas()["pid"].nunique() == 2


@rk.stage(cpus=0.5, on_error="quarantine")
def unwritable(row):
    import threading

    return {"x": row["x"], "lock": threading.Lock() if row["x"] == 2 else None}


@rk.stage(cpus=0.5)
def after(row):
    return row


@pytest.mark.parametrize("stages", [[unwritable], [unwritable, after]], ids=["last", "before another"])
def test_a_row_of_which_something_was_made_that_cannot_be_sent_on_is_put_aside_or_named(cluster, stages):
    rows = [{"x": n} for n in range(6)]
    run = rk.Pipeline(stages).run(rows, name="unwritable").wait()
    assert run.result.to_pandas()["x"].tolist() == [0, 1, 3, 4, 5]
    assert run.quarantine.to_pandas()["row"].tolist() == [{"x": 2}]

    @rk.stage(cpus=0.5)
    def strict(row):
        return unwritable(row)

    with pytest.raises(RunFailedError, match=r"strict: TypeError: .*pickle.*\(row \{'x': 2\}\)") as caught:
        rk.Pipeline([strict, *stages[1:]]).run(rows, name="strict").wait()
    assert "on_error='quarantine'" in caught.value.traceback_text
