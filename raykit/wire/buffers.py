"""Large buffers of a payload (pickle protocol 5) as files, each once however many runs use it.

A buffer is a file of a cluster's folder, and each run that refers to it has a link to it in a folder of its own. So a file
without further links is needed by no run. Its name is the digest of its content where it has come through the door. On the
cluster's own machine a name has only the digest of some pages, and content is compared byte by byte instead: that takes a
third of the time of a digest.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

FOLDER = "buffers"
LARGE_BYTES = 1_000_000
"""A buffer of so many bytes travels out of band, and so does a pickle of so many."""

KEPT_SHARE = 0.25
"""Buffers that no run refers to may take so much of the disk that is free, so that a cell may run again without sending them."""

STARTING_S = 600.0  # so long after a buffer was looked for the run that needs it may come
PIECE_BYTES = 4_000_000
COMPARED_BYTES = 256 * 1024  # two of these stay in a core's cache
NUM_SAMPLES, SAMPLE_BYTES = 64, 4096
NAME = re.compile(r"[0-9a-f]+(-[0-9a-f]+)*")
DRAFT = ".new"

Told = Callable[[int], None]
"""Called with the number of bytes that were written since the last call."""


def digest(view: memoryview) -> str:
    """Return the name of a buffer by its whole content."""
    return hashlib.sha256(view).hexdigest()


def new_name(view: memoryview) -> str:
    """Return a name that no other buffer has, by which :func:`known` finds this content."""
    return f"{_sampled(view)}-{secrets.token_hex(4)}"


def same_as(view: memoryview, others: Mapping[str, memoryview]) -> str | None:
    """Return the name of the buffer that has the content of ``view``; None if there is none."""
    key = _sampled(view)
    return next((name for name, other in others.items() if name.startswith(f"{key}-") and _are_same(view, other)), None)


def listed(folder: Path) -> dict[str, list[str]]:
    """Return the names that :func:`new_name` has given to the buffers in ``folder``, by what of them the content says."""
    found: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        if not name.endswith(DRAFT):
            found.setdefault(name.rpartition("-")[0], []).append(name)
    return found


def known(folder: Path, view: memoryview, names: Mapping[str, Sequence[str]]) -> str | None:
    """Return the name of the buffer in ``folder`` that has this content, of those :func:`listed`; None if there is none."""
    for name in names.get(_sampled(view), ()):
        with suppress(FileNotFoundError):
            if _has(folder / name, view):
                return name
    return None


def write(folder: Path, name: str, view: memoryview, *, told: Told = lambda _: None) -> None:
    """Write a buffer, in one move.

    Raises:
        OSError: there is no room for it.
    """
    draft = folder / f"{name}{DRAFT}"
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb", buffering=0) as file:
            for start in range(0, len(view), PIECE_BYTES):
                piece = view[start : start + PIECE_BYTES]
                while piece:
                    num_written = file.write(piece)
                    piece = piece[num_written:]
                    told(num_written)
        draft.rename(folder / name)
    except BaseException:  # an interrupt too
        draft.unlink(missing_ok=True)
        raise


def write_at(folder: Path, name: str, place: int, data: bytes, *, of: int) -> None:
    """Write a piece of a buffer that is named by its digest; with its last piece it is there. May be done twice.

    Raises:
        ValueError: its content has another digest.
    """
    if (folder / name).exists():
        return
    draft = folder / f"{name}{DRAFT}"
    file = os.open(draft, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        written = 0
        while written < len(data):
            written += os.pwrite(file, data[written:], place + written)
    finally:
        os.close(file)
    if place + len(data) < of:
        return
    if digest(mapped(draft)) != name:
        draft.unlink(missing_ok=True)
        raise ValueError(f"the buffer {name} has come with another content")
    draft.rename(folder / name)


def mapped(file: Path) -> memoryview:
    """Return a buffer's content without a copy; who writes to it changes a page of its own."""
    with file.open("rb") as opened:
        return memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY))


def link(folder: Path, names: Sequence[str], run_folder: Path) -> None:
    """Keep buffers for as long as a run's folder has them.

    Raises:
        FileNotFoundError: one is not there any more.
    """
    mine = run_folder / FOLDER
    for name in names:
        mine.mkdir(mode=0o700, exist_ok=True)
        try:
            os.link(folder / name, mine / name)
        except FileExistsError:
            continue
        except FileNotFoundError:
            raise
        except OSError:  # a file system without links
            shutil.copyfile(folder / name, mine / name)


def prune(folder: Path, *, kept_bytes: float, unused_before_unix_s: float) -> None:
    """Remove buffers that no run refers to: those that were used last stay, up to ``kept_bytes`` together.

    Args:
        folder: where they are.
        kept_bytes: how much may stay.
        unused_before_unix_s: what was used since then stays in any case; a run that starts now may need it.
    """
    files, left = [], kept_bytes
    for file in folder.glob("*"):
        with suppress(FileNotFoundError):
            files.append((file, file.stat()))
    for file, stat in sorted(files, key=lambda each: each[1].st_mtime, reverse=True):
        if stat.st_nlink > 1:
            continue
        left -= stat.st_size
        if stat.st_mtime < unused_before_unix_s and (left < 0 or file.suffix == DRAFT):
            file.unlink(missing_ok=True)


def _sampled(view: memoryview) -> str:
    """Return size and digest of pages that are spread over a buffer."""
    step = max(SAMPLE_BYTES, len(view) // NUM_SAMPLES)
    pages = hashlib.sha256(view[-SAMPLE_BYTES:])
    for start in range(0, len(view), step):
        pages.update(view[start : start + SAMPLE_BYTES])
    return f"{len(view):x}-{pages.hexdigest()[:32]}"


def _are_same(view: memoryview, other: memoryview) -> bool:
    pieces = (slice(start, start + COMPARED_BYTES) for start in range(0, len(view), COMPARED_BYTES))
    return all(bytes(view[piece]) == bytes(other[piece]) for piece in pieces)  # views compare byte by byte, in Python's objects


def _has(file: Path, view: memoryview) -> bool:
    """Return whether a file has exactly this content."""
    opened = os.open(file, os.O_RDONLY)
    try:
        if os.fstat(opened).st_size != len(view):
            return False
        for start in range(0, len(view), COMPARED_BYTES):
            piece = bytes(view[start : start + COMPARED_BYTES])
            if os.pread(opened, len(piece), start) != piece:
                return False
    finally:
        os.close(opened)
    return True
