"""The large buffers of payloads that a cluster has, and whether it has room for more (:mod:`raykit.wire.buffers`)."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import ray

from raykit.engine.setting import ClusterSetting
from raykit.errors import CapacityError, RunError
from raykit.events import NodeSampled, Record
from raykit.wire import buffers

STALE_S = 60.0  # an older sample says nothing of now
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Buffers:
    """Those in a folder of the cluster's head."""

    def __init__(self, setting: ClusterSetting) -> None:
        self._setting = setting
        self.folder = Path(setting.folder) / buffers.FOLDER

    def missing(self, sizes: Mapping[str, int], free: Mapping[str, int]) -> list[str]:
        """Return the names of those that are not here; the others stay until a run can have come that needs them.

        Args:
            sizes: bytes by name.
            free: the memory that each node has free, in bytes.

        Raises:
            CapacityError: no node has memory for all of them, or the disk has no room for those that are missing.
        """
        self.folder.mkdir(mode=0o700, exist_ok=True)
        missing = []
        for name in sizes:
            if not buffers.NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no buffer's name")
            try:
                os.utime(self.folder / name)
            except FileNotFoundError:
                missing.append(name)
        check_memory(sum(sizes.values()), free)
        self._make_room()
        self._check_disk(sum(sizes[name] for name in missing))
        return missing

    def write_at(self, name: str, at: int, piece: bytes, *, of: int) -> None:
        """Write a piece of one."""
        if not buffers.NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no buffer's name")
        buffers.write_at(self.folder, name, at, piece, of=of)

    def keep(self, names: Sequence[str], run_folder: Path) -> None:
        """Keep buffers for as long as a run's folder has them.

        Raises:
            RunError: one is gone.
        """
        try:
            buffers.link(self.folder, names, run_folder)
        except FileNotFoundError as exc:
            raise RunError("Captured values of the run were removed before it started.", "Run the cell again.") from exc

    def _make_room(self) -> None:
        kept_bytes = shutil.disk_usage(self.folder).free * buffers.KEPT_SHARE
        buffers.prune(self.folder, kept_bytes=kept_bytes, unused_before_unix_s=time.time() - buffers.STARTING_S)

    def _check_disk(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if num_bytes > free:
            raise CapacityError(
                f"The captured values take {num_bytes / 1e9:.3g} GB that the cluster {self._setting.name} does not have yet; "
                f"the disk of its head has {free / 1e9:.3g} GB free at {self.folder}.",
                "Free space there, or read the data in the cell. Nothing was started.",
            )


def check_memory(num_bytes: int, free: Mapping[str, int]) -> None:
    """Refuse captured values that no node has memory for.

    Args:
        num_bytes: what they take.
        free: bytes by node.

    Raises:
        CapacityError: with the numbers.
    """
    node, most = max(free.items(), key=lambda each: each[1])
    if num_bytes > most:
        raise CapacityError(
            f"The captured values take {num_bytes / 1e9:.3g} GB; the most memory that a node has free is "
            f"{most / 1e9:.3g} GB, on {node}.",
            "Capture less, read the data in parts in the cell, or take nodes with more memory. Nothing was started.",
        )


def free_memory(setting: ClusterSetting, sampled: Sequence[Record]) -> dict[str, int]:
    """Return the free bytes of each node: of the head now, of another by its newest sample, else all that it has for tasks."""
    free = {f"the head of {setting.name}": _free_here()}
    since_unix_s = time.time() - STALE_S
    samples = {
        each.event.node: each.event for each in sampled if each.at_unix_s > since_unix_s and isinstance(each.event, NodeSampled)
    }
    here = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] != here:
            sample = samples.get(node["NodeID"][:8])
            known = sample.memory_bytes - sample.memory_used_bytes if sample else None
            free[node["NodeID"][:8]] = int(node["Resources"].get("memory", 0) if known is None else known)
    return free


def _free_here() -> int:
    available = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # no container, or no limit
        return min(available, int(CGROUP_LIMIT.read_text()))
    return available
