"""A folder of checkpoints, and whose they are. Without torch, which a host does not need.

A checkpoint is a folder ``step-N`` in it. Its ``.metadata`` file is written last, so that a folder without one is torn.
"""

from __future__ import annotations

import json
from typing import Any

import fsspec

from raykit.engine.run import UserCodeError

COMPLETE = ".metadata"
OWNER = "raykit-run.json"


def folders(filesystem: Any, root: str) -> list[str]:
    """Return the checkpoints in a folder, oldest first, torn ones among them."""
    if not filesystem.isdir(root):
        return []
    filesystem.invalidate_cache()
    return sorted(path for path in filesystem.ls(root, detail=False) if path.rstrip("/").rpartition("/")[2].startswith("step-"))


def complete(filesystem: Any, root: str) -> list[str]:
    """Return the checkpoints in a folder that can be read, oldest first; of a checkpoint itself that one."""
    if filesystem.exists(f"{root}/{COMPLETE}"):
        return [root]
    return [folder for folder in folders(filesystem, root) if filesystem.exists(f"{folder}/{COMPLETE}")]


def claim(place: str, *, run: str, key: str) -> None:
    """Take a folder, or an fsspec URL, for the checkpoints of a run.

    Args:
        place: the folder; made if it is not there.
        run: the run's name, for people.
        key: what tells the run from all others, also of its name; it stays the same when the run is resumed.

    Raises:
        UserCodeError: the folder has checkpoints of another run, and is left as it is.
    """
    filesystem, root = fsspec.core.url_to_fs(place.rstrip("/"))
    owner = f"{root}/{OWNER}"
    known = json.loads(filesystem.cat_file(owner)) if filesystem.exists(owner) else {}
    if known.get("key") == key:
        return
    if complete(filesystem, root):
        of = f"the run {known['run']}" if known else "another run"
        raise UserCodeError(
            "--checkpoint-to",
            f"{place} has the checkpoints of {of}. Give a folder of this run's own; to begin with that model, add "
            f"--from-checkpoint {place}.",
            "",
        )
    filesystem.makedirs(root, exist_ok=True)
    filesystem.pipe_file(owner, json.dumps({"run": run, "key": key}).encode())


def check_readable(place: str) -> None:
    """Raise UserCodeError if no checkpoint that can be read is there."""
    filesystem, root = fsspec.core.url_to_fs(place.rstrip("/"))
    if not complete(filesystem, root):
        raise UserCodeError(
            "--from-checkpoint",
            f"There is no complete checkpoint at {place}. Give a folder of checkpoints, or one of them: run.view.checkpoint_path.",
            "",
        )
