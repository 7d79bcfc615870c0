"""Rows of any values through two stages and a file: what comes out is what plain Python makes of the rows."""

import datetime as dt
import enum
import math
import pickle
import threading
from contextlib import closing
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raykit.client.parts import read
from raykit.engine.pipeline.blocks import as_batch, batch_of, rows_of, table_of
from raykit.engine.pipeline.calls import Way
from raykit.engine.pipeline.row_order import keys_of, made_of, source_keys
from raykit.engine.pipeline.sink import Sink, SpanResult
from raykit.engine.pipeline.user_call import CallFailedError, UserCall
from raykit.errors import SourceError
from raykit.spec import StageSpec
from raykit.spec.rows import rows_in
from raykit.wire.payload import Payload

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray")


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: int


BERLIN = ZoneInfo("Europe/Berlin")
YEARS = dt.datetime.fromisoformat("1900-01-01"), dt.datetime.fromisoformat("2200-01-01")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-9, 9)
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-99, max_value=99)
    | st.dates()
    | st.datetimes(*YEARS, timezones=st.sampled_from([None, dt.UTC, BERLIN]))
    | st.timedeltas(dt.timedelta(days=-999), dt.timedelta(days=999))
    | st.sampled_from([Color.RED, Level.HIGH, Point(1, 2), (1, "a"), (), frozenset([1]), 3 + 1j])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=1), inner, max_size=2)
)
ROWS = st.lists(st.fixed_dictionaries({"n": st.integers(0, 99), "a": VALUES, "b": VALUES}), min_size=1, max_size=8)


def add(row):
    return {**row, "n": row["n"] + 1}


def add_batch(batch):
    return {**batch, "n": batch["n"] + 1}


def through(stage, blocks, **options):
    """Give what a stage makes of blocks of rows, as a replica would: each block pickled on its way, and with its rows' order."""
    spec = StageSpec(name="stage", **options)
    call = UserCall(stage, spec, Payload(body=b""))
    made = []
    for block, keys in blocks:
        call.prepare(Way(batch_size=spec.batch_size, concurrency=1), None)
        taken = pickle.loads(pickle.dumps(block))
        size = len(keys)
        if spec.batch_size is None:
            for number, row in call.rows(list(enumerate(rows_of([(taken, 0, size)])))):
                made.append(([row], made_of(keys, np.array([number]))))
        else:
            made += [(batch, made_of(keys, origins)) for batch, origins in call.batches(batch_of([(taken, 0, size)]))]
    return made


