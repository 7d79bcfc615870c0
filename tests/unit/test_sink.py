import pandas as pd
import pyarrow as pa

from raykit.engine.pipeline.sink import Sink, SpanResult, publish


def _span(number, *values, bad=()):
    rows = [{"stage": "s", "error": "e", "traceback": "", "row": row} for row in bad]
    return SpanResult(span=number, tables=[pa.table({"x": list(values)})], bad=rows, rows_in={"s": len(values)})


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
    sink.add(SpanResult(span=0, tables=[]))
    sink.commit()
    assert Sink(tmp_path).spans == {0}


def test_numbers_of_several_types_are_one_column(tmp_path):
    sink = Sink(tmp_path)
    sink.add(SpanResult(span=0, tables=[pa.table({"x": [1]}), pa.table({"x": [0.5]})]))
    sink.commit()
    assert pd.read_parquet(sink.parts / "00000.parquet")["x"].tolist() == [1.0, 0.5]


def test_a_column_of_types_that_do_not_go_together_is_a_file_for_each_and_no_row_is_lost(tmp_path):
    sink = Sink(tmp_path)
    for number, values in enumerate(([1], [0.5], ["text"])):
        sink.add(SpanResult(span=number, tables=[pa.table({"x": values})]))
    sink.commit()
    assert sum(pd.read_parquet(file)["x"].size for file in sink.parts.iterdir()) == 3
    assert sorted(file.name for file in Sink(tmp_path).parts.iterdir()) == ["00000-1.parquet", "00000-2.parquet", "00000.parquet"]


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
