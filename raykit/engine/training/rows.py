"""Where a training loop's rows come from: anything with an index, files, or a stream.

All give rows as ``default_collate`` makes a batch of them: dicts or tuples whose first axis is the batch.
"""

from __future__ import annotations

import os
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset, default_collate

from raykit.engine.files import opened, with_columns
from raykit.engine.training.feed import WINDOW_BLOCKS, Cut, Indices, global_batch, steps_per_epoch
from raykit.engine.training.stored import Column, ColumnTypes, StoredBlocks, column_of_values, is_large, types_of_group
from raykit.errors import InputError
from raykit.spec import SourceSpec
from raykit.store.files import File, listed, path_source


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


def source_of(
    data: Any,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    collate: Collate = default_collate,
    drop_last: bool = False,
    first_epoch: int = 0,
) -> Source:
    """Make the source of a loop.

    Args:
        data: what ``job.batches`` takes, but for a ``DataLoader``, and for files that are not Parquet: of these what was stored.
        batch_size: of the global batch.
        epochs: how often each row is given.
        seed: of the order of rows.
        collate: makes a batch of a list of rows.
        drop_last: leave out the last batch of an epoch if it is short.
        first_epoch: the number of the first epoch: each has an order of its own.

    Raises:
        InputError: ``data`` is of no known form, or has no rows.
    """
    if isinstance(data, str | os.PathLike):
        data = path_source(os.fspath(data))
    if isinstance(data, SourceSpec | StoredBlocks):
        rows: Rows | BlockRows = parquet_rows(data) if isinstance(data, SourceSpec) else stored_rows(data)
        return Indexed(rows, batch_size, epochs, seed, collate, drop_last=drop_last, first_epoch=first_epoch)
    if isinstance(data, IterableDataset) or (isinstance(data, Iterable) and not hasattr(data, "__getitem__")):
        if isinstance(data, Iterator):
            raise InputError(
                f"A {type(data).__name__} can be gone through only once, and a rank that joins has to begin anew.",
                "Give something whose iter() begins from the first row each time: a list, a dataset, or a class with __iter__.",
            )
        return Streamed(data, batch_size, epochs, collate, drop_last=drop_last)
    return Indexed(Rows(data), batch_size, epochs, seed, collate, drop_last=drop_last, first_epoch=first_epoch)


def loaded(
    loader: DataLoader[Any], *, epochs: int, seed: int, first_epoch: int, num_workers: int, prefetch: int
) -> tuple[Source, int, int, int]:
    """Take a DataLoader apart.

    Returns:
        The source, the size of the global batch, and how many processes take so many batches ahead.

    Raises:
        InputError: it makes no batches, or has no rows.
    """
    if isinstance(loader.dataset, IterableDataset):
        if loader.batch_size is None:
            raise InputError(_NO_BATCHES, "Give it a batch_size, and have the dataset yield rows.")
        rows: Any = loader.dataset
        return (
            Streamed(rows, loader.batch_size, epochs, loader.collate_fn, drop_last=loader.drop_last),
            loader.batch_size,
            0,
            prefetch,
        )
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
        raise InputError(
            "The DataLoader has a DistributedSampler, and job.batches divides the batches itself.",
            "Leave the sampler out, with shuffle=True to shuffle; batch_size is then that of the global batch.",
        )
    if loader.batch_sampler is None:
        raise InputError(_NO_BATCHES, "Give it a batch_size, or a batch_sampler.")
    source = Sampled(loader, epochs, seed, first_epoch)
    first = source.batch(0)
    if first is None:
        raise InputError("The DataLoader gave no batches.", "Give at least one row, and with drop_last one whole batch.")
    workers, ahead = num_workers or loader.num_workers, loader.prefetch_factor or prefetch
    return source, loader.batch_size or len(first), workers, ahead


_NO_BATCHES = "A DataLoader without batches was given (batch_size=None): its rows cannot be divided among ranks."


def prefetched(source: Source, num_workers: int, prefetch: int, dataset: Any) -> Ahead | None:
    """Return what takes rows ahead of their step in processes, None where nothing shall.

    Raises:
        InputError: the source can only be gone through.
    """
    if not num_workers:
        return None
    if isinstance(source, Streamed | Counted):
        raise InputError("num_workers was given for an iterable, which is gone through in its order.", "Leave num_workers out.")
    worker_init = dataset.worker_init_fn if isinstance(dataset, DataLoader) else None
    return Ahead(source, num_workers, prefetch, worker_init)


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


ReadBlock = Callable[[int], dict[str, np.ndarray[Any, Any]]]
"""Returns the columns of a block by its number."""


