"""The answers of a batch, apart."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from raykit.engine.service.split import split

IDS = [13835058055282163713, 5, 9007199254740993]


@pytest.mark.parametrize(
    "column",
    [
        IDS,
        tuple(IDS),
        np.array(IDS, dtype=np.uint64),
        np.array(IDS, dtype=object),
        pd.Series(IDS, index=[2, 0, 1]),
        pa.array(IDS, pa.uint64()),
    ],
    ids=lambda column: type(column).__name__,
)
def test_columns_of_any_kind_are_split_exactly(column):
    rows = split({"id": column, "mark": [True, 7, None]}, 3)
    assert [int(row["id"]) for row in rows] == IDS
    assert [row["mark"] for row in rows] == [True, 7, None]
    assert rows[0]["mark"] is True


def test_tensors_tables_and_lists_are_split():
    tensor = torch.arange(6.0, requires_grad=True).reshape(3, 2)
    assert [each.tolist() for each in split(tensor, 3)] == tensor.tolist()
    assert [row["y"].tolist() for row in split({"y": tensor}, 3)] == tensor.tolist()
    rows = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    frame = pd.DataFrame(rows, index=["p", "q"])
    for made in (rows, frame, pa.Table.from_pylist(rows), np.array(rows)):
        assert split(made, 2) == rows
    assert split(frame[frame["a"] > 1], 1) == rows[1:]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"y": [1, 2], "z": [1]}, "the column 'z' has 1 values for 2 requests"),
        ({"y": [1, 2], "version": "v1"}, "the column 'version' of a batch is one str"),
        ({"y": {1, 2}}, "the column 'y' of a batch is one set"),
        ({"y": np.array(3)}, "the column 'y' of a batch is one ndarray"),
        ({"y": torch.tensor(3)}, "the column 'y' of a batch is one Tensor"),
        ({"y": 3.0}, "the column 'y' of a batch is one float"),
        ({}, "an empty dict was returned for 2 requests"),
        ([1, 2, 3], "the result has 3 values for 2 requests"),
        ("ab", "the result of a batch is one str"),
        (None, "the result of a batch is one NoneType"),
        ((each for each in "ab"), "the result of a batch is one generator"),
        (pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]), r"two columns of a table have the same name: \['a', 'a'\]"),
        (pd.DataFrame({"a": [1]}), "the table has 1 values for 2 requests"),
    ],
    ids=str,
)
def test_what_has_no_value_for_each_request_is_refused(made, words):
    with pytest.raises((TypeError, ValueError), match=words):
        split(made, 2)
