"""What a user gives as a source of rows: items, a function, or files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raykit.errors import OptionError, SourceError
from raykit.spec import SourceSpec
from raykit.spec.files import FileOptions, file_options
from raykit.spec.rows import rows_in
from raykit.spec.words import nearest_named
from raykit.store.files import path_source


@nearest_named
def files(
    path: str | Path,
    *,
    format: str | None = None,  # noqa: A002  (the word of the magic)
    encoding: str | None = None,
    separator: str | None = None,
    as_text: Sequence[str] | str = (),
) -> SourceSpec:
    """Return the files of a path as a source: for ``Pipeline.run`` and ``--source``, and for ``job.batches``.

    Of a folder all files count, those in its folders too, but for hidden ones, those whose names begin with ``_``, and those
    which only describe the data (``README.md``, ``LICENSE``, checksums). They have to be of one format, and are read in the
    order of their paths. Folders called ``year=2024`` give a column ``year``, of text. A suffix of a compression (``.gz``,
    ``.zst``, ``.xz``, ``.bz2``, ``.lz4``, ``.br``, ``.zip`` of one file) may follow that of the format.

    Rows are: of **parquet** those of the table. Of **json** (``.jsonl``, ``.ndjson``: one a line; ``.json``: also a list, or
    values one after the other) what ``json.loads`` returns. Of **csv** dicts of text, of whole numbers, of floats or of truth
    values: a column has the type that all its values have in the file's first 8 MB, such that none changes (a column with
    ``007``, or with whole numbers that no type holds exactly, is text; so are dates); an empty field is ``''`` in a column of
    text, else None, as is ``NA``. Of **images** ``{"image": array, "path": str}``: upright as the EXIF data says, uint8 of
    shape (height, width, 3), or (height, width) of the image's own type where it is grey with more than 8 bits. Of **text** each
    line as ``{"text": str, "path": str}``, and **binary** (all else, as ``.pdf``) each file as ``{"bytes": bytes, "path": str}``.

    Args:
        path: a file, a folder, a pattern (``data/**/*.csv``), or a URL of one, such as ``s3://bucket/folder``.
        format: parquet, csv, json, images, text or binary, where names do not say it, or a folder has files of several formats:
            then those of this one are read.
        encoding: of csv, json and text, if it is not UTF-8 and the file does not begin with a mark that says so.
        separator: between the fields of csv: one character, or ``"tab"``. If it is not given, the one of comma, semicolon, tab
            and ``|`` that cuts the first lines into equally many fields.
        as_text: columns of csv that stay text.

    Raises:
        SourceError: nothing is there, it has no rows, or it is not known how to read it.
        OptionError: a value that cannot be.
    """
    return path_source(str(path), file_options(format=format, encoding=encoding, separator=separator, as_text=as_text))


def describe_source(source: Any, *, limit: int | None = None, options: FileOptions | None = None) -> tuple[SourceSpec, Any]:
    """Return what a source is, and what of it must travel: of an iterable all rows, so an endless one needs a ``limit``.

    Raises:
        OptionError: options for files were given with a source that is no path.
        SourceError: it is empty, not there, or of no known form.
    """
    options = options or FileOptions()
    if isinstance(source, str | Path):
        return path_source(str(source), options), None
    if options != FileOptions():
        said = next(name for name in ("format", "encoding", "separator", "as_text") if getattr(options, name))
        raise OptionError(
            f"{said} was given with a source that is no path.", "Give it to rk.files(path, ...), or leave it out: it is for files."
        )
    if isinstance(source, SourceSpec):
        return source, None
    if callable(source):
        return SourceSpec(form="function", label=getattr(source, "__name__", "function")), source
    rows = rows_in(source)
    if rows is None:
        raise SourceError(
            f"A {type(source).__name__} is no source.",
            "Give an iterable of rows, a path, or a function that makes rows or a Ray Dataset.",
        )
    most = None if limit is None else max(1, limit)
    taken = source[:most] if isinstance(source, range) else list(itertools.islice(rows, most))
    if not taken:
        raise SourceError("The source is empty.", "Give at least one row; an iterator that was used up before gives none.")
    return SourceSpec(form="items"), taken