class BlockRows:
    """Rows by index that lie in blocks, of which ``WINDOW_BLOCKS`` are held in memory.

    A column has one type in all blocks: whole numbers are floats where some block has floats, and a row without the column has
    NaN there, or None where it has no numbers.
    """

    def __init__(self, num_rows: Sequence[int], columns: Sequence[Column], read: ReadBlock) -> None:
        """Store; ``read`` returns the columns of the block of a number."""
        self.blocks = tuple(num_rows)
        self.num_rows = sum(self.blocks)
        self._begins = np.concatenate([[0], np.cumsum(self.blocks)])
        self._wanted, self._read_block = {each.name: each for each in columns}, read
        self._columns = lru_cache(maxsize=WINDOW_BLOCKS + 1)(self._read)

    def take(self, indices: Indices) -> Any:
        """Return the rows of these indices: a dict of tensors, and of lists where a column holds no numbers.

        Raises:
            InputError: a column's rows have several shapes.
        """
        return {name: _batched(name, values) for name, values in self._gathered(indices).items()}

    def rows(self, indices: Indices) -> list[Any]:
        """Return the rows of these indices, one by one: of lists of numbers each a tensor, whatever the others' lengths."""
        columns = {name: _row_by_row(values) for name, values in self._gathered(indices).items()}
        return [{name: values[place] for name, values in columns.items()} for place in range(len(indices))]

    def _gathered(self, indices: Indices) -> dict[str, np.ndarray[Any, Any]]:
        blocks = np.searchsorted(self._begins, indices, side="right") - 1
        parts = [(self._columns(int(block)), indices[blocks == block] - self._begins[block]) for block in np.unique(blocks)]
        place = np.argsort(np.argsort(blocks, kind="stable"), kind="stable")
        return {name: _end_to_end([columns[name][at] for columns, at in parts])[place] for name in self._wanted}

    def _read(self, block: int) -> dict[str, np.ndarray[Any, Any]]:
        found = self._read_block(block)
        return {name: _of_one_type(found.get(name), each, self.blocks[block]) for name, each in self._wanted.items()}


def parquet_rows(source: SourceSpec) -> BlockRows:
    """Return the rows of Parquet files by index; a row group is a block.

    Raises:
        InputError: nothing is there, or no rows.
    """
    import pyarrow.parquet as pq

    groups: list[tuple[File, int, int]] = []
    types = ColumnTypes()
    for file in listed(source).files:
        with opened(file, seekable=True) as stream:
            parquet = pq.ParquetFile(stream)
            for at in range(parquet.metadata.num_row_groups):
                if num_rows := (group := parquet.metadata.row_group(at)).num_rows:
                    groups.append((file, at, num_rows))
                    types.add({name: None for name, _ in file.columns} | types_of_group(parquet.schema_arrow, group))
    if not groups:
        raise InputError(f"The Parquet files at {source.label} have no rows.", "Give at least one row.")

    def read(block: int) -> dict[str, np.ndarray[Any, Any]]:
        file, group, _ = groups[block]
        with opened(file, seekable=True) as stream:
            return _columns_of_table(with_columns(pq.ParquetFile(stream).read_row_group(group), file))

    return BlockRows([rows for _, _, rows in groups], types.columns(), read)


def stored_rows(stored: StoredBlocks) -> BlockRows:
    """Return the rows of files of another format by index, from the run's folder, where the host stored them."""

    def read(block: int) -> dict[str, np.ndarray[Any, Any]]:
        found = stored.read(block)
        return _columns_of_rows(found) if isinstance(found, list) else _columns_of_table(found)

    return BlockRows(stored.num_rows, stored.columns, read)


class Indexed:
    """A source whose rows have an index: which rows a step sees is known without reading any."""

    def __init__(
        self,
        rows: Rows | BlockRows,
        batch_size: int,
        epochs: int,
        seed: int,
        collate: Collate = default_collate,
        *,
        drop_last: bool = False,
        first_epoch: int = 0,
    ) -> None:
        self._rows, self._batch_size, self._epochs, self._seed, self._collate = rows, batch_size, epochs, seed, collate
        self._drop_last, self._first_epoch = drop_last, first_epoch
        self._steps_per_epoch = steps_per_epoch(rows.num_rows, batch_size, drop_last=drop_last)
        if not self._steps_per_epoch:
            raise InputError(
                f"{rows.num_rows} rows are no whole batch of {batch_size}, and drop_last leaves out what is none.",
                "Give a smaller batch_size, or leave drop_last out.",
            )

    def num_steps(self) -> int:
        return self._steps_per_epoch * self._epochs

    def epoch_of(self, step: int) -> int:
        return self._first_epoch + step // self._steps_per_epoch

    def batch(self, step: int) -> Indices | None:
        if step >= self.num_steps():
            return None
        rows, step = self._rows, step + self._first_epoch * self._steps_per_epoch
        return global_batch(rows.num_rows, self._batch_size, self._seed, step, rows.blocks, drop_last=self._drop_last)

    def take(self, mine: Indices) -> Any:
        return self._rows.take(mine) if self._collate is default_collate else self._collate(self._rows.rows(mine))


