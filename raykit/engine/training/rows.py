"""Where a training loop's rows come from: anything with an index, Parquet files, or a stream.

All give rows as ``default_collate`` makes a batch of them: dicts or tuples whose first axis is the batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from raykit.engine.training.feed import WINDOW_BLOCKS, Cut, Indices, global_batch, steps_per_epoch
from raykit.errors import InputError


class Source(Protocol):
    """The global batches of a loop, by step."""

    def num_steps(self) -> int | None:
        """Give the number of steps of the whole loop, None while it is not known."""

    def epoch_of(self, step: int) -> int:
        """Give the epoch, from zero on, to which a step belongs."""

    def batch(self, step: int) -> Any | None:
        """Give what stands for the rows of the global batch of ``step`` (it has a length), None behind the last."""

    def take(self, mine: Any) -> Any:
        """Give the rows of a part of what :meth:`batch` gave."""


Collate = Callable[[list[Any]], Any]


def source_of(data: Any, *, batch_size: int, epochs: int, seed: int, collate: Collate = default_collate) -> Source:
    """Make the source of a loop.

    Raises:
        InputError: ``data`` is of no known form, or has no rows.
    """
    if isinstance(data, DataLoader):
        raise InputError(
            "A DataLoader was given, and who makes the batches is raykit: they are divided anew when the world changes.",
            "Give what it loads from: job.batches(loader.dataset, batch_size=..., collate_fn=...).",
        )
    if isinstance(data, str | os.PathLike):
        return Indexed(ParquetRows(os.fspath(data)), batch_size, epochs, seed, collate)
    if isinstance(data, IterableDataset) or (isinstance(data, Iterable) and not hasattr(data, "__getitem__")):
        if isinstance(data, Iterator):
            raise InputError(
                f"A {type(data).__name__} can be gone through only once, and a rank that joins has to begin anew.",
                "Give something whose iter() begins from the first row each time: a list, a dataset, or a class with __iter__.",
            )
        return Streamed(data, batch_size, epochs, collate)
    return Indexed(Rows(data), batch_size, epochs, seed, collate)


class Rows:
    """Rows by index: a map-style dataset, a list, a table, or a dict or tuple of arrays of one length."""

    blocks: tuple[int, ...] = ()

    def __init__(self, data: Any) -> None:
        self._data, self._is_tuple = data, isinstance(data, tuple | TensorDataset)
        self._columns = _columns_of(data)
        lengths = {len(column) for column in self._columns.values()} if self._columns else {len(data)}
        if len(lengths) != 1 or 0 in lengths:
            raise InputError(
                f"The training set has columns of {sorted(lengths)} rows.", "Give at least one row, and equal lengths."
            )
        self.num_rows = lengths.pop()

    def take(self, indices: Indices) -> Any:
        """Give the batch of the rows of these indices."""
        if self._columns:
            batch = {name: _as_tensor(column[indices]) for name, column in self._columns.items()}
            return tuple(batch.values()) if self._is_tuple else batch
        return default_collate(self.rows(indices))

    def rows(self, indices: Indices) -> list[Any]:
        """Give the rows of these indices, one by one."""
        if self._columns:
            return _one_by_one(self.take(indices), len(indices))
        if hasattr(self._data, "__getitems__"):
            return list(self._data.__getitems__(indices.tolist()))
        return [self._data[int(index)] for index in indices]


class ParquetRows:
    """Rows of Parquet files: one, a folder of them, or a pattern, at a path or any URL that fsspec knows.

    A row group is a block; ``WINDOW_BLOCKS`` of them are held in memory.
    """

    def __init__(self, path: str) -> None:
        import fsspec
        import pyarrow.parquet as pq

        self._filesystem, root = fsspec.core.url_to_fs(path)
        found = self._filesystem.glob(root) if any(mark in root for mark in "*?[") else [root]
        if not any(map(self._filesystem.exists, found)):
            raise InputError(f"Nothing is at {path}.", "Give a Parquet file, a folder of them, or a pattern.")
        folders = [each for each in found if self._filesystem.isdir(each)]
        inside = [file for each in folders for file in self._filesystem.find(each) if file.endswith(".parquet")]
        files = sorted({each for each in found if each not in folders} | set(inside))
        self._groups = []
        for file in files:
            with self._filesystem.open(file) as opened:
                metadata = pq.ParquetFile(opened).metadata
                self._groups += [(file, group, metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)]
        self.blocks = tuple(rows for _, _, rows in self._groups)
        self.num_rows = sum(self.blocks)
        if self.num_rows == 0:
            raise InputError(f"The Parquet files at {path} have no rows.", "Give at least one row.")
        self._begins = np.concatenate([[0], np.cumsum(self.blocks)])
        self._columns = lru_cache(maxsize=WINDOW_BLOCKS + 1)(self._read)

    def take(self, indices: Indices) -> Any:
        """Give the rows of these indices: a dict of tensors, and of lists where a column holds no numbers."""
        blocks = np.searchsorted(self._begins, indices, side="right") - 1
        parts = [(self._columns(int(block)), indices[blocks == block] - self._begins[block]) for block in np.unique(blocks)]
        place = np.argsort(np.argsort(blocks, kind="stable"), kind="stable")
        return {name: _gathered([columns[name][at] for columns, at in parts], place) for name in parts[0][0]}

    def rows(self, indices: Indices) -> list[Any]:
        """Give the rows of these indices, one by one."""
        return _one_by_one(self.take(indices), len(indices))

    def _read(self, block: int) -> dict[str, np.ndarray[Any, Any]]:
        import pyarrow.parquet as pq

        file, group, _ = self._groups[block]
        with self._filesystem.open(file) as opened:
            table = pq.ParquetFile(opened).read_row_group(group)
        return {name: _column_of(table.column(name)) for name in table.column_names}


class Indexed:
    """A source whose rows have an index: which rows a step sees is known without reading any."""

    def __init__(self, rows: Rows | ParquetRows, batch_size: int, epochs: int, seed: int, collate: Collate) -> None:
        self._rows, self._batch_size, self._epochs, self._seed, self._collate = rows, batch_size, epochs, seed, collate

    def num_steps(self) -> int:
        return steps_per_epoch(self._rows.num_rows, self._batch_size) * self._epochs

    def epoch_of(self, step: int) -> int:
        return step // steps_per_epoch(self._rows.num_rows, self._batch_size)

    def batch(self, step: int) -> Indices | None:
        if step >= self.num_steps():
            return None
        return global_batch(self._rows.num_rows, self._batch_size, self._seed, step, self._rows.blocks)

    def take(self, mine: Indices) -> Any:
        return self._rows.take(mine) if self._collate is default_collate else self._collate(self._rows.rows(mine))


class Streamed:
    """A source that can only be gone through: each rank goes through all of it and takes its part.

    The promise is weaker than that of an index: each row is seen once an epoch as long as every ``iter()`` gives the same
    rows in the same order, in every process. A rank that joins goes through what it has missed; nothing is shuffled.
    """

    def __init__(self, data: Iterable[Any], batch_size: int, epochs: int, collate: Collate) -> None:
        self._data, self._batch_size, self._epochs, self._collate = data, batch_size, epochs, collate
        self._steps: Iterator[tuple[int, list[Any]]] = iter(())
        self._step, self._epoch, self._rows = -1, 0, []  # type: ignore[var-annotated]
        self._num_steps: int | None = None

    def num_steps(self) -> int | None:
        return self._num_steps

    def epoch_of(self, step: int) -> int:  # noqa: ARG002  (the step is the one whose batch was given last)
        return self._epoch

    def batch(self, step: int) -> list[Any] | None:
        if step < self._step or self._step < 0:
            self._step, self._steps = -1, self._from_the_first()
        while self._step < step:
            if (following := next(self._steps, None)) is None:
                self._num_steps = self._step + 1
                return None
            self._epoch, self._rows = following
            self._step += 1
        return self._rows

    def take(self, mine: list[Any]) -> Any:
        return self._collate(mine)

    def _from_the_first(self) -> Iterator[tuple[int, list[Any]]]:
        for epoch in range(self._epochs):
            rows = iter(self._data)
            while batch := list(islice(rows, self._batch_size)):
                yield epoch, batch


class Ahead:
    """Takes a rank's parts ahead of their steps, in processes beside it, as ``torch.utils.data.DataLoader`` does."""

    def __init__(self, source: Source, num_workers: int, prefetch: int) -> None:
        self._source, self._num_workers, self._prefetch = source, num_workers, prefetch
        self._next: tuple[int, Cut] | None = None
        self._parts: Iterator[Any] = iter(())

    def take(self, step: int, cut: Cut) -> Any:
        """Give this rank's rows of a step; what was taken ahead for another world or another step is let go."""
        if self._next != (step, cut):
            loader = DataLoader(
                _Parts(self._source),
                sampler=_parts_from(self._source, step, cut),
                batch_size=None,
                num_workers=self._num_workers,
                prefetch_factor=self._prefetch,
            )
            self._parts = iter(loader)
        self._next = step + 1, cut
        return next(self._parts)


