"""The blocks of a source's items, and of a Ray Dataset that a user's function makes.

tests/ray/test_raydata_contract.py pins the inner parts of Ray Data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ray
import ray.data

from raykit.engine.pipeline.blocks import bytes_of
from raykit.engine.raydata_context import quiet
from raykit.spec import SourceSpec
from raykit.spec.rows import as_row

SourceBlock = tuple[Any, int, int]
"""A reference to a block, its rows, its bytes."""


def blocks_of(spec: SourceSpec, value: Any, *, limit: int | None, rows_a_block: int) -> Iterator[SourceBlock]:
    """Return the source's blocks in an order that is the same each time.

    Args:
        spec: where they come from; not of the form ``path``.
        value: the items of the form ``items``, the function of a Ray Dataset of the form ``function``.
        limit: how many rows at most.
        rows_a_block: of the form ``items``.
    """
    if spec.form == "items":
        items = value[:limit]
        for start in range(0, len(items), rows_a_block):
            some = [as_row(item) for item in items[start : start + rows_a_block]]
            yield ray.put(some), len(some), bytes_of(some)
        return
    # A user's dataset wants CPU slots for itself, which the stages hold while they run: it goes first.
    left = limit
    for bundle in _ordered(value()).materialize().iter_internal_ref_bundles():
        for entry in bundle.blocks:
            rows = entry.metadata.num_rows if left is None else min(left, entry.metadata.num_rows)
            yield entry.ref, rows, int(entry.metadata.size_bytes or 0)
            if left is not None:
                left -= rows
                if not left:
                    return


def _ordered(dataset: Any) -> Any:
    quiet(dataset.context)
    dataset.context.execution_options.preserve_order = True
    return dataset
