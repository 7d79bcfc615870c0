"""Files as the source of a pipeline: tasks read them ahead, and their rows come in the order of the files."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import ray

from raykit.engine.files import blocks
from raykit.engine.pipeline.raydata import SourceBlock
from raykit.engine.run import describe
from raykit.errors import RaykitError, SourceError
from raykit.spec import SourceSpec
from raykit.store.files import File, listed

MAX_FILES_A_TASK = 256
MAX_BYTES_A_TASK = 16_000_000
MAX_UNTAKEN = 6  # objects of a task, two for each block
MAX_TASKS = 16


def file_blocks(spec: SourceSpec, *, limit: int | None) -> Iterator[SourceBlock]:
    """Return the blocks of the files of a source; to close it ends the tasks that read ahead.

    A task holds no slot, so that a pipeline on two CPUs is not held up by its reader. What one task would read is read here,
    which takes no process; but for images, whose decoders a broken file may crash.

    Raises:
        SourceError: nothing is there, or a file cannot be read.
    """
    listing = listed(spec)
    known = replace(spec, format=listing.format)
    shares = list(_shares(listing.files))
    if len(shares) == 1 and listing.format != "images":
        for block, num_rows, num_bytes in blocks(shares[0], known, limit=limit):
            yield ray.put(block), num_rows, num_bytes
        return
    read = ray.remote(_read).options(
        num_cpus=0,
        num_returns="streaming",
        scheduling_strategy="SPREAD",
        _generator_backpressure_num_objects=MAX_UNTAKEN,
    )
    waiting = iter(shares)
    tasks: deque[Any] = deque()
    left = limit
    num_tasks = max(2, min(MAX_TASKS, int(ray.cluster_resources().get("CPU", 0))))
    try:
        while True:
            tasks.extend(read.remote(share, known, limit) for share in islice(waiting, num_tasks - len(tasks)))
            if not tasks:
                return
            for block, num_rows, num_bytes in _given(tasks[0], spec):
                yield block, num_rows if left is None else min(left, num_rows), num_bytes
                left = None if left is None else left - num_rows
                if left is not None and left <= 0:
                    return
            tasks.popleft()
    finally:
        for task in tasks:
            ray.cancel(task)


def _read(files: list[File], spec: SourceSpec, limit: int | None) -> Iterator[Any]:
    """Read a share of the files: of each block first its rows and bytes, then itself."""
    if spec.format == "parquet":
        import ray.data  # noqa: F401  (it makes Arrow know the types of its tensors)

    for block, num_rows, num_bytes in blocks(files, spec, limit=limit):
        yield num_rows, num_bytes
        yield block


def _given(task: Any, spec: SourceSpec) -> Iterator[SourceBlock]:
    try:
        for size in task:
            num_rows, num_bytes = ray.get(size)
            yield next(task), num_rows, num_bytes
    except ray.exceptions.RayTaskError as exc:
        raise exc.cause if isinstance(exc.cause, RaykitError) else _lost(spec, exc.cause) from exc
    except ray.exceptions.RayError as exc:
        raise _lost(spec, exc) from exc


def _lost(spec: SourceSpec, error: BaseException) -> SourceError:
    return SourceError(f"{spec.label} could not be read: {describe(error)}.", "See the memory of the nodes: %ray status")


def _shares(files: tuple[File, ...]) -> Iterator[list[File]]:
    """Part the files, in their order, into what one task reads."""
    share: list[File] = []
    num_bytes = 0
    for file in files:
        if share and (len(share) == MAX_FILES_A_TASK or num_bytes + file.num_bytes > MAX_BYTES_A_TASK):
            yield share
            share, num_bytes = [], 0
        share.append(file)
        num_bytes += file.num_bytes
    if share:
        yield share
