"""What the name of a file says: its format and its compression; and how a person says it otherwise."""

from __future__ import annotations

import codecs
import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from raykit.errors import OptionError

FORMATS: dict[str, tuple[str, ...]] = {
    "parquet": (".parquet", ".pq", ".parq"),
    "csv": (".csv", ".tsv", ".tab"),
    "json": (".json", ".jsonl", ".ndjson", ".jsonlines"),
    "images": (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    "text": (".txt", ".text", ".md"),
    "binary": (),
}
"""The formats, with the suffixes of their files; what has another suffix is binary."""

COMPRESSIONS = {
    **dict.fromkeys((".gz", ".gzip", ".bgz"), "gzip"),
    **dict.fromkeys((".zst", ".zstd"), "zstd"),
    **dict.fromkeys((".xz", ".lzma"), "xz"),
    ".bz2": "bz2",
    ".lz4": "lz4",
    ".br": "brotli",
    ".zip": "zip",
}
SEPARATED = ("csv", "json", "text")
"""Formats of files of text, which have an encoding."""

ALSO_CALLED = {"jsonl": "json", "ndjson": "json", "tsv": "csv", "image": "images", "txt": "text", "bytes": "binary"}
TAB_SUFFIXES, LINES_SUFFIXES = (".tsv", ".tab"), (".jsonl", ".ndjson", ".jsonlines")

COMPANIONS = frozenset(
    [
        "readme",
        "license",
        "licence",
        "notice",
        "copying",
        "changelog",
        "changes",
        "citation",
        "authors",
        "contributing",
        "makefile",
        "dockerfile",
    ]
)
"""Names, without suffix, of files that lie beside data and are none."""
COMPANION_FILES = frozenset(
    ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "croissant.json", "state.json", "thumbs.db", "desktop.ini"]
)
DESCRIBING_SUFFIXES = (
    *(".md", ".rst", ".html", ".py", ".ipynb", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".log", ".lock"),
    *(".md5", ".sha1", ".sha256", ".crc", ".sum"),
)
"""Beside files of a format that has rows these are no data; among documents they may be."""
WITH_ROWS = ("parquet", "csv", "json", "images")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """How files are read, where their names do not say it.

    ``format`` is one of ``FORMATS``; ``encoding`` one of Python's; ``separator`` stands between the fields of a CSV file;
    ``as_text`` names columns of CSV files that stay text, whatever their values look like.
    """

    format: str = ""
    encoding: str = ""
    separator: str = ""
    as_text: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.format and self.format not in FORMATS:
            raise OptionError(f"There is no format {self.format!r}.", _near(self.format, [*FORMATS, *ALSO_CALLED]))
        if self.encoding:
            try:
                codecs.lookup(self.encoding)
            except LookupError:
                known = ["utf-8", "utf-16", "latin-1", "cp1252", "ascii", "shift_jis", "gb18030", "big5", "koi8_r"]
                raise OptionError(f"Python has no encoding {self.encoding!r}.", _near(self.encoding, known)) from None
        if self.separator and (len(self.separator) != 1 or self.separator in '"\r\n'):
            raise OptionError(f"The separator is {self.separator!r}.", "Give one character, as ';' or 'tab'.")
        for name, given, formats in (
            ("encoding", self.encoding, SEPARATED),
            ("separator", self.separator, ("csv",)),
            ("as_text", self.as_text, ("csv",)),
        ):
            if given and self.format and self.format not in formats:
                raise OptionError(f"{name} was given for {self.format} files.", f"It is for: {', '.join(formats)}.")


def file_options(
    *,
    format: str | None = None,  # noqa: A002  (the word of the magic)
    encoding: str | None = None,
    separator: str | None = None,
    as_text: Sequence[str] | str = (),
) -> FileOptions:
    """Return the options as a person wrote them: ``jsonl`` for json, ``tab`` for the separator, one name for several.

    Raises:
        OptionError: a value that cannot be, with those that can.
    """
    said = (format or "").lower().lstrip(".")
    separators = {"tab": "\t", "\\t": "\t", "space": " ", "semicolon": ";", "comma": ",", "pipe": "|"}
    return FileOptions(
        format=ALSO_CALLED.get(said, said),
        encoding=encoding or "",
        separator=separators.get(separator or "", separator or "") or ("\t" if said == "tsv" else ""),
        as_text=(as_text,) if isinstance(as_text, str) else tuple(as_text),
    )


def format_of(name: str) -> str | None:
    """Return the format that a file's name says; None of one without a suffix, which may be anything."""
    inner, _ = _opened(name)
    suffix = _suffix(inner)
    return next((known for known, suffixes in FORMATS.items() if suffix in suffixes), "binary" if _suffix(name) else None)


def compression_of(name: str) -> str | None:
    """Return the compression that a file's name says."""
    return _opened(name)[1]


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of that name is never data: hidden, or a mark such as ``_SUCCESS``."""
    return name.startswith((".", "_"))


def is_companion(name: str) -> bool:
    """Return whether a file of that name lies beside data, whatever that is, and is none itself."""
    lower = name.lower()
    return lower.split(".")[0] in COMPANIONS or lower in COMPANION_FILES


def describes_rows(name: str) -> bool:
    """Return whether a file of that name is no data where it lies beside files ``WITH_ROWS``."""
    return name.lower().endswith(DESCRIBING_SUFFIXES)


def has_tabs(name: str) -> bool:
    """Return whether the name says that tabs stand between the fields."""
    return _suffix(_opened(name)[0]) in TAB_SUFFIXES


def has_lines(name: str) -> bool:
    """Return whether the name says that each line is a JSON value of its own."""
    return _suffix(_opened(name)[0]) in LINES_SUFFIXES


def _opened(name: str) -> tuple[str, str | None]:
    """Return the name without the suffix of its compression, and that."""
    suffix = _suffix(name)
    found = COMPRESSIONS.get(suffix)
    return (name[: -len(suffix)], found) if found else (name, None)


def _suffix(name: str) -> str:
    last = name.rstrip("/").rpartition("/")[2].lower()
    stem, dot, suffix = last.rpartition(".")
    return f".{suffix}" if dot and stem else ""


def _near(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else f"There are: {', '.join(FORMATS if 'parquet' in known else known)}."