class _Parts(torch.utils.data.Dataset[Any]):
    def __init__(self, source: Source) -> None:
        self._source = source

    def __getitem__(self, mine: Any) -> Any:
        return self._source.take(mine)


def _parts_from(source: Source, step: int, cut: Cut) -> Iterator[Any]:
    while (batch := source.batch(step)) is not None:
        if len(mine := cut.of(batch)):
            yield mine
        step += 1


def _columns_of(data: Any) -> dict[Any, Any]:
    if isinstance(data, TensorDataset):
        return dict(enumerate(data.tensors))
    if hasattr(data, "iloc"):  # a DataFrame
        return {name: column.to_numpy() for name, column in data.items()}
    if hasattr(data, "combine_chunks") and hasattr(data, "column_names"):  # a table of Arrow
        return {name: _column_of(data.column(name)) for name in data.column_names}
    if isinstance(data, Mapping):
        return {name: _as_array(column) for name, column in data.items()}
    if isinstance(data, tuple) and all(isinstance(column, np.ndarray | torch.Tensor) for column in data):
        return dict(enumerate(data))
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise InputError(
            f"A {type(data).__name__} is no training set.",
            "Give a map-style dataset, a list, a dict of arrays, a DataFrame, an iterable, a path of Parquet files, or a function "
            "that makes a Ray Dataset.",
        )
    return {}


