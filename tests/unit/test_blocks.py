"""Rows and batches of what users' stages return: tensors, tables, lists of rows."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from raykit.engine.pipeline.blocks import as_batch, batch_of, table_of

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_a_batch_of_tensors_becomes_arrays_whatever_their_type(dtype):
    made = as_batch({"x": torch.ones(3, 2, dtype=dtype), "y": torch.ones(3, dtype=dtype)})
    assert made["x"].shape == (3, 2)
    assert made["x"].tolist() == torch.ones(3, 2, dtype=dtype).tolist()
    assert table_of(made).num_rows == 3


def test_a_batch_may_be_a_table_or_a_list_of_rows():
    columns = {"n": [1, 2, 3], "text": ["a", "b", "c"]}
    rows = [{"n": n, "text": text} for n, text in zip(*columns.values(), strict=True)]
    for made in (columns, pd.DataFrame(columns), pa.table(columns), rows):
        batch = as_batch(made)
        assert {name: column.tolist() for name, column in batch.items()} == columns
    with pytest.raises(TypeError, match="not a list"):
        as_batch([1, 2])


@pytest.mark.parametrize(("value", "kind"), [(3, "int"), ("three", "str"), (np.array(3), "ndarray"), (torch.tensor(3), "Tensor")])
def test_a_column_of_a_batch_that_is_one_value_is_refused_by_its_name(value, kind):
    with pytest.raises(TypeError, match=f"the column k of a batch is one {kind}, not an array"):
        as_batch({"x": [1, 2, 3], "k": value})


@pytest.mark.parametrize(
    ("rows", "words"), [([{}], "has no columns: return None"), ([{1: 2}], "a column is called 1"), ({1: np.ones(2)}, "is called 1")]
)
def test_rows_that_have_no_columns_or_a_column_without_a_name_are_refused(rows, words):
    with pytest.raises(TypeError, match=words):
        table_of(rows)


def test_a_gradient_that_is_wanted_does_not_keep_a_tensor_from_being_an_array():
    tensor = torch.nn.Linear(2, 2)(torch.ones(3, 2))
    assert tensor.requires_grad
    assert as_batch({"x": tensor})["x"].shape == (3, 2)
    rows = [{"x": each} for each in tensor]
    assert batch_of([(rows, 0, 3)])["x"].shape == (3, 2)


@pytest.mark.parametrize(
    "values",
    [
        [1, "a"],
        ["a", 1],
        [1.5, None, "a"],
        [np.str_("a"), 2],
        [np.ones(2), np.ones(3)],
        [True, None],
        [[1], 2],
        [1, [1, [2]]],
        [np.datetime64("2020-01-01"), 1],
        [np.array(["a"]), np.array([1])],
    ],
    ids=str,
)
def test_values_of_several_types_are_in_a_batch_what_they_were(values):
    batch = batch_of([([{"x": value} for value in values], 0, len(values))])
    assert list(map(str, batch["x"])) == list(map(str, values))
    assert [type(value) for value in batch["x"]] == [type(value) for value in values]


def test_rows_of_tensors_are_stacked_for_a_batch():
    rows = [{"x": torch.full((2,), float(at)), "name": str(at)} for at in range(3)]
    batch = batch_of([(rows, 0, 2), (rows, 2, 3)])
    assert isinstance(batch["x"], np.ndarray)
    assert batch["x"].tolist() == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
