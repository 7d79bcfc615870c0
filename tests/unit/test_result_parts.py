"""What a pipeline wrote is read as it was made, with Ray Data's types of columns at hand and without."""

import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest

from raykit.client.parts import UnlikePartsError, read, unified
from raykit.engine.pipeline.blocks import batch_of, table_of
from raykit.engine.pipeline.row_order import source_keys
from raykit.engine.pipeline.sink import Sink, SpanResult

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray")

SHAPES = {"alike": [(2, 3), (2, 3)], "ragged": [(1, 2), (2, 2), (3, 2)], "axes": [(2, 2), (2,)], "empty": [(0, 2), (1, 2)]}


def read_without_ray(folder):
    """Read all rows in a process that does not import Ray."""
    code = """
import pickle, sys
import pyarrow.dataset
from raykit.client.parts import read
frame = read(pyarrow.dataset.dataset(sys.argv[1], format="parquet"))
assert "ray" not in sys.modules
sys.stdout.buffer.write(pickle.dumps(frame))
"""
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout)


def written(folder, *commits):
    """Write blocks of rows, as a pipeline would, in so many commits, and give where they are."""
    sink = Sink(folder)
    for number, blocks in enumerate(commits):
        keys = source_keys(0, sum(map(len, blocks)))
        sink.add(SpanResult(span=number, tables=[table_of(batch_of([(rows, 0, len(rows))])) for rows in blocks], keys=keys))
        sink.commit()
    return sink.parts


def found(folder):
    return pyarrow.dataset.dataset(folder, format="parquet")


def told(tensors):
    return sorted((each.shape, each.dtype, each.tolist()) for each in tensors)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_tensors_have_their_shapes_and_types_however_they_were_written(tmp_path, shapes, dtype):
    tensors = [np.arange(np.prod(shape)).reshape(shape).astype(dtype) for shape in shapes]
    rows = [{"x": each} for each in tensors]
    ways = {"a block": ([rows],), "a commit": ([[row] for row in rows],), "commits": tuple([[row]] for row in rows)}
    for name, commits in ways.items():
        folder = written(tmp_path / name, *commits)
        assert told(read(found(folder))["x"]) == told(tensors), name
    assert told(read_without_ray(tmp_path / "commits" / "draft")["x"]) == told(tensors)
    assert told(read_without_ray(tmp_path / "a commit" / "draft")["x"]) == told(tensors)


def test_tensors_of_unlike_shapes_in_one_commit_are_one_file(tmp_path):
    folder = written(tmp_path, [[{"x": np.ones((count, 2))}] for count in range(1, 9)])
    assert len(list(folder.iterdir())) == 1


def test_what_one_part_has_and_another_has_not_is_empty_there(tmp_path):
    folder = written(tmp_path, [[{"a": 1}]], [[{"b": "x", "a": None}]], [[{"t": np.ones((2, 2)), "a": 0.5}]])
    frame = read(found(folder))
    assert frame["a"].isna().tolist() == [False, True, False]
    assert frame["b"].tolist()[1] == "x"
    assert frame["t"][2].shape == (2, 2)
    assert frame["t"][0] is None
    assert unified(found(folder)).schema.field("a").type == pa.float64()


def test_what_left_no_row_is_an_empty_table(tmp_path):
    assert read(found(written(tmp_path))).empty


def test_columns_that_do_not_go_together_are_said_and_read_as_they_are(tmp_path):
    folder = written(tmp_path, [[{"x": 1}], [{"x": "one"}]], [[{"x": 2}]])
    with pytest.raises(UnlikePartsError, match="x"):
        unified(found(folder))
    assert sorted(map(str, read(found(folder))["x"])) == ["1", "2", "one"]
    assert len(read(found(folder), rows=2)) == 2