class Streamed:
    """A source that can only be gone through: each rank goes through all of it and takes its part.

    The promise is weaker than that of an index: each row is seen once an epoch as long as every ``iter()`` gives the same
    rows in the same order, in every process. A rank that joins goes through what it has missed; nothing is shuffled.
    """

    def __init__(
        self, data: Iterable[Any], batch_size: int, epochs: int, collate: Collate = default_collate, *, drop_last: bool = False
    ) -> None:
        self._data, self._batch_size, self._epochs, self._collate = data, batch_size, epochs, collate
        self._drop_last = drop_last
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
                if len(batch) == self._batch_size or not self._drop_last:
                    yield epoch, batch


class Sampled:
    """A source whose batches a DataLoader's own sampler makes.

    Every rank asks its copy of the sampler for all batches, an epoch at a time and in the order of epochs, so that all have the
    same: what the sampler draws from the global generators is drawn from (seed, epoch), and a generator of its own is in the
    same state everywhere. With such a generator the order is that of the DataLoader in one process.
    """

    def __init__(self, loader: DataLoader[Any], epochs: int, seed: int, first_epoch: int) -> None:
        self._loader, self._epochs, self._seed, self._first_epoch = loader, epochs, seed, first_epoch
        self._ends: list[int] = []
        self._batches: dict[int, list[Any]] = {}

    def num_steps(self) -> int | None:
        if len(self._ends) == self._epochs:
            return self._ends[-1]
        try:
            return len(self._loader.batch_sampler) * self._epochs  # type: ignore[arg-type]
        except TypeError:
            return None

    def epoch_of(self, step: int) -> int:
        return self._first_epoch + self._place_of(step)[0]

    def batch(self, step: int) -> list[Any] | None:
        epoch, place = self._place_of(step)
        return self._batches[epoch][place] if epoch < self._epochs else None

    def take(self, mine: list[Any]) -> Any:
        dataset = self._loader.dataset
        if hasattr(dataset, "__getitems__"):
            return self._loader.collate_fn(dataset.__getitems__(mine))
        return self._loader.collate_fn([dataset[index] for index in mine])

    def _place_of(self, step: int) -> tuple[int, int]:
        """Return the epoch, from zero on, and the place in it; the epoch behind the last where there is no such step."""
        while (not self._ends or step >= self._ends[-1]) and len(self._ends) < self._epochs:
            self._draw(len(self._ends))
        epoch = bisect_right(self._ends, step)
        return epoch, step - (self._ends[epoch - 1] if epoch else 0)

    def _draw(self, epoch: int) -> None:
        """Ask the sampler for the batches of the next epoch. Two epochs are kept: the last step of one may be redone."""
        number = self._first_epoch + epoch
        for each in (self._loader.sampler, self._loader.batch_sampler):
            if callable(getattr(each, "set_epoch", None)):
                each.set_epoch(number)  # type: ignore[union-attr]
        drawn, python_state, numpy_state = hash((self._seed, number)) % 2**32, random.getstate(), np.random.get_state()  # noqa: NPY002
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(drawn)
            random.seed(drawn)
            np.random.seed(drawn)  # noqa: NPY002
            if self._loader.generator is not None:  # a DataLoader draws the seed of its workers first
                torch.empty((), dtype=torch.int64).random_(generator=self._loader.generator)
            assert self._loader.batch_sampler is not None
            self._batches[epoch] = [list(each) for each in self._loader.batch_sampler]
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        self._batches.pop(epoch - 2, None)
        self._ends.append((self._ends[-1] if self._ends else 0) + len(self._batches[epoch]))


class Counted:
    """A source of the numbers of steps, for loops that make their own data: a batch of step 7 is 7 on every rank."""

    def __init__(self, number: int) -> None:
        self._number = number

    def num_steps(self) -> int:
        return self._number

    def epoch_of(self, step: int) -> int:  # noqa: ARG002
        return 0

    def batch(self, step: int) -> list[int] | None:
        return [step] if step < self._number else None

    def take(self, mine: list[int]) -> int:
        return mine[0]


class Ahead:
    """Takes a rank's parts ahead of their steps, in processes beside it, as ``torch.utils.data.DataLoader`` does."""

    def __init__(self, source: Source, num_workers: int, prefetch: int, worker_init: Callable[[int], None] | None = None) -> None:
        self._source, self._num_workers, self._prefetch, self._worker_init = source, num_workers, prefetch, worker_init
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
                worker_init_fn=self._worker_init,
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
        yield cut.of(batch)
        step += 1


