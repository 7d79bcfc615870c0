"""Checkpoints by torch.distributed.checkpoint: written beside training, complete or never loaded.

A checkpoint is a folder ``step-N`` (``checkpoint_folder.py``). The tensors in it have the names of the state's own keys; ranks of a replica write their parts, and whoever reads puts whole
tensors together, so that a run can be taken up with replicas of another size.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from raykit.engine.folder import on_head
from raykit.engine.training.checkpoint_folder import complete, folders
from raykit.engine.training.state import Structure, apart
from raykit.events import CheckpointFailed, CheckpointSaved, Event
from raykit.store.room import is_full

STRUCTURE = "_structure"  # closed, since torch.distributed.checkpoint forgets empty dicts and the type of keys

logger = logging.getLogger(__name__)


class Checkpoints:
    """The newest states of a run, by step, in a folder or at any URL that fsspec knows."""

    def __init__(self, place: str, *, kept: int, told: Callable[[Event], None], group: Any = None) -> None:
        """Store.

        Args:
            place: a folder, or an fsspec URL.
            kept: how many complete checkpoints stay.
            told: takes what became of each: CheckpointSaved from the rank that completes it, or CheckpointFailed.
            group: the process group of the ranks that write one checkpoint together, None for a single rank.
        """
        self._place, self._kept, self._told, self._group = place.rstrip("/"), kept, told, group
        self._writing: threading.Thread | None = None
        self._written_step = -1
        self._found_no_room = False

    def save(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Copy the state that ``state`` gives and write it in the background, unless that step is written already.

        Waits for a write that goes on.
        """
        self.finish()
        if step == self._written_step:
            return
        structure, tensors = apart(state())
        copied = {name: each.detach().to("cpu", copy=True) for name, each in tensors.items()}
        self._writing = threading.Thread(
            target=self._write, args=(step, {**copied, STRUCTURE: structure}), name="raykit-checkpoint", daemon=True
        )
        self._writing.start()

    def finish(self) -> bool:
        """Wait for the write that goes on; False where the newest failed because the disk is full."""
        if self._writing is not None:
            self._writing.join()
        return not self._found_no_room

    def newest(self) -> dict[str, Any] | None:
        """Return the newest state that is whole, with tensors on the CPU, or None."""
        return newest_state(self._place)

    def _write(self, step: int, state: dict[str, Any]) -> None:
        begun_s = time.monotonic()
        path = f"{self._place}/step-{step:012d}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that one process writes alone is what is wanted
                dcp.save(state, checkpoint_id=path, process_group=self._group, no_dist=self._group is None)
        except (Exception, CheckpointException) as exc:  # a full disk must not end the training: a card says it
            causes = [failure[0] for failure in exc.failures.values()] if isinstance(exc, CheckpointException) else [exc]
            self._found_no_room = any(map(is_full, causes))
            reason = str(exc).strip().splitlines()[-1]
            self._told(CheckpointFailed(step=step, path=on_head(path), reason=reason))
            return
        self._written_step, self._found_no_room = step, False
        if self._group is None or self._group.rank() == 0:
            self._forget_old(step)
            self._told(CheckpointSaved(step=step, path=on_head(path), save_s=time.monotonic() - begun_s))

    def _forget_old(self, newest: int) -> None:
        """Keep the newest complete ones, and drop what is older, torn ones among them."""
        filesystem, root = fsspec.core.url_to_fs(self._place)
        kept = complete(filesystem, root)[-self._kept :]
        for folder in folders(filesystem, root):
            if folder not in kept and _step_of(folder) < newest:
                with suppress(FileNotFoundError):
                    filesystem.rm(folder, recursive=True)


def _step_of(folder: str) -> int:
    return int(folder.rstrip("/").rpartition("step-")[2])


def _loaded(filesystem: Any, folder: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="raykit-") as near:
        local = folder
        if "file" not in filesystem.protocol:
            local = f"{near}/checkpoint"
            filesystem.get(folder, local, recursive=True)
        whole = Path(near) / "whole.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp_to_torch_save(local, whole)
        tensors = torch.load(whole, map_location="cpu", weights_only=False)
    structure: Structure = tensors.pop(STRUCTURE)
    return structure.filled(tensors)


def newest_state(place: str) -> dict[str, Any] | None:
    """Return the newest state that is whole in a folder of checkpoints, with tensors on the CPU, or None."""
    filesystem, root = fsspec.core.url_to_fs(place.rstrip("/"))
    for folder in reversed(complete(filesystem, root)):
        try:
            return _loaded(filesystem, folder)
        except (Exception, CheckpointException):  # whatever tore it, an older one is better than none
            logger.exception("the checkpoint %s cannot be read", folder)
    return None
