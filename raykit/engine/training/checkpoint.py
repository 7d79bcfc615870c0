"""Checkpoints on disk: written beside training, complete or not there at all."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from raykit.events import CheckpointSaved

KEPT = 2


def to_bytes(state: dict[str, Any]) -> bytes:
    """Copy a state as it is now."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes) -> dict[str, Any]:
    """Read a state that a peer or an earlier run of the same user wrote, onto the CPU."""
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
    return state


class Checkpoints:
    """The newest states of a run, by step."""

    def __init__(self, folder: Path, saved: Callable[[CheckpointSaved], None]) -> None:
        self._folder, self._saved = folder, saved
        self._writing: threading.Thread | None = None

    def save(self, step: int, data: bytes) -> None:
        """Write a state in the background; one write at a time."""
        self.finish()
        self._writing = threading.Thread(target=self._write, args=(step, data), name="raykit-checkpoint", daemon=True)
        self._writing.start()

    def finish(self) -> None:
        """Wait for the write that goes on."""
        if self._writing is not None:
            self._writing.join()

    def newest(self) -> bytes | None:
        """Give the newest state, or None."""
        files = self._files()
        return files[-1].read_bytes() if files else None

    def _write(self, step: int, data: bytes) -> None:
        begun_s = time.monotonic()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        file = self._folder / f"step-{step:012d}.pt"
        draft = file.with_suffix(".new")
        draft.write_bytes(data)
        draft.replace(file)
        for old in self._files()[:-KEPT]:
            old.unlink(missing_ok=True)
        self._saved(CheckpointSaved(step=step, path=str(file), save_s=time.monotonic() - begun_s))

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("step-*.pt"))
