import pandas as pd
import pyarrow as pa
import pyarrow.dataset

from raykit.client.parts import read
from raykit.engine.pipeline.blocks import table_of
from raykit.engine.pipeline.row_order import source_keys
from raykit.engine.pipeline.sink import Sink, SpanResult, publish


def _span(number, *values, bad=()):
    rows = [{"stage": "s", "error": "e", "traceback": "", "row": row} for row in bad]
    return _result(number, pa.table({"x": list(values)}), bad=rows, rows_in={"s": len(values)})


def _result(number, *tables, keys=None, **more):
    keys = source_keys(0, sum(table.num_rows for table in tables)) if keys is None else keys
    return SpanResult(span=number, tables=tables, keys=keys, **more)


def test_what_was_committed_is_there_again_and_what_was_not_is_removed(tmp_path):
    sink = Sink(tmp_path)
    sink.add(_span(3, 1, 2, bad=[b"row"]))
    assert sink.commit() == [3]
    sink.add(_span(4, 5))
    (sink.parts / "00001.parquet").write_bytes(b"a host died while it wrote this")
    (tmp_path / "commits" / "00001.new").write_text("{}")
    again = Sink(tmp_path)
    assert again.spans == {3}
    assert (again.rows_in["s"], again.num_bad["s"]) == (2, 1)
    assert [file.name for file in again.parts.iterdir()] == ["00000.parquet"]
    assert not list((tmp_path / "commits").glob("*.new"))
    again.add(_span(4, 5))
    again.commit()
    assert sorted(pd.read_parquet(again.parts)["x"]) == [1, 2, 5]


def test_a_span_of_which_nothing_was_left_is_committed_too(tmp_path):
    sink = Sink(tmp_path)
    sink.add(_result(0))
    sink.commit()
    assert Sink(tmp_path).spans == {0}


def test_numbers_of_several_types_are_one_column(tmp_path):
    sink = Sink(tmp_path)
    sink.add(_result(0, pa.table({"x": [1]}), pa.table({"x": [0.5]})))
    sink.commit()
    assert pd.read_parquet(sink.parts / "00000.parquet")["x"].tolist() == [1.0, 0.5]


def test_values_of_types_that_do_not_go_together_stay_what_they_were(tmp_path):
    sink = Sink(tmp_path)
    values = [1, 0.5, "text", True, 2**63 + 9, {"a": 1}, {}, None, (1, 2), [1, None], 3 + 1j]
    for number, value in enumerate(values):
        sink.add(_result(number, table_of([{"x": value}])))
    sink.commit()
    (file,) = sink.parts.iterdir()
    assert [repr(value) for value in read(pyarrow.dataset.dataset(file))["x"]] == [repr(value) for value in values]


def test_rows_are_read_in_the_order_of_the_source_however_they_were_written(tmp_path):
    sink = Sink(tmp_path)
    late_first = source_keys(0, 6)[[4, 5, 0, 1, 2, 3]]
    sink.add(_result(2, pa.table({"x": [20]})))
    sink.add(_result(0, pa.table({"x": [4, 5]}), pa.table({"x": [0, 1, 2, 3]}), keys=late_first))
    sink.commit()
    sink.add(_result(1, pa.table({"x": [10, 11]})))
    sink.commit()
    found = pyarrow.dataset.dataset(sink.parts)
    expected = [0, 1, 2, 3, 4, 5, 10, 11, 20]
    assert read(found)["x"].tolist() == expected
    for rows in range(10):
        assert read(found, rows=rows)["x"].tolist() == expected[:rows]


def test_a_host_that_dies_while_parts_are_published_loses_none(tmp_path):
    sink = Sink(tmp_path / "run")
    for number in range(3):
        sink.add(_span(number, number))
        sink.commit()
    target = tmp_path / "out"
    target.mkdir()
    (sink.parts / "00000.parquet").rename(target / "part-00000.parquet")
    publish(Sink(tmp_path / "run").parts, str(target), prefix="")
    publish(Sink(tmp_path / "run").parts, str(target), prefix="")
    assert sorted(pd.read_parquet(target)["x"]) == [0, 1, 2]
