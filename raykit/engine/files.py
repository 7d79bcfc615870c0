"""The rows of files, as the plain libraries give them: nothing here knows Ray or torch.

A row of a JSON file is what ``json.loads`` makes of it; images are PIL's, upright; of a CSV file a column has one type, which
is told from the file's first megabytes, and a later value that does not fit it is an error, never another value.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import IO, Any, cast

from raykit.errors import RaykitError, SourceError, require
from raykit.spec import SourceSpec
from raykit.spec.files import compression_of, has_lines, has_tabs
from raykit.spec.rows import as_row
from raykit.store.files import File, open_file

MAX_ROWS = 1024
MAX_BYTES = 4_000_000
HEAD_CHARS, BUFFER_BYTES = 1 << 16, 1 << 20
SAMPLE_CHARS = 8_000_000
"""Of a CSV file: the types of its columns are told from so much, and each block is made of so much."""

Row = tuple[dict[str, Any], int]
"""A row, and about how many bytes it has."""
Block = tuple[Any, int, int]
"""A list of rows, or an Arrow table; its rows, its bytes."""

SPACE = re.compile(r"\s*")
SEPARATORS = (",", ";", "\t", "|")
SAMPLE_LINES = 50
MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
NULLS = frozenset(("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "-nan", "-NaN", "NULL", "null", "None", "<NA>"))
WHOLE = r"^\s*-?(0|[1-9][0-9]*)\s*$"
DECIMAL = r"^\s*-?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$|^\s*-?([iI]nf|[iI]nfinity)\s*$"
LOGICAL = r"^\s*([tT]rue|TRUE|[fF]alse|FALSE)\s*$"
EXACT_DIGITS = r"[0-9]{16}"  # a whole number of more would not be exact as a float
DEEP_MODES = ("I", "F")
"""PIL's modes of more than 8 bits a pixel begin so: ``I``, ``I;16``, ``I;16B``, ``F``."""


def blocks(files: Iterable[File], spec: SourceSpec, *, limit: int | None = None) -> Iterator[Block]:
    """Return the rows of files of the source's format, in their order, as blocks of at most ``limit`` rows together.

    Raises:
        SourceError: a file cannot be read so; it is named, with what to do.
    """
    left = limit
    for block, num_rows, num_bytes in _packed(_pieces(files, spec)):
        if left is not None and num_rows >= left:
            yield block[:left] if isinstance(block, list) else block.slice(0, left), left, num_bytes * left // num_rows
            return
        left = None if left is None else left - num_rows
        yield block, num_rows, num_bytes


def _packed(pieces: Iterable[Row | Any]) -> Iterator[Block]:
    """Put rows together to blocks; tables are blocks already."""
    rows: list[dict[str, Any]] = []
    size = 0
    for piece in pieces:
        if isinstance(piece, tuple):
            rows.append(piece[0])
            size += piece[1]
        if rows and (not isinstance(piece, tuple) or len(rows) >= MAX_ROWS or size >= MAX_BYTES):
            yield rows, len(rows), size
            rows, size = [], 0
        if not isinstance(piece, tuple) and piece.num_rows:
            yield piece, piece.num_rows, piece.nbytes
    if rows:
        yield rows, len(rows), size


def _pieces(files: Iterable[File], spec: SourceSpec) -> Iterator[Row | Any]:
    read = READERS[spec.format]
    for file in files:
        with _refused(file, spec):
            for piece in read(file, spec):
                yield with_columns(piece, file) if file.columns else piece


@contextmanager
def _refused(file: File, spec: SourceSpec) -> Iterator[None]:
    """Name the file in whatever goes wrong in reading it."""
    try:
        yield
    except RaykitError:
        raise
    except UnicodeDecodeError as exc:
        wrong = f"byte 0x{exc.object[exc.start]:02x}" if exc.start < len(exc.object) else "its end"
        raise SourceError(
            f"{file.path} is not {exc.encoding}: {wrong} does not belong there.",
            "Say its encoding, as --encoding latin-1 (in Python encoding='latin-1').",
        ) from exc
    except FileNotFoundError as exc:
        raise SourceError(f"{file.path} is gone, or not there where the cluster runs.", "Give a path that its nodes see.") from exc
    except Exception as exc:
        problem = f"{type(exc).__name__}: {(str(exc).strip().splitlines() or [''])[0]}"
        raise SourceError(
            f"{file.path} cannot be read as {spec.format}: {problem}.",
            "Mend it or leave it out; or read files as bytes (--format binary) in a stage with on_error='quarantine'.",
        ) from exc


