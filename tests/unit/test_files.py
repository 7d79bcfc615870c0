"""Files as people have them: what their rows are, against the plain libraries, and what is refused before anything starts."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

import raykit as rk
from raykit.client.sources import describe_source
from raykit.engine.files import blocks
from raykit.errors import OptionError, SourceError
from raykit.store.files import listed, resolved

DOCS = [
    {"id": 9007199254740993, "text": "wörd", "score": None},
    {"id": 7, "text": "2024-02-29T00:00:00", "score": 0.5, "deep": {"a": [1, [2.0]]}},
    {"id": 13835058055282163713, "text": "", "score": 1, "deep": {}},
]
LINES = "".join(json.dumps(doc, ensure_ascii=False) + "\n" for doc in DOCS)


def rows_at(path, limit=None, **options):
    source = resolved(rk.files(path, **options))
    return [
        row
        for block, _, _ in blocks(listed(source).files, source, limit=limit)
        for row in (block if isinstance(block, list) else block.to_pylist())
    ]


def written(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def zipped(data):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("inside", data)
    return file.getvalue()


def arrow_compressed(kind):
    def compress(data):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, kind) as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()

    return compress


COMPRESSED = {
    ".gz": lambda data: gzip.compress(data[:40]) + gzip.compress(data[40:]),  # two members, as of concatenated files
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zip": zipped,
    ".zst": arrow_compressed("zstd"),
    ".lz4": arrow_compressed("lz4"),
    ".br": arrow_compressed("brotli"),
}


@pytest.mark.parametrize("suffix", ["", *COMPRESSED])
def test_json_lines_are_what_json_says_in_every_compression(tmp_path, suffix):
    data = LINES.encode()
    content = COMPRESSED[suffix](data) if suffix else data
    for name in ("a.jsonl", "b.JSON", "c.ndjson"):
        assert rows_at(written(tmp_path, name + suffix, content)) == DOCS
    table = b"a;b\n1;x\n"
    content = COMPRESSED[suffix](table) if suffix else table
    assert rows_at(written(tmp_path, "t.csv" + suffix, content)) == [{"a": 1, "b": "x"}]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(DOCS),
        json.dumps(DOCS, indent=2),
        "\n".join(json.dumps(doc, indent=1) for doc in DOCS),
        f"\n\n{LINES}\n",
        LINES.strip(),
    ],
)
def test_json_is_a_list_or_values_one_after_the_other(tmp_path, text):
    assert rows_at(written(tmp_path, "a.json", text)) == DOCS
    assert rows_at(written(tmp_path, "a.json", text), limit=2) == DOCS[:2]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_a_byte_order_mark_or_an_option_says_the_encoding(tmp_path, encoding):
    said = {"encoding": encoding} if encoding == "latin-1" else {}
    rows = [{"name": "Jürgen", "town": "Köln"}, {"name": "Zoë", "town": "a,b"}]
    for separator in ",;\t|":
        text = io.StringIO()
        writer = csv.DictWriter(text, ["name", "town"], delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
        assert rows_at(written(tmp_path, "a.csv", text.getvalue().encode(encoding)), **said) == rows
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert rows_at(written(tmp_path, "a.jsonl", lines.encode(encoding)), **said) == rows
    path = written(tmp_path, "a.txt", "Köln\n\nZoë\x0c\u2028x".encode(encoding, "replace"))
    lines = Path(path).read_text(encoding).split("\n")
    assert [row["text"] for row in rows_at(path, **said)] == lines


def test_another_encoding_than_utf8_is_told_with_the_option(tmp_path):
    for name in ("a.csv", "a.jsonl", "a.txt"):
        path = written(tmp_path, name, '{"x": "Köln"}\n'.encode("latin-1"))
        with pytest.raises(SourceError, match=f"{name} .*\\n.*--encoding latin-1"):
            rows_at(path)


def test_columns_of_csv_have_a_type_that_changes_no_value(tmp_path):
    table = {
        "id": ["9007199254740993", "", "5"],
        "huge": ["13835058055282163713", "5", "7"],
        "huger": ["99999999999999999999999", "5", "7"],
        "zip": ["01234", "12345", "00000"],
        "mixed": ["9007199254740993", "0.5", "1"],
        "price": ["1", "2.5", ""],
        "yes": ["True", "False", ""],
        "day": ["2024-01-01", "2024-01-02", ""],
        "country": ["NA", "DE", ""],
        "phone": ["+49301", "+49302", "+49303"],
        "none": ["", "", ""],
        "quoted": ["a\nb", 'say "x"', "1,5"],
    }
    text = io.StringIO()
    csv.writer(text).writerows([table, *zip(*table.values(), strict=True)])
    rows = rows_at(written(tmp_path, "a.csv", text.getvalue()))
    found = {name: [row[name] for row in rows] for name in table}
    same = ("huger", "zip", "mixed", "day", "country", "phone", "quoted")
    assert {name: found[name] for name in same} == {name: table[name] for name in same}
    assert found["id"] == [9007199254740993, None, 5]
    assert found["huge"] == [13835058055282163713, 5, 7]
    assert found["price"] == [1.0, 2.5, None]
    assert found["yes"] == [True, False, None]
    assert found["none"] == [None] * 3
    assert all(type(each) is str for each in [row["id"] for row in rows_at(str(tmp_path / "a.csv"), as_text="id")])


def test_plain_tables_of_csv_are_those_of_pandas(tmp_path):
    frame = pd.DataFrame({"x": [1, -2, 3], "y": [0.5, 1e300, -0.25], "name": ["a", "b c", "ä"], "is_good": [True, False, True]})
    for name, separator in (("a.csv", ","), ("b.tsv", "\t"), ("c.csv", ";")):
        frame.to_csv(tmp_path / name, index=False, sep=separator)
        assert rows_at(str(tmp_path / name)) == pd.read_csv(tmp_path / name, sep=separator).to_dict("records")


def test_a_later_value_of_another_type_is_refused_and_never_changed(tmp_path, monkeypatch):
    monkeypatch.setattr("raykit.engine.files.SAMPLE_CHARS", 1000)
    for late in ("007", "abc", "2.5"):
        path = written(tmp_path, "a.csv", "zip\n" + "12345\n" * 1000 + late + "\n")
        with pytest.raises(SourceError, match=f"has '{late}' in the column zip.*\\n.*--as-text zip"):
            rows_at(path)
        assert rows_at(path, as_text=["zip"])[-1] == {"zip": late}


def test_no_character_is_lost_wherever_a_field_or_a_line_lies(tmp_path):
    for size in range((1 << 20) - 3, (1 << 20) + 2):  # where Arrow's reader begins a block
        text = "z" * size + "A\r\nB"
        file = tmp_path / "a.csv"
        with file.open("w", newline="") as out:
            csv.writer(out).writerows([["id", "s"], [0, text], [1, "x"]])
        assert rows_at(file) == [{"id": 0, "s": text}, {"id": 1, "s": "x"}]
    docs = [{"t": "a\u2028b\x85c\u2029"}, {"t": ["d", [1]]}, {"item": [1, "two"]}]
    lines = "\r\n".join(json.dumps(doc.get("item", doc), ensure_ascii=False) for doc in docs)
    assert rows_at(written(tmp_path, "a.jsonl", lines)) == docs
    with pytest.raises(SourceError, match=r"b\.csv, line 3 is no CSV: unexpected end"):
        rows_at(written(tmp_path, "b.csv", 'a,b\n1,"open\n2,3\n'))


def test_twice_the_same_column_is_refused_by_name(tmp_path):
    with pytest.raises(SourceError, match="several columns called 'a'"):
        rows_at(written(tmp_path, "a.csv", "a,b,a\n1,2,3\n"))
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["b", "b"]), tmp_path / "b.parquet")
    with pytest.raises(SourceError, match="several columns called 'b'"):
        rows_at(str(tmp_path / "b.parquet"))


def test_a_line_that_is_no_json_and_a_ragged_row_are_named(tmp_path):
    with pytest.raises(SourceError, match=r"a\.jsonl, line 2 is no JSON"):
        rows_at(written(tmp_path, "a.jsonl", '{"x": 1}\n{"x": \n'))
    with pytest.raises(SourceError, match=r"b\.csv, line 2 has 3 fields, and there are 2 columns"):
        rows_at(written(tmp_path, "b.csv", "a,b\n1,2,3\n"))
    with pytest.raises(SourceError, match=r"c\.csv\.gz cannot be read"):
        rows_at(written(tmp_path, "c.csv.gz", "a,b\n1,2\n"))


def test_images_are_upright_and_keep_their_grey_levels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.fromarray(np.arange(40 * 20 * 3, dtype=np.uint8).reshape(20, 40, 3))
    photo.save(tmp_path / "a.jpg", exif=exif)
    deep = np.linspace(0, 65535, 64 * 32).reshape(64, 32).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "b.png")
    Image.fromarray(deep).save(tmp_path / "b2.TIF")
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "b3.tiff")
    for place, mode in enumerate(("L", "RGBA", "P", "CMYK", "1", "LA")):
        photo.convert(mode).save(tmp_path / f"c{place}-{mode}.{'tif' if mode == 'CMYK' else 'png'}")
    found = {row["path"].rpartition("/")[2]: row["image"] for row in rows_at(str(tmp_path))}
    np.testing.assert_array_equal(found["a.jpg"], np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg"))))
    assert found["a.jpg"].shape == (40, 20, 3)
    for name in ("b.png", "b2.TIF"):
        assert found[name].dtype == np.uint16
        np.testing.assert_array_equal(found[name], deep)
    np.testing.assert_array_equal(found["b3.tiff"], deep.astype(np.float32))
    for name, pixels in found.items():
        if name.startswith("c"):
            np.testing.assert_array_equal(pixels, np.asarray(Image.open(tmp_path / name).convert("RGB")))


@pytest.fixture
def downloaded(tmp_path):
    """A folder as a data set lies after its download."""
    for number in range(2):
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(pa.table({"x": [2 * number, 2 * number + 1]}), tmp_path / "data" / f"train-{number}.PARQUET")
    for name in ("README.md", "LICENSE", "dataset_infos.json", "load.py", "data/_SUCCESS", "data/.part.crc", ".cache/old.parquet"):
        written(tmp_path, name, "x")
    return tmp_path


def test_of_a_folder_the_data_is_read_and_what_describes_it_is_named(downloaded):
    assert rows_at(str(downloaded)) == [{"x": x} for x in range(4)]
    source = rk.files(downloaded)
    assert (source.format, source.left_out) == ("parquet", "LICENSE, README.md, dataset_infos.json and 1 more")
    assert rows_at(f"file://{downloaded}") == [{"x": x} for x in range(4)]
    assert rows_at(f"{downloaded}/**/*-1.*") == [{"x": 2}, {"x": 3}]


def test_documents_beside_documents_are_data(tmp_path):
    for name in ("a.pdf", "b.html", "c.docx"):
        written(tmp_path, name, name)
    assert [row["bytes"] for row in rows_at(tmp_path)] == [b"a.pdf", b"b.html", b"c.docx"]
    written(tmp_path, "notes/a.md", "# x")
    written(tmp_path, "notes/README.md", "# y")
    assert [row["text"] for row in rows_at(tmp_path / "notes")] == ["# x"]


def test_a_folder_of_several_formats_asks_which(tmp_path):
    written(tmp_path, "a.csv", "x\n1\n")
    written(tmp_path, "b.json", '[{"x": 2}]')
    with pytest.raises(SourceError, match=r"several formats \(csv: a\.csv; json: b\.json\).*\n.*--format csv"):
        rk.files(tmp_path)
    assert rows_at(tmp_path, format="jsonl") == [{"x": 2}]
    assert rk.files(tmp_path, format="json").left_out == "a.csv"


def test_files_of_unlike_schemas_keep_each_its_own_columns(tmp_path):
    for name, frame in (("a", {"x": [1, None], "y": ["p", "q"]}), ("b", {"x": [0.5], "z": [True]})):
        pq.write_table(pa.table(frame), tmp_path / f"{name}.parquet")
    rows = [{"x": 1, "y": "p"}, {"x": None, "y": "q"}, {"x": 0.5, "z": True}]
    assert rows_at(tmp_path) == rows
    assert type(rows_at(tmp_path)[0]["x"]) is int


def test_names_of_folders_are_columns_as_hive_writes_them(tmp_path):
    pd.DataFrame({"year": ["2024", "2025"], "x": [1, 2]}).to_parquet(tmp_path / "t", partition_cols=["year"])
    assert rows_at(tmp_path / "t") == [{"x": 1, "year": "2024"}, {"x": 2, "year": "2025"}]


def test_what_is_empty_has_no_rows_or_is_named(tmp_path):
    pq.write_table(pa.table({"x": pa.array([], pa.int64())}), tmp_path / "none.parquet")
    assert rows_at(tmp_path / "none.parquet") == []
    written(tmp_path, "csv/a.csv", "")
    written(tmp_path, "csv/b.csv", "x,y\n")
    written(tmp_path, "csv/c.csv", "x,y\n1,2\n")
    assert rows_at(tmp_path / "csv") == [{"x": 1, "y": 2}]
    assert rows_at(tmp_path / "csv/b.csv") == []
    assert rows_at(written(tmp_path, "e.csv.gz", gzip.compress(b""))) == []
    written(tmp_path, "bad/b.parquet", "")
    for path, words in (("csv/a.csv", "a.csv of .* is empty"), ("bad", "b.parquet of .* is empty, and no Parquet file")):
        with pytest.raises(SourceError, match=words):
            rk.files(tmp_path / path)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(SourceError, match="has no data"):
        rk.files(tmp_path / "nothing")


def test_a_file_without_a_suffix_is_told_by_its_first_bytes_or_by_an_option(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "part-0")
    assert rows_at(tmp_path / "part-0") == [{"x": 1}]
    path = written(tmp_path, "lines/part-00000", LINES)
    with pytest.raises(SourceError, match=r"part-00000 in .* does not say its format.*\n.*--format"):
        rk.files(path)
    assert rows_at(path, format="json") == DOCS


def test_a_download_whose_files_are_links_is_read(tmp_path):
    blob = written(tmp_path, "blobs/0a1b", '{"x": 1}\n')
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "train.jsonl").symlink_to(blob)
    assert rows_at(tmp_path / "snapshot") == [{"x": 1}]
    odd = written(tmp_path, "a[1].csv", "x\n1\n")
    assert rows_at(odd) == [{"x": 1}]


def test_options_that_cannot_be_are_refused_with_the_nearest(tmp_path):
    path = written(tmp_path, "a.csv", "x\n1\n")
    for options, words in (
        ({"format": "parket"}, "Did you mean parquet"),
        ({"encoding": "latin1x"}, "Did you mean latin-1"),
        ({"separator": "||"}, "one character"),
        ({"format": "parquet", "encoding": "utf-8"}, "encoding was given for parquet"),
        ({"as_text": "y", "format": "json"}, "as_text was given for json"),
        ({"seperator": ";"}, "Did you mean separator"),
    ):
        with pytest.raises(OptionError, match=words):
            rk.files(path, **options)
    with pytest.raises(SourceError, match="no column y"):
        rows_at(path, as_text="y")
    with pytest.raises(OptionError, match="format was given with a source that is no path"):
        rk.Pipeline([lambda row: row]).prepare([1], format="csv")
    assert describe_source(rk.files(path))[0].paths == (path,)
