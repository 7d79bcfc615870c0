"""A run's folder, which lies on the head's machine, as the run's workers have it on whatever machine.

A worker that does not find it asks an actor on the head's node for its files, through a filesystem of fsspec.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ray
import ray.cloudpickle.cloudpickle

from raykit.errors import RunError
from raykit.wire import buffers
from raykit.wire.classes import keep_classes_one
from raykit.wire.main_module import become_main
from raykit.wire.payload import Payload

PROTOCOL = "raykit-head"
MARK = "spec.json"  # written once, when the run was accepted


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder at ``path`` of the head's machine; another machine's folder of that path has another ``mark``."""

    path: Path
    mark: tuple[int, int]

    @classmethod
    def of(cls, path: Path) -> RunFolder:
        """Give the folder that lies here."""
        stat = (path / MARK).stat()
        return cls(path, (stat.st_ino, stat.st_mtime_ns))

    @property
    def is_here(self) -> bool:
        """Whether this machine has it, as the head's does, or as all do that share their files."""
        with suppress(OSError):
            return self.of(self.path) == self
        return False

    def place(self, name: str) -> str:
        """Give the path or the URL by which fsspec finds a file in it."""
        path = str(self.path / name)
        return path if self.is_here else _head().unstrip_protocol(path)

    def payload(self, place: str = "payload") -> Payload:
        """Read what travelled with the spec, and make this process stand where the notebook does.

        Its large buffers are read when it is opened.
        """
        keep_classes_one(ray.cloudpickle.cloudpickle)
        file = self.path / place
        payload = Payload.from_bytes(file.read_bytes() if self.is_here else _head().cat_file(str(file)), read=self.buffer)
        become_main()
        chosen = ray.get_runtime_context().runtime_env
        payload.place.enter(kept=chosen.get("env_vars") or (), keeps_folder=bool(chosen.get("working_dir")))
        return payload

    def buffer(self, name: str) -> memoryview:
        """Return a large buffer of the payload; on another machine runs share a copy.

        Raises:
            RunError: it is gone, as the buffers of a run that is done are.
        """
        within = f"{buffers.FOLDER}/{name}"
        try:
            if self.is_here:
                return buffers.mapped(self.path / within)
            found = buffers.mapped(self._copied(within, self._near / within))
        except FileNotFoundError as exc:
            raise RunError(f"Large values that {self.path.name} captured are gone.", "Run its cell again.") from exc
        os.utime(self._near / within)
        kept_bytes = shutil.disk_usage(self._near).free * buffers.KEPT_SHARE
        buffers.prune(self._near / buffers.FOLDER, kept_bytes=kept_bytes, unused_before_unix_s=time.time() - buffers.STARTING_S)
        return found

    def forget_buffers(self, *, but: Iterable[str] = ()) -> None:
        """Delete the large buffers of a finished run, except those named in ``but``."""
        for file in (self.path / buffers.FOLDER).glob("*"):
            if file.name not in but:
                file.unlink(missing_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """Write a file in one move."""
        file, draft = self.path / name, self.path / f"{name}.new"
        if self.is_here:
            file.parent.mkdir(mode=0o700, exist_ok=True)
            draft.write_bytes(data)
            draft.replace(file)
        else:
            _head().pipe_file(str(draft), data)
            _head().mv(str(draft), str(file))

    def append(self, name: str, text: str) -> None:
        """Write at the end of a file."""
        if self.is_here:
            with (self.path / name).open("a") as file:
                file.write(text)
        else:
            _head().append(str(self.path / name), text.encode())

    def fetched(self, name: str) -> str:
        """Give the path by which any process of this machine reads what lies there; a copy lasts as long as the cluster."""
        if self.is_here:
            return str(self.path / name)
        return str(self._copied(name, self._near / f"{self.path.name}-{'-'.join(map(str, self.mark))}" / name))

    @property
    def _near(self) -> Path:
        """Where a machine that has not the head's files keeps copies of them."""
        return self.path.parent.parent / "near"

    def _copied(self, name: str, near: Path) -> Path:
        """Return ``near``, copied from the head's machine if it is not there yet."""
        if not near.exists():
            near.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = tempfile.mkdtemp(dir=near.parent)  # of this process: others of this machine may fetch it too
            _head().get(str(self.path / name), f"{draft}/whole", recursive=True)
            with suppress(OSError):  # another one was quicker
                os.rename(f"{draft}/whole", near)
            shutil.rmtree(draft)
        return near


def on_head(place: str) -> str:
    """Give the path that a place has on the head's machine; a URL of the user's stays."""
    return place.removeprefix(f"{PROTOCOL}://")


@cache
def _head() -> Any:
    from raykit.engine.head import HeadFileSystem

    return HeadFileSystem()
