"""Large buffers of a payload on their way to a cluster: what it has already is not sent again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from raykit.cluster.home import private_folder
from raykit.errors import CapacityError
from raykit.wire import buffers
from raykit.wire.door import Door
from raykit.wire.payload import Payload

Ask = Callable[[Callable[[Door], Any]], Any]

SOON_S = 0.5  # what takes no longer shows no line
LINE_S = 0.1


def sent(payload: Payload, ask: Ask, *, here: Path | None) -> Payload:
    """Return the payload with the names of its large buffers, when the cluster has all of them. An interrupt leaves none half.

    Args:
        payload: as it was packed.
        ask: asks at the cluster's door.
        here: the cluster's folder, where it is this machine's.

    Raises:
        CapacityError: the cluster has no memory or no disk for them; nothing was sent.
    """
    if not payload.raw:
        return payload
    folder = private_folder(here / buffers.FOLDER) if here else None
    named = _named(payload, folder)
    large = {part: tuple(named[_key(view)][0] for view in views) for part, views in payload.raw.items()}
    views = dict(named.values())
    missing = ask(lambda door: door.missing({name: len(view) for name, view in views.items()}))
    with _line(sum(len(views[name]) for name in missing)) as told:
        for name in missing:
            if folder:
                _write(folder, name, views[name], told)
            else:
                _upload(ask, name, views[name], told)
    return replace(payload, raw={}, large=large)


def _key(view: memoryview) -> tuple[int, int]:
    """Return what two views of one object's memory have in common."""
    return id(view.obj), len(view)


def _named(payload: Payload, folder: Path | None) -> dict[tuple[int, int], tuple[str, memoryview]]:
    """Return the large buffers of a payload, each once, with their names."""
    found: dict[tuple[int, int], tuple[str, memoryview]] = {}
    new: dict[str, memoryview] = {}
    names = buffers.listed(folder) if folder else {}
    for view in (view for views in payload.raw.values() for view in views):
        if _key(view) in found:
            continue
        name = (buffers.known(folder, view, names) or buffers.same_as(view, new)) if folder else buffers.digest(view)
        if name is None:
            name = buffers.new_name(view)
            new[name] = view
        found[_key(view)] = name, view
    return found


def _write(folder: Path, name: str, view: memoryview, told: buffers.Told) -> None:
    try:
        buffers.write(folder, name, view, told=told)
    except OSError as exc:
        problem = f"A captured value of {len(view) / 1e9:.3g} GB cannot be written to {folder}: {exc.strerror}."
        raise CapacityError(problem, "Free space there. Nothing was started.") from exc


def _upload(ask: Ask, name: str, view: memoryview, told: buffers.Told) -> None:
    for start in range(0, len(view), buffers.PIECE_BYTES):
        piece = bytes(view[start : start + buffers.PIECE_BYTES])
        ask(partial(Door.send, name=name, at=start, piece=piece, of=len(view)))
        told(len(piece))


@contextmanager
def _line(num_bytes: int) -> Iterator[buffers.Told]:
    """Show how much of so many bytes is sent, in a line that is written over, where that takes long and somebody looks."""
    line = _Line(num_bytes, sys.stderr if _is_looked_at(sys.stderr) else None)
    try:
        yield line.add
    finally:
        line.close()


class _Line:
    """The line, and how far it is."""

    def __init__(self, num_bytes: int, stream: TextIO | None) -> None:
        self._num_bytes, self._stream = num_bytes, stream
        self._num_sent = 0
        self._begun_s = self._drawn_s = time.monotonic()
        self._is_drawn = False

    def add(self, num_bytes: int) -> None:
        self._num_sent += num_bytes
        now_s = time.monotonic()
        if now_s - self._begun_s > SOON_S and now_s - self._drawn_s > LINE_S:
            self._draw(now_s)

    def close(self) -> None:
        if self._is_drawn and self._stream is not None:
            self._draw(time.monotonic())
            self._stream.write("\n")

    def _draw(self, now_s: float) -> None:
        self._drawn_s, self._is_drawn = now_s, True
        if self._stream is not None:
            self._stream.write("\r" + words(self._num_sent, self._num_bytes, now_s - self._begun_s))
            self._stream.flush()


def words(num_sent: int, num_bytes: int, passed_s: float) -> str:
    """Return the line: a bar, how much of the captured values is sent, and how long the rest takes."""
    share = num_sent / num_bytes
    bar = "█" * round(20 * share)
    left_s = passed_s * (1 - share) / share if share else 0.0
    return f"Sending captured values |{bar:<20}| {num_sent / 1e9:.2f} of {num_bytes / 1e9:.2f} GB, {left_s:.0f} s left "


def _is_looked_at(stream: TextIO) -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return stream.isatty() or hasattr(shell, "kernel")
