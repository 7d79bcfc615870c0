"""Which files a path means, and in which format: the same for pipelines and training, in the notebook and in the cluster."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

from raykit.errors import SourceError
from raykit.spec import SourceSpec
from raykit.spec.files import FORMATS, WITH_ROWS, FileOptions, describes_rows, format_of, is_companion, is_hidden

NAMED = 3
IMAGE_MARKS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
WILD = "*?["
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file: its absolute path or URL, and its columns that stand in the names of its folders (``year=2024``), as text."""

    path: str
    num_bytes: int
    columns: tuple[tuple[str, str | None], ...] = ()

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The files of a source in their order, their format, and those beside them that are no data."""

    files: tuple[File, ...]
    format: str
    left_out: tuple[File, ...] = ()


def path_source(path: str, options: FileOptions = FileOptions()) -> SourceSpec:  # noqa: B008  (frozen)
    """Return the source that a path, a pattern or a URL means; what lies on this machine is looked at.

    Raises:
        SourceError: nothing is there, it has no rows, or it is not known how to read it.
    """
    local = path.removeprefix("file://") if path.startswith("file:///") else path
    absolute = path if "://" in local else os.path.abspath(Path(local).expanduser())
    spec = SourceSpec(
        form="path",
        paths=(absolute,),
        format=options.format,
        encoding=options.encoding,
        separator=options.separator,
        as_text=options.as_text,
        label=path,
    )
    if "://" in absolute:
        return spec
    return resolved(spec)


def resolved(spec: SourceSpec) -> SourceSpec:
    """Return the source with the format of its files, after a look at them.

    Raises:
        SourceError: as of :func:`listed`.
    """
    listing = listed(spec)
    return replace(spec, format=listing.format, left_out=_names(listing.left_out))


def listed(spec: SourceSpec) -> Listing:
    """Look at what lies at the paths of a source.

    Raises:
        SourceError: nothing is there, it has no rows, or it is not known how to read it.
    """
    found = [file for path in spec.paths for file in _found(path, spec.label)]
    if not found:
        raise SourceError(
            f"The folder {spec.label} has no data.", "Give one with files; those whose names begin with . or _ are none."
        )
    files, left_out, format_ = _data_of(found, spec)
    empty = [file for file in files if not file.num_bytes]
    if empty and format_ in ("parquet", "images"):
        raise SourceError(
            f"{_names(empty)} of {spec.label} {_is(empty)} empty, and no {_one(format_)}.",
            "Remove what was not written to its end.",
        )
    if format_ != "binary":
        files = [file for file in files if file.num_bytes]
    if not files:
        raise SourceError(f"{_names(empty)} of {spec.label} {_is(empty)} empty.", "Give at least one row.")
    return Listing(files=tuple(files), format=format_, left_out=tuple(left_out))


def open_file(path: str) -> IO[bytes]:
    """Open a local file, or one at a URL."""
    if "://" not in path:
        return Path(path).open("rb")
    filesystem, inside = _filesystem(path)
    opened: IO[bytes] = filesystem.open(inside, "rb")
    return opened


def _data_of(found: list[File], spec: SourceSpec) -> tuple[list[File], list[File], str]:
    """Part data and what lies beside it, and return the format of the data."""
    data = [file for file in found if not is_companion(file.name)] or found
    if spec.format:
        named = [file for file in data if format_of(file.name) == spec.format]
        named = named or [file for file in found if format_of(file.name) == spec.format] or data
        return named, _others(found, named), spec.format
    data = [file for file in data if file.num_bytes or format_of(file.name)] or data  # no marks without a suffix or content
    rows = [file for file in data if not describes_rows(file.name)]
    if {format_of(file.name) for file in rows} in [{each} for each in WITH_ROWS]:
        data = rows
    formats = {file.path: format_of(file.name) for file in data}
    unknown = [file for file in data if formats[file.path] is None]
    if unknown:
        sniffed = _sniffed(unknown[0])
        if sniffed is None:
            raise SourceError(
                f"The name of {unknown[0].name} in {spec.label} does not say its format, and its first bytes do not either.",
                f"Say it: --format {', '.join(FORMATS)} (in Python format=), or give a pattern of the files that are meant.",
            )
        formats |= {file.path: sniffed for file in unknown}
    kinds = Counter(formats.values())
    if len(kinds) > 1:
        shown = "; ".join(f"{kind}: {_names([file for file in data if formats[file.path] == kind])}" for kind in kinds)
        first = str(kinds.most_common(1)[0][0])
        raise SourceError(
            f"{spec.label} has files of several formats ({shown}), and they are no one table.",
            f"Say which are meant, as --format {first} (in Python format={first!r}), or by a pattern of their names.",
        )
    return data, _others(found, data), str(formats[data[0].path])


def _others(found: list[File], chosen: list[File]) -> list[File]:
    kept = {file.path for file in chosen}
    return [file for file in found if file.path not in kept]


def _sniffed(file: File) -> str | None:
    with open_file(file.path) as opened:
        head = opened.read(16)
    if head.startswith(b"PAR1"):
        return "parquet"
    return "images" if head.startswith(IMAGE_MARKS) or (head[:4], head[8:12]) == (b"RIFF", b"WEBP") else None


def _found(path: str, label: str) -> Iterator[File]:
    yield from _found_at_url(path, label) if "://" in path else _found_here(path, label)


def _found_here(path: str, label: str) -> Iterator[File]:
    if os.path.lexists(path):
        roots = [path]
    else:
        import glob

        roots = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []
        roots = [each for each in roots if not any(each.startswith(f"{other}/") for other in roots if Path(other).is_dir())]
    if not roots:
        raise SourceError(f"Nothing is at {label} (looked from {Path.cwd()}).", "Correct the path, or give an absolute one.")
    for root in roots:
        if Path(root).is_dir():
            yield from (
                File(path=file, num_bytes=Path(file).stat().st_size, columns=_columns(file, root)) for file in _walked(root)
            )
        else:
            yield File(path=root, num_bytes=Path(root).stat().st_size)


def _walked(root: str) -> Iterator[str]:
    """Give the files below a folder, in the order of their paths; links are followed, as those of a download's cache."""
    seen: set[str] = set()
    files: list[str] = []
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else [name for name in folders if not is_hidden(name)]
        if real not in seen:
            files += [f"{folder}/{name}" for name in names if not is_hidden(name) and Path(folder, name).is_file()]
        seen.add(real)
    yield from sorted(files)