def _as_array(column: Any) -> Any:
    return column if isinstance(column, np.ndarray | torch.Tensor) else np.asarray(column)


def _as_tensor(values: Any) -> Any:
    """Give an array's numbers as a tensor, and what is no number as a list, as ``default_collate`` does."""
    if not isinstance(values, np.ndarray):
        return values
    return torch.from_numpy(values) if values.dtype.kind in "biufc" else values.tolist()


def _one_by_one(batch: Any, num_rows: int) -> list[Any]:
    """Take a batch of columns apart into its rows."""
    if isinstance(batch, tuple):
        return [tuple(column[place] for column in batch) for place in range(num_rows)]
    return [{name: column[place] for name, column in batch.items()} for place in range(num_rows)]


def _column_of(column: Any) -> np.ndarray[Any, Any]:
    """Give a Parquet column as an array of its rows; lists and tensors of one size become further axes."""
    import pyarrow as pa

    chunk = column.combine_chunks()
    if isinstance(chunk, pa.ChunkedArray):
        chunk = pa.concat_arrays(chunk.chunks)
    if isinstance(chunk.type, pa.FixedShapeTensorType):
        tensors: np.ndarray[Any, Any] = chunk.to_numpy_ndarray()
        return tensors
    values = chunk.to_numpy(zero_copy_only=False)
    if values.dtype == object and len({np.shape(each) for each in values}) == 1 and np.ndim(values[0]):
        return np.stack(values)
    return np.asarray(values)


def _gathered(parts: list[np.ndarray[Any, Any]], place: Indices) -> Any:
    return _as_tensor(np.concatenate(parts)[place])


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch, however it is nested."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if callable(getattr(batch, "to", None)):  # what a collate_fn may make: a tokenizer's encoding, a graph
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, list):
        return [to_device(value, device) for value in batch]
    if isinstance(batch, tuple):
        moved = [to_device(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else tuple(moved)
    return batch
