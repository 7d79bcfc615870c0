"""Ray Datasets, and files without an index, as training data: read once by the host, and stored for every rank by index.

So they have the promise of indexed data: each row once an epoch, whatever becomes of the ranks, also in a run that is
taken up again. The price is their size on disk, in the run's folder.
"""

from __future__ import annotations

import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import ray

from raykit.engine.files import blocks
from raykit.engine.raydata_context import quiet
from raykit.engine.run import RunContext
from raykit.engine.training.stored import store
from raykit.errors import InputError
from raykit.spec import SourceSpec
from raykit.store.files import listed

ROWS_A_GROUP = 8192
LEAST_FREE_CPUS = 1


class Datasets:
    """The stored sets of one run, by number: the first that its loop asks for is 1."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._lock = threading.Lock()

    def stored(self, number: int, make: bytes) -> str:
        """Give where a set lies in the run's folder, after its rows are stored; blocking.

        Raises:
            InputError: the function made no Ray Dataset, or one without rows, or needs more CPUs than are free; a file cannot
                be read.
        """
        name = f"data/{number}"
        folder = self._context.folder / name
        with self._lock:
            if not folder.exists():
                draft = folder.with_suffix(".new")
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir(mode=0o700, parents=True)
                self._store(make, draft)
                draft.rename(folder)
        return name

    def _store(self, make: bytes, draft: Path) -> None:
        self._context.payload().known()
        dataset = pickle.loads(make)()  # noqa: S301  (came from a worker of this run)
        if isinstance(dataset, SourceSpec):
            if not store(blocks(listed(dataset).files, dataset), draft):
                raise InputError(f"The files at {dataset.label} have no rows.", "Give at least one row.")
            return
        if not hasattr(dataset, "iter_batches"):
            raise InputError(f"The training set's function made a {type(dataset).__name__}.", "Let it make a Ray Dataset.")
        if ray.available_resources().get("CPU", 0) < LEAST_FREE_CPUS:
            raise InputError(
                "Ray Data needs a free CPU to run the training set's function, and the ranks hold all of them.",
                "Leave one free: fewer --workers, or a larger cluster (%ray up NAME --cpus N).",
            )
        quiet(dataset.context)
        num_rows = _write(dataset, draft / "rows.parquet")
        if num_rows == 0:
            raise InputError("The training set's Ray Dataset has no rows.", "Give at least one row.")


def _write(dataset: Any, file: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer, num_rows = None, 0
    try:
        for batch in dataset.iter_batches(batch_size=ROWS_A_GROUP, batch_format="numpy"):
            table = pa.table({name: _as_column(values) for name, values in batch.items()})
            writer = writer or pq.ParquetWriter(file, table.schema)
            writer.write_table(table, row_group_size=ROWS_A_GROUP)
            num_rows += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    return num_rows


def _as_column(values: Any) -> Any:
    """Give an array of rows as a Parquet column; further axes become those of a tensor type."""
    import pyarrow as pa

    return pa.FixedShapeTensorArray.from_numpy_ndarray(values) if values.ndim > 1 else pa.array(values)