def _found_at_url(path: str, label: str) -> Iterator[File]:
    filesystem, root = _filesystem(path)
    roots = [root] if filesystem.exists(root) else []
    if not roots and any(mark in root for mark in WILD):
        roots = sorted(filesystem.glob(root))
    if not roots:
        raise SourceError(f"Nothing is at {label}.", "Correct the URL.")
    for each in roots:
        about = filesystem.info(each)
        if about["type"] != "directory":
            yield File(path=_url(filesystem, path, each), num_bytes=_size(about))
            continue
        for name, inner in sorted(filesystem.find(each, detail=True).items()):
            below = name[len(each.rstrip("/")) :].strip("/")
            if not any(is_hidden(part) for part in below.split("/")):
                yield File(path=_url(filesystem, path, name), num_bytes=_size(inner), columns=_columns(name, each))


def _size(about: dict[str, Any]) -> int:
    """Return a file's size; of one whose size is not told, at least not that of an empty one."""
    return 1 if about.get("size") is None else int(about["size"])


def _url(filesystem: Any, given: str, inside: str) -> str:
    """Return the URL of a file of a filesystem, under the protocol that was given."""
    protocols = (filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol
    if "::" in given:  # chained filesystems: zip://inner::s3://bucket/outer.zip
        return f"{given.partition('://')[0]}://{inside}::{given.partition('::')[2]}"
    has_protocol = any(inside.startswith(f"{each}://") for each in protocols)
    return inside if has_protocol else f"{given.partition('://')[0]}://{inside}"


@lru_cache(maxsize=16)
def _opened_filesystem(protocol: str, host: str) -> Any:
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSystem

    return ArrowFSWrapper(FileSystem.from_uri(f"{protocol}://{host}")[0])


def _filesystem(path: str) -> tuple[Any, str]:
    """Return the filesystem of a URL, and the path in it: fsspec's, or Arrow's own where fsspec lacks a package for it.

    Raises:
        SourceError: no filesystem is known for it.
    """
    import fsspec

    try:
        filesystem, inside = fsspec.core.url_to_fs(path)
    except ImportError as exc:
        protocol, _, rest = path.partition("://")
        try:
            return _opened_filesystem(protocol, rest.partition("/")[0]), rest
        except Exception:
            raise SourceError(f"{path} cannot be reached: {exc}.", "Install that package where the cluster runs.") from exc
    except ValueError as exc:
        raise SourceError(f"{path} cannot be reached: {exc}.", "Correct the URL.") from exc
    return filesystem, inside


def _columns(file: str, root: str) -> tuple[tuple[str, str | None], ...]:
    """Return the columns that the names of the folders between say, as Hive writes them."""
    parts = file[len(root) :].strip("/").split("/")[:-1]
    pairs = (part.partition("=") for part in parts if "=" in part)
    return tuple((name, None if value == HIVE_NULL else unquote(value)) for name, _, value in pairs if name)


def _names(files: Iterable[File]) -> str:
    names = [file.name for file in files]
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _is(files: list[File]) -> str:
    return "is" if len(files) == 1 else "are"


def _one(format_: str) -> str:
    return {"parquet": "Parquet file", "images": "image"}[format_]
