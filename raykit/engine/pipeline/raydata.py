"""Every touch of Ray Data: its readers bring the source's blocks. tests/ray/test_raydata_contract.py pins its inner parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ray
import ray.data

from raykit.engine.pipeline.blocks import bytes_of
from raykit.engine.raydata_context import quiet
from raykit.engine.run import describe
from raykit.errors import SourceError
from raykit.spec import SourceSpec
from raykit.spec.rows import as_row

SourceBlock = tuple[Any, int, int]
"""A reference to a block, its rows, its bytes."""

READERS: dict[str, tuple[str, dict[str, Any]]] = {
    "parquet": ("read_parquet", {}),
    "csv": ("read_csv", {}),
    "json": ("read_json", {}),
    "images": ("read_images", {"include_paths": True, "mode": "RGB"}),
    "text": ("read_text", {"include_paths": True}),
    "binary": ("read_binary_files", {"include_paths": True}),
}


def blocks_of(spec: SourceSpec, value: Any, *, limit: int | None, rows_a_block: int) -> Iterator[SourceBlock]:
    """Give the source's blocks in an order that is the same each time.

    Args:
        spec: where they come from.
        value: the items of the form ``items``, the function of a Ray Dataset of the form ``function``.
        limit: how many rows at most.
        rows_a_block: of the form ``items``.

    Raises:
        SourceError: a file cannot be read.
    """
    if spec.form == "items":
        items = value[:limit]
        for start in range(0, len(items), rows_a_block):
            some = [as_row(item) for item in items[start : start + rows_a_block]]
            yield ray.put(some), len(some), bytes_of(some)
        return
    # A user's dataset wants CPU slots for itself, which the stages hold while they run: it goes first.
    dataset = _ordered(value()).materialize() if spec.form == "function" else _read(spec)
    left = limit
    for bundle in _bundles(spec, dataset):
        for entry in bundle.blocks:
            rows = entry.metadata.num_rows if left is None else min(left, entry.metadata.num_rows)
            yield entry.ref, rows, int(entry.metadata.size_bytes or 0)
            if left is not None:
                left -= rows
                if not left:
                    return


def _read(spec: SourceSpec) -> Any:
    """Read files; reading holds no slot of its own, so that a pipeline on two CPUs is not held up by its reader."""
    reader, options = READERS[spec.format]
    return _ordered(getattr(ray.data, reader)(list(spec.paths), num_cpus=0, **options))


def _bundles(spec: SourceSpec, dataset: Any) -> Iterator[Any]:
    try:
        yield from dataset.iter_internal_ref_bundles()
    except ray.exceptions.RayTaskError as exc:
        raise SourceError(
            f"A file of {spec.label} cannot be read as {spec.format}: {describe(exc.cause)}.",
            "Leave it out, or give the files' paths as rows and read them in a stage, where on_error='quarantine' puts it aside.",
        ) from exc


def _ordered(dataset: Any) -> Any:
    quiet(dataset.context)
    dataset.context.execution_options.preserve_order = True
    return dataset