def with_columns(piece: Row | Any, file: File) -> Row | Any:
    """Add the columns that stand in the names of the file's folders, but for those that the file itself has."""
    if isinstance(piece, tuple):
        return {**piece[0], **{name: value for name, value in file.columns if name not in piece[0]}}, piece[1]
    import pyarrow as pa

    for name, value in file.columns:
        if name not in piece.column_names:
            piece = piece.append_column(name, pa.array([value] * piece.num_rows, pa.string()))
    return piece


# The formats


def _parquet(file: File, _: SourceSpec) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(file, seekable=True) as stream:
        parquet = pq.ParquetFile(stream)
        _refuse_twice(parquet.schema_arrow.names, file)
        about = parquet.metadata
        num_bytes = sum(about.row_group(at).total_byte_size for at in range(about.num_row_groups))
        rows_a_block = max(1, min(65_536, about.num_rows * 2 * MAX_BYTES // max(1, num_bytes)))
        for batch in parquet.iter_batches(batch_size=rows_a_block):
            yield pa.Table.from_batches([batch])


def _json(file: File, spec: SourceSpec) -> Iterator[Row]:
    with opened(file) as stream, _text(stream, spec, newline="\n") as text:
        numbered = ((number, line) for number, line in enumerate(text, 1) if line.strip())
        first = next(numbered, None)
        if first is None:
            return
        if not has_lines(file.name) and not _is_one_of_many(first[1]):
            yield from _json_values(first[1] + text.read())
            return
        for number, line in chain([first], numbered):
            try:
                row = as_row(json.loads(line))
            except json.JSONDecodeError as exc:
                raise SourceError(
                    f"{file.path}, line {number} is no JSON: {exc.msg} at column {exc.colno}.", "Mend it, or leave the line out."
                ) from exc
            yield row, len(line)


def _is_one_of_many(line: str) -> bool:
    """Return whether a file's first line is a row: an object that is whole."""
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def _json_values(text: str) -> Iterator[Row]:
    """Return the items of the one list, or the values that stand one after the other."""
    decoder, values = json.JSONDecoder(), []
    at = _behind_space(text, 0)
    while at < len(text):
        value, end = decoder.raw_decode(text, at)
        values.append(value)
        at = _behind_space(text, end)
    rows = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    size = len(text) // max(1, len(rows))
    for row in rows:
        yield as_row(row), size


def _behind_space(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    return found.end() if found else at


def _lines(file: File, spec: SourceSpec) -> Iterator[Row]:
    with opened(file) as stream, _text(stream, spec, newline=None) as text:
        for line in text:
            plain = line.removesuffix("\n")
            yield {"text": plain, "path": file.path}, len(plain) + 64


def _bytes(file: File, _: SourceSpec) -> Iterator[Row]:
    with open_file(file.path) as opened:
        content = opened.read()
    yield {"bytes": content, "path": file.path}, len(content) + 64


def _image(file: File, _: SourceSpec) -> Iterator[Row]:
    require("PIL", extra="demo", why="to read images")
    import numpy as np
    from PIL import Image, ImageOps

    with open_file(file.path) as opened, Image.open(io.BytesIO(opened.read())) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith(DEEP_MODES):
            pixels = np.asarray(upright)
            pixels = pixels.astype(pixels.dtype.newbyteorder("="))
        else:
            pixels = np.array(upright.convert("RGB"))
    yield {"image": pixels, "path": file.path}, pixels.nbytes + 64


# CSV


def _csv(file: File, spec: SourceSpec) -> Iterator[Any]:
    """Return tables of a CSV file, as Python's own reader cuts it: Arrow's loses a line feed of a field at a block's end (#51368)."""
    import pyarrow as pa

    csv.field_size_limit(sys.maxsize)
    with opened(file) as stream, _text(stream, spec, newline="") as text:
        head = text.read(HEAD_CHARS)
        is_whole = len(head) < HEAD_CHARS
        head += text.readline()
        separator = spec.separator or ("\t" if has_tabs(file.name) else _separator_of(head, is_whole=is_whole))
        records = csv.reader(chain(io.StringIO(head, newline=""), text), delimiter=separator, strict=True)
        names = next((record for record in records if record), [])
        if not names:
            return
        _refuse_twice(names, file)
        if missing := [name for name in spec.as_text if name not in names]:
            raise SourceError(f"{file.path} has no column {missing[0]}.", f"It has: {', '.join(names)}.")
        kinds: dict[str, str] = dict.fromkeys(spec.as_text, "text")
        while some := _some_of(records, names, file):
            columns = zip(names, zip(*some, strict=True), strict=True)
            yield pa.table({name: _typed(pa.array(values, pa.string()), name, kinds, file) for name, values in columns})


def _some_of(records: Any, names: list[str], file: File) -> list[list[str]]:
    """Return the next records, of ``SAMPLE_CHARS`` together; blank lines are none.

    Raises:
        SourceError: one has not as many fields as there are columns; quotes are open.
    """
    some: list[list[str]] = []
    size = 0
    try:
        for record in records:
            if len(record) == len(names):
                some.append(record)
                size += sum(map(len, record)) + len(record)
            elif record:
                raise SourceError(
                    f"{file.path}, line {records.line_num} has {len(record)} fields, and there are {len(names)} columns.",
                    "Mend it; or say what stands between fields, as --separator ';' (in Python separator=';').",
                )
            if size >= SAMPLE_CHARS:
                break
    except csv.Error as exc:
        raise SourceError(f"{file.path}, line {records.line_num} is no CSV: {exc}.", "Mend its quotes.") from exc
    return some


def _typed(texts: Any, name: str, kinds: dict[str, str], file: File) -> Any:
    """Return a column of texts in its type, which the first block with a value decides.

    Raises:
        SourceError: a value of a later block is of another type.
    """
    import pyarrow as pa
    from pyarrow import compute

    is_null = compute.is_in(texts, pa.array(sorted(NULLS)))
    values = texts.filter(compute.invert(is_null))
    if name not in kinds and (len(values) or compute.any(compute.not_equal(texts, "")).as_py()):
        kinds[name] = _kind_of(values) if len(values) else "text"  # a column of nothing but NA: Namibia's
    kind = kinds.get(name)
    if kind == "text":
        return texts
    if kind is None:
        return pa.nulls(len(texts))
    pattern = {"int64": WHOLE, "uint64": WHOLE, "double": DECIMAL, "bool": LOGICAL}[kind]
    try:
        if not compute.all(compute.match_substring_regex(values, pattern)).as_py() or (kind == "double" and _has_long(values)):
            raise pa.ArrowInvalid
        return _cast(compute.if_else(is_null, pa.scalar(None, pa.string()), texts), kind)
    except pa.ArrowInvalid:
        other = next((each for each in values.to_pylist() if not _fits(each, kind, pattern)), None)
        called = {"bool": "truth values", "double": "numbers"}.get(kind, "whole numbers")
        raise SourceError(
            f"{file.path} has {other!r} in the column {name}, which has {called} in the lines before.",
            f"Read the column as text: --as-text {name} (in Python as_text={name!r}).",
        ) from None


def _kind_of(values: Any) -> str:
    """Return the type of a column by the texts of its values, such that no value changes by it."""
    import pyarrow as pa
    from pyarrow import compute

    def all_match(pattern: str) -> bool:
        return bool(compute.all(compute.match_substring_regex(values, pattern)).as_py())

    if all_match(WHOLE):
        for kind in ("int64", "uint64"):
            try:
                _cast(values, kind)
            except pa.ArrowInvalid:
                continue
            return kind
        return "text"
    if all_match(DECIMAL):
        return "text" if _has_long(values) else "double"
    return "bool" if all_match(LOGICAL) else "text"


def _has_long(values: Any) -> bool:
    """Return whether there are whole numbers that are not exact as floats."""
    from pyarrow import compute

    whole = values.filter(compute.match_substring_regex(values, WHOLE))
    return bool(compute.any(compute.match_substring_regex(whole, EXACT_DIGITS)).as_py())


def _cast(texts: Any, kind: str) -> Any:
    import pyarrow as pa
    from pyarrow import compute

    plain = compute.utf8_trim_whitespace(texts)
    if kind == "bool":
        return compute.equal(compute.utf8_lower(plain), "true")
    return plain.cast({"int64": pa.int64(), "uint64": pa.uint64(), "double": pa.float64()}[kind])


def _fits(text: str, kind: str, pattern: str) -> bool:
    import pyarrow as pa
    from pyarrow import compute

    try:
        is_like = bool(compute.match_substring_regex(text, pattern).as_py())
        return is_like and not (kind == "double" and _has_long(pa.array([text]))) and _cast(pa.array([text]), kind) is not None
    except pa.ArrowInvalid:
        return False


def _separator_of(head: str, *, is_whole: bool) -> str:
    """Return what cuts a file's first lines into equally many fields; of several the one which makes the most."""
    best, most = SEPARATORS[0], 1
    for separator in SEPARATORS:
        lines = csv.reader(io.StringIO(head, newline=""), delimiter=separator)
        records = list(islice((record for record in lines if record), SAMPLE_LINES))
        if not is_whole and 1 < len(records) < SAMPLE_LINES:
            records.pop()  # it may be cut off
        numbers = {len(record) for record in records}
        if len(numbers) == 1 and (number := numbers.pop()) > most:
            best, most = separator, number
    return best


def _refuse_twice(names: list[str], file: File) -> None:
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise SourceError(f"{file.path} has several columns called {twice[0]!r}.", "Give each a name of its own.")


# Streams


@contextmanager
def opened(file: File, *, seekable: bool = False) -> Iterator[IO[bytes]]:
    """Open a file as what it holds, uncompressed; ``seekable`` where its reader goes back and forth, as of Parquet."""
    kind = compression_of(file.name)
    with open_file(file.path) as raw:
        if kind is None:
            yield raw
            return
        with _UNCOMPRESSED[kind](raw, kind) as plain:
            yield io.BytesIO(plain.read()) if seekable else plain


def _of_arrow(raw: IO[bytes], kind: str) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(cast("Any", raw), mode="r"), kind)


def _of_zip(raw: IO[bytes], _: str) -> Any:
    archive = zipfile.ZipFile(raw)
    names = [each.filename for each in archive.infolist() if not each.is_dir() and not each.filename.startswith("__MACOSX/")]
    if len(names) != 1:
        raise SourceError(f"An archive has {len(names)} files ({', '.join(names[:3])}).", "Unpack it, and give its folder.")
    return archive.open(names[0])


_UNCOMPRESSED: dict[str, Callable[[IO[bytes], str], Any]] = {
    "gzip": lambda raw, _: gzip.GzipFile(fileobj=raw),
    "bz2": lambda raw, _: bz2.BZ2File(raw),
    "xz": lambda raw, _: lzma.LZMAFile(raw),  # noqa: SIM115  (the reader closes it)
    "zip": _of_zip,
    "zstd": _of_arrow,
    "lz4": _of_arrow,
    "brotli": _of_arrow,
}


class _Raw(io.RawIOBase):
    """A stream of Arrow's or Python's as one that Python can buffer."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def _text(stream: Any, spec: SourceSpec, *, newline: str | None) -> Iterator[io.TextIOWrapper]:
    """Read a stream as text, in the encoding that was given, or that its first bytes tell, or UTF-8; without its mark."""
    buffered = io.BufferedReader(_Raw(stream), buffer_size=BUFFER_BYTES)
    found = next((encoding for mark, encoding in MARKS.items() if buffered.peek(4).startswith(mark)), "utf-8")
    encoding = codecs.lookup(spec.encoding or found).name
    with io.TextIOWrapper(buffered, encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline=newline) as text:
        yield text


READERS: dict[str, Callable[[File, SourceSpec], Iterator[Any]]] = {
    "parquet": _parquet,
    "csv": _csv,
    "json": _json,
    "images": _image,
    "text": _lines,
    "binary": _bytes,
}
