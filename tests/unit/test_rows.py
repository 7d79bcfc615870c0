"""The forms in which training data comes."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raykit.engine.files import blocks
from raykit.engine.training.feed import Cut
from raykit.engine.training.rows import Ahead, loaded, parquet_rows, source_of, stored_rows, to_device
from raykit.engine.training.stored import StoredBlocks, store
from raykit.errors import InputError
from raykit.store.files import listed, path_source


@pytest.fixture
def stored(tmp_path):
    """Two files of three row groups, with numbers, a tensor, a list and a text in each row."""
    for number, rows in enumerate((range(10), range(10, 25))):
        count = len(rows)
        tensors = np.arange(count * 4, dtype=np.float32).reshape(count, 2, 2) + 100 * rows[0]
        table = pa.table(
            {
                "x": pa.array(list(rows)),
                "image": pa.FixedShapeTensorArray.from_numpy_ndarray(tensors),
                "pair": pa.array([[row, row + 1] for row in rows]),
                "name": pa.array([f"row {row}" for row in rows]),
            }
        )
        pq.write_table(table, tmp_path / f"part-{number}.parquet", row_group_size=10)
    return tmp_path


@pytest.mark.parametrize("path", ["", "/*.parquet", "/part-1.parquet"])
def test_parquet_rows_come_by_index_in_the_order_that_was_asked(stored, path):
    rows = parquet_rows(path_source(f"{stored}{path}"))
    assert rows.num_rows == (15 if "part-1" in path else 25)
    first = 10 if "part-1" in path else 0
    at = np.array([14, 0, 7, 3])
    batch = rows.take(at)
    assert batch["x"].tolist() == (at + first).tolist()
    assert batch["name"] == [f"row {row}" for row in at + first]
    assert batch["pair"].tolist() == [[row, row + 1] for row in at + first]
    assert batch["image"].shape == (4, 2, 2)
    assert batch["image"].dtype == torch.float32


def test_parquet_at_a_url_is_read_too(stored):
    assert parquet_rows(path_source(f"file://{stored}")).num_rows == 25


def test_parquet_that_is_not_there_or_empty_is_refused(tmp_path):
    with pytest.raises(InputError, match="Nothing is at"):
        path_source(str(tmp_path / "none"))
    pq.write_table(pa.table({"x": pa.array([], pa.int64())}), tmp_path / "empty.parquet")
    with pytest.raises(InputError, match="no rows"):
        parquet_rows(path_source(str(tmp_path)))


def _stored(path, folder):
    source = path_source(str(path))
    folder.mkdir()
    store(blocks(listed(source).files, source), folder)
    return stored_rows(StoredBlocks.at(str(folder)))


def test_files_without_an_index_give_the_batches_of_a_parquet_file(tmp_path):
    frame = pd.DataFrame(
        {
            "n": [1, 2, 3, 4],
            "x": [0.5, 1.0, 2.0, 3.0],
            "pair": [[1, 2], [3, 4], [5, 6], [7, 8]],
            "name": ["a", "b", "ä", "d"],
            "is_good": [True, False, True, True],
        }
    )
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_json(tmp_path / "a.jsonl.gz", orient="records", lines=True)
    at = np.array([3, 0, 2])
    wanted = parquet_rows(path_source(str(tmp_path / "a.parquet"))).take(at)
    found = _stored(tmp_path / "a.jsonl.gz", tmp_path / "json").take(at)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].tolist() == values.tolist() if isinstance(values, torch.Tensor) else found[name] == values
        assert isinstance(found[name], list) or found[name].dtype == values.dtype
    frame.drop(columns="pair").to_csv(tmp_path / "a.csv", index=False)
    rows = _stored(tmp_path / "a.csv", tmp_path / "csv")
    assert rows.take(at)["n"].tolist() == wanted["n"].tolist()
    assert rows.rows(at)[0]["name"] == "d"


def test_a_column_has_one_type_in_all_blocks(tmp_path):
    for name, frame in (("a", {"x": [1, 2], "n": [1, None], "id": [2**53 + 1, None]}), ("b", {"x": [0.5], "n": [3], "y": ["q"]})):
        pq.write_table(pa.table(frame), tmp_path / f"{name}.parquet")
        lines = (
            pa.table(frame).to_pandas().to_json(orient="records", lines=True)
            if name == "b"
            else ('{"x": 1, "n": 1, "id": 9007199254740993}\n{"x": 2, "n": null, "id": null}\n')
        )
        (tmp_path / f"{name}.jsonl").write_text(lines)
    for rows in (parquet_rows(path_source(f"{tmp_path}/*.parquet")), _stored(f"{tmp_path}/*.jsonl", tmp_path / "stored")):
        batch = rows.take(np.array([0, 1, 2]))
        assert batch["x"].tolist() == [1.0, 2.0, 0.5]
        assert batch["n"][[0, 2]].tolist() == [1.0, 3.0]
        assert batch["n"].isnan().tolist() == [False, True, False]
        assert batch["id"] == [2**53 + 1, None, None]
        assert batch["y"] == [None, None, "q"]
        for at in (0, 2):
            assert rows.take(np.array([at]))["x"].dtype == torch.float64


def test_every_row_of_a_loop_is_seen_once_an_epoch_whatever_the_form(stored):
    forms = [str(stored), {"x": np.arange(25)}, [{"x": number} for number in range(25)], range(25)]
    for data in forms:
        source = source_of(data, batch_size=4, epochs=2, seed=1)
        assert source.num_steps() == 14
        seen = []
        for step in range(14):
            batch = source.take(source.batch(step))
            seen += (batch["x"] if isinstance(batch, dict) else batch).tolist()
        assert sorted(seen) == sorted([*range(25)] * 2)
        assert source.batch(14) is None
        assert [source.epoch_of(step) for step in (0, 6, 7)] == [0, 0, 1]


class Stream:
    """Rows that can only be gone through, from the first one each time."""

    def __iter__(self):
        return iter({"x": number} for number in range(10))


def test_a_stream_gives_the_same_batch_when_a_step_is_done_again_and_a_joiner_goes_through_what_it_missed():
    source = source_of(Stream(), batch_size=4, epochs=2, seed=0)
    assert source.num_steps() is None
    assert source.take(source.batch(1))["x"].tolist() == [4, 5, 6, 7]
    assert source.take(source.batch(1))["x"].tolist() == [4, 5, 6, 7]
    assert source.take(source.batch(2))["x"].tolist() == [8, 9]
    assert source.take(source.batch(0))["x"].tolist() == [0, 1, 2, 3]
    joiner = source_of(Stream(), batch_size=4, epochs=2, seed=0)
    assert joiner.take(joiner.batch(4))["x"].tolist() == [4, 5, 6, 7]
    assert joiner.epoch_of(4) == 1
    assert joiner.batch(6) is None
    assert joiner.num_steps() == 6


@pytest.mark.parametrize("kind", ["dict", "frame", "table", "list", "parquet", "stream"])
def test_rows_are_collated_as_one_says_whatever_the_form(kind, tmp_path):
    lengths, texts = [3, 1, 2, 4], ["a", "b", "c", "d"]
    columns = {"length": lengths, "text": texts}
    rows = [{"length": length, "text": text} for length, text in zip(lengths, texts, strict=True)]
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    data = {
        "dict": columns,
        "frame": pd.DataFrame(columns),
        "table": pa.table(columns),
        "list": rows,
        "parquet": tmp_path / "rows.parquet",
        "stream": dict(enumerate(rows)).values(),
    }[kind]

    def padded(rows):
        longest = max(int(row["length"]) for row in rows)
        return torch.tensor([[1] * int(row["length"]) + [0] * (longest - int(row["length"])) for row in rows])

    plain = source_of(data, batch_size=4, epochs=1, seed=0)
    batch = plain.take(plain.batch(0))
    order = [texts.index(text) for text in batch["text"]]
    assert isinstance(batch["text"], list)
    assert sorted(order) == [0, 1, 2, 3]
    assert batch["length"].tolist() == [lengths[place] for place in order]
    source = source_of(data, batch_size=4, epochs=1, seed=0, collate=padded)
    assert source.take(source.batch(0)).sum(1).tolist() == batch["length"].tolist()


def test_a_batch_that_knows_how_to_move_is_moved_by_itself():
    class Encoding(dict):
        def to(self, device):
            return Encoding({name: (value, device) for name, value in self.items()})

    moved = to_device([Encoding(ids=1)], torch.device("cpu"))
    assert isinstance(moved[0], Encoding)
    assert moved[0]["ids"] == (1, torch.device("cpu"))


def test_a_loader_keeps_its_batches_collation_and_size():
    loader = torch.utils.data.DataLoader(range(7), batch_size=3, collate_fn=sum, num_workers=2, prefetch_factor=4)
    source, batch_size, num_workers, prefetch = loaded(loader, epochs=2, seed=0, first_epoch=0, num_workers=0, prefetch=2)
    assert (batch_size, num_workers, prefetch) == (3, 2, 4)
    assert [source.take(source.batch(step)) for step in range(6)] == [3, 12, 6] * 2
    assert (source.num_steps(), source.batch(6), source.epoch_of(4)) == (6, None, 1)


def test_a_shuffled_loader_gives_each_epoch_an_order_of_its_own_and_the_same_to_every_rank():
    def epochs():
        loader = torch.utils.data.DataLoader(range(20), batch_size=20, shuffle=True)
        source, *_ = loaded(loader, epochs=3, seed=1, first_epoch=0, num_workers=0, prefetch=2)
        return [source.batch(step) for step in range(3)]

    first, again = epochs(), epochs()
    assert first == again
    assert len({tuple(each) for each in first}) == 3
    assert all(sorted(each) == list(range(20)) for each in first)


@pytest.mark.parametrize("data", [[], {"x": [1, 2], "y": [1]}, {"x": []}, 7, iter([1])])
def test_data_that_is_no_training_set_is_refused(data):
    with pytest.raises(InputError):
        source_of(data, batch_size=1, epochs=1, seed=0)


def test_batches_taken_ahead_are_those_of_the_step_and_of_the_world_also_when_it_changes():
    source = source_of({"x": np.arange(40)}, batch_size=8, epochs=1, seed=3)
    ahead = Ahead(source, num_workers=1, prefetch=2)
    for step, world_size in ((0, 2), (1, 2), (1, 3), (2, 3), (4, 1)):
        cut = Cut(rank=world_size - 1, world_size=world_size)
        assert ahead.take(step, cut)["x"].tolist() == cut.of(source.batch(step)).tolist()