def same(one, other):
    """Say whether values are equal, with the same types but for numbers, whatever they are inside of."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if type(one) in (list, tuple) and type(one) is type(other):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if type(one) in (int, float) and isinstance(other, int | float | np.number):
        return one == other or (math.isnan(one) and math.isnan(other))
    if one is None:
        return other is None or other is pd.NA or other is pd.NaT or (isinstance(other, float) and math.isnan(other))
    return one == other and isinstance(other, type(one))


@settings(max_examples=120, deadline=None)
@given(ROWS, st.sampled_from([(None, None), (None, 3), (2, None), (4, 3)]), st.integers(1, 4))
def test_rows_of_any_types_are_what_plain_python_makes_of_them(tmp_path_factory, rows, batches, cut):
    expected = [add(add(row)) for row in rows]
    keys = source_keys(0, len(rows))
    blocks = [(rows[at : at + cut], keys[at : at + cut]) for at in range(0, len(rows), cut)]
    for batch in batches:
        blocks = through(add if batch is None else add_batch, blocks, batch_size=batch)
    blocks.reverse()  # calls end in any order
    sink = Sink(tmp_path_factory.mktemp("run"))
    tables, keys = [table_of(block) for block, _ in blocks], keys_of([keys for _, keys in blocks])
    sink.add(SpanResult(span=0, tables=tables, keys=keys))
    sink.commit()
    found = read(pyarrow.dataset.dataset(sink.parts, format="parquet"))
    for name in ("n", "a", "b"):
        got = list(found[name])
        assert all(same(row[name], value) for row, value in zip(expected, got, strict=True)), (name, got)


def test_a_value_does_not_depend_on_its_neighbours_in_a_batch():
    for value, neighbour in [
        (2**63 + 2**61 + 1, 5),
        (True, 7),
        (2**53 + 1, 0.5),
        (0.1, 2**60),
        (1, 1j),
        (np.uint64(2**63 + 1), -1),
    ]:
        for values in ([value, neighbour], [neighbour, value]):
            rows = [{"x": each} for each in values]
            there = rows_of([(batch_of([(rows[:1], 0, 1), (rows[1:], 0, 1)]), 0, 2)])
            assert [row["x"] for row in there] == values
            assert isinstance(there[values.index(value)]["x"], bool) == isinstance(value, bool)


def test_numbers_of_a_batch_are_arrays_of_numbers():
    rows = [
        {"int": 1, "float": 1, "big": 2**63, "bool": True, "half": np.float16(1)},
        {"int": 2, "float": 0.5, "big": 3, "bool": False},
    ]
    rows[1]["half"] = np.float16(2)
    batch = batch_of([(rows, 0, 2)])
    assert {name: str(column.dtype) for name, column in batch.items()} == {
        "int": "int64",
        "float": "float64",
        "big": "uint64",
        "bool": "bool",
        "half": "float16",
    }


def test_times_keep_their_zone_and_nanoseconds_through_batches_and_files(tmp_path):
    days = pd.date_range("2024-03-30", periods=3, freq="D", tz="Europe/Berlin")
    moments = pd.to_datetime([1, 2, 3], unit="ns")
    frame = pd.DataFrame({"day": days, "moment": moments, "long": pd.to_timedelta([1, 2, 3], unit="ns")})
    rows = rows_of([(as_batch(frame), 0, 3)])
    assert [row["day"] for row in rows] == list(days)
    assert [row["moment"] for row in rows] == list(moments)
    for block in (rows, as_batch(frame), frame.to_dict("records")):
        sink = Sink(tmp_path / str(id(block)))
        sink.add(SpanResult(span=0, tables=[table_of(block)], keys=source_keys(0, 3)))
        sink.commit()
        read_back = read(pyarrow.dataset.dataset(sink.parts, format="parquet"))
        assert str(read_back["day"].dt.tz) == "Europe/Berlin"
        assert read_back["day"].tolist() == list(days)
        assert read_back["moment"].tolist() == list(moments)
        assert read_back["long"].tolist() == list(frame["long"])


def test_integers_with_a_missing_one_among_them_are_exact_in_rows_batches_and_results(tmp_path):
    ids = [2**53 + 1, None, 720575940631797753]
    table = pa.table({"id": ids, "u": pa.array([2**64 - 1, None, 0], pa.uint64())})
    assert [row["id"] for row in rows_of([(table, 0, 3)])] == ids
    batch = batch_of([(table, 0, 3)])
    assert batch["id"].tolist() == ids
    sink = Sink(tmp_path)
    sink.add(SpanResult(span=0, tables=[table_of(batch)], keys=source_keys(0, 3)))
    sink.commit()
    found = read(pyarrow.dataset.dataset(sink.parts, format="parquet"))
    assert str(found["id"].dtype) == "Int64"
    assert [None if value is pd.NA else value for value in found["id"]] == ids
    assert found["u"][0] == 2**64 - 1


def test_arrow_columns_reach_rows_and_batches_as_they_are():
    table = pa.table(
        {
            "list": pa.array([[1, 2], None, [3, None]]),
            "text": ["a", None, "b"],
            "real": pa.array([0.5, None, 1.5]),
            "time": pa.array([dt.datetime(2024, 3, 1, tzinfo=BERLIN)] * 3),
            "dict": [{"a": 1}, {"a": None}, None],
        }
    )
    rows = rows_of([(table, 1, 3)])
    assert [row["list"] for row in rows] == [None, [3, None]]
    assert rows[0]["dict"] == {"a": None}
    assert rows[1]["time"] == dt.datetime(2024, 3, 1, tzinfo=BERLIN)
    batch = batch_of([(table, 0, 3)])
    assert batch["list"][0].tolist() == [1, 2]
    assert batch["list"][2].tolist() == [3, None]
    assert np.isnan(batch["real"][1])
    assert batch["text"].tolist() == ["a", None, "b"]
    assert batch["time"][0] == dt.datetime(2024, 3, 1, tzinfo=BERLIN)


def test_two_columns_of_one_name_are_refused_by_it():
    twice = pd.DataFrame([[1, 2, 3]], columns=["a", "a", "b"])
    with pytest.raises(TypeError, match="'a'"):
        as_batch(twice)
    for table in (twice, pa.table([[1], [2]], names=["a", "a"])):
        with pytest.raises(SourceError, match="'a'"):
            rows_in(table)
    with pytest.raises(TypeError, match="'a'"):
        rows_of([(pa.table([[1], [2]], names=["a", "a"]), 0, 1)])


def test_a_table_of_arrow_is_rows_too():
    assert list(rows_in(pa.table({"a": [1, 2]}))) == [{"a": 1}, {"a": 2}]


def test_masked_values_are_missing():
    batch = as_batch({"x": np.ma.array([1, 2, 3], mask=[False, True, False])})
    assert batch["x"].tolist() == [1, None, 3]


ENDS = [StopIteration("over"), StopAsyncIteration(), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), ValueError("bad")]


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("form", ["row", "generator", "async", "batch", "threads"])
def test_whatever_user_code_raises_is_an_error_of_its_row(form, error):
    def fails(row):
        if row["x"] == 2:
            raise error
        return row

    def generator(row):
        yield fails(row)

    async def coroutine(row):
        return fails(row)

    def batched(batch):
        for x in batch["x"]:
            fails({"x": x})
        return batch

    function = {"row": fails, "generator": generator, "async": coroutine, "batch": batched, "threads": fails}[form]
    size = 4 if form == "batch" else None
    rows = [{"x": x} for x in range(4)]
    spec = StageSpec(name="stage", batch_size=size, on_error="quarantine", concurrency=2 if form == "threads" else 1)
    way = Way(batch_size=size, concurrency=spec.concurrency)

    def call(on_error):
        with closing(UserCall(function, StageSpec(name="stage", batch_size=size, on_error=on_error), Payload(body=b""))) as made:
            made.prepare(way, None)
            if size:
                batches = [batch for batch, _ in made.batches(batch_of([(rows, 0, 4)]))]
                return [row for batch in batches for row in rows_of([(batch, 0, len(batch["x"]))])], made.bad
            return [row for _, row in made.rows(list(enumerate(rows)))], made.bad

    made, bad = call("quarantine")
    assert [row["x"] for row in made] == [0, 1, 3]
    assert [pickle.loads(each.row) for each in bad] == [{"x": 2}]
    # Inside a generator Python itself makes a RuntimeError of a StopIteration.
    named = "RuntimeError" if isinstance(error, StopIteration) and form in ("generator", "async") else type(error).__name__
    assert bad[0].error.startswith(named)
    with pytest.raises(CallFailedError, match=named) as caught:
        call("fail")
    assert "{'x': " in caught.value.args[0]
    assert "on_error='quarantine'" in caught.value.args[1]


def test_an_async_generator_is_a_stage_that_makes_several_rows():
    async def twice(row):
        yield row
        yield {"x": -row["x"]}

    with closing(UserCall(twice, StageSpec(name="stage"), Payload(body=b""))) as call:
        call.prepare(Way(batch_size=None, concurrency=2), None)
        assert [row["x"] for _, row in call.rows([(0, {"x": 1}), (1, {"x": 2})])] == [1, -1, 2, -2]


def test_the_row_of_which_something_was_made_that_cannot_be_written_is_named():
    def stage(row):
        return {"x": row["x"], "lock": threading.Lock() if row["x"] == 1 else None}

    call = UserCall(stage, StageSpec(name="stage", on_error="quarantine"), Payload(body=b""))
    call.prepare(Way(batch_size=None, concurrency=1), table_of)
    assert [row["x"] for _, row in call.rows([(n, {"x": n}) for n in range(3)])] == [0, 2]
    assert pickle.loads(call.bad[0].row) == {"x": 1}
    assert "pickle" in call.bad[0].error