def _columns_of(data: Any) -> dict[Any, Any]:
    if isinstance(data, TensorDataset):
        return dict(enumerate(data.tensors))
    if hasattr(data, "iloc"):  # a DataFrame
        return {name: _stacked(column.to_numpy()) for name, column in data.items()}
    if hasattr(data, "combine_chunks") and hasattr(data, "column_names"):  # a table of Arrow
        return {name: _stacked(_column_of(data.column(name))) for name in data.column_names}
    if isinstance(data, Mapping):
        return {name: _stacked(_as_array(column)) for name, column in data.items()}
    if isinstance(data, tuple) and all(isinstance(column, np.ndarray | torch.Tensor) for column in data):
        return dict(enumerate(data))
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise InputError(
            f"A {type(data).__name__} is no training set.",
            "Give a map-style dataset, a list, a dict of arrays, a DataFrame, an iterable, a path of files, or a function "
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
    """Return a Parquet column as an array of its rows; rows that are lists stay arrays of their own."""
    import pyarrow as pa

    chunk = column.combine_chunks()
    if isinstance(chunk, pa.ChunkedArray):
        chunk = pa.concat_arrays(chunk.chunks)
    if isinstance(chunk.type, pa.FixedShapeTensorType):
        tensors: np.ndarray[Any, Any] = chunk.to_numpy_ndarray()
        return tensors
    if is_large(chunk):
        return _in_one_axis(chunk.to_pylist())
    values = np.asarray(chunk.to_numpy(zero_copy_only=False))
    return _in_one_axis([_numbers(each) for each in values]) if values.dtype == object else values


def _columns_of_table(table: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {name: _column_of(table.column(name)) for name in table.column_names}


def _columns_of_rows(rows: list[dict[str, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: column_of_values([row.get(name) for row in rows]) for name in dict.fromkeys(name for row in rows for name in row)}


def _of_one_type(values: np.ndarray[Any, Any] | None, column: Column, num_rows: int) -> np.ndarray[Any, Any]:
    """Return a block's values in the type that the column has in all blocks; of a block without the column, nothings."""
    if values is None:
        return np.full(num_rows, np.nan if column.dtype is not None else None, dtype=column.dtype or object)
    if column.dtype is None or values.dtype == column.dtype or not np.can_cast(values.dtype, column.dtype):
        return values
    return values.astype(column.dtype)


def _end_to_end(columns: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Return the parts of a column as one array; where they go together by no type or shape, as one of objects."""
    if len({(each.dtype.kind in "biuf", each.shape[1:]) for each in columns}) == 1 or len(columns) == 1:
        return np.concatenate(columns)
    return _in_one_axis([value for each in columns for value in each])


def _in_one_axis(values: list[Any]) -> np.ndarray[Any, Any]:
    """Return an array of objects, however alike they are."""
    array = np.empty(len(values), dtype=object)
    for place, each in enumerate(values):
        array[place] = each
    return array


def _numbers(value: Any) -> Any:
    """Return nested arrays of one shape as one array, and anything else as it is."""
    if not isinstance(value, np.ndarray) or value.dtype != object:
        return value
    parts = [_numbers(each) for each in value]
    is_regular = parts and all(isinstance(each, np.ndarray) and _is_numeric(each) for each in parts)
    return np.stack(parts) if is_regular and len({each.shape for each in parts}) == 1 else value


def _is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biufc"


def _stacked(values: Any) -> Any:
    """Return a column of arrays or tensors of one shape as one array, and any other as it is."""
    if not isinstance(values, np.ndarray) or values.dtype != object or not len(values):
        return values
    rows = [each.numpy(force=True) if isinstance(each, torch.Tensor) else each for each in values]
    return np.stack(rows) if all(map(_is_numeric, rows)) and len({each.shape for each in rows}) == 1 else values


def _batched(name: str, values: np.ndarray[Any, Any]) -> Any:
    stacked = _stacked(values)
    if stacked.dtype == object and any(_is_numeric(each) and each.ndim for each in stacked):
        raise InputError(
            f"The rows of column {name!r} have several shapes, and no one batch can hold them.",
            "Give job.batches a collate_fn that pads them; it gets the rows of a batch as a list.",
        )
    return _as_tensor(stacked)


def _row_by_row(values: np.ndarray[Any, Any]) -> Any:
    if values.dtype != object:
        return _as_tensor(values)
    return [torch.from_numpy(each.copy()) if _is_numeric(each) else each for each in values]


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
