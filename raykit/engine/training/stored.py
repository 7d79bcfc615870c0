"""Training rows in blocks: those of files that have no index of their own, as the host stores them in the run's folder.

Nothing here needs torch, which the host does not load.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raykit.engine.files import Block
from raykit.spec import SourceSpec

INDEX = "index.pickle"
EXACT_AS_FLOAT = 2**53


@dataclass(frozen=True, slots=True)
class Column:
    """A column, and the type of its numbers in all blocks; None where its values are no numbers, or of no one type."""

    name: str
    dtype: np.dtype[Any] | None = None


class ColumnTypes:
    """The types of the columns of blocks, found block by block."""

    def __init__(self) -> None:
        self._found: dict[str, list[np.dtype[Any] | None]] = {}
        self._num_blocks = 0

    def add(self, dtypes: Mapping[str, np.dtype[Any] | None]) -> None:
        """Take the columns of one block, each with the type of its numbers."""
        self._num_blocks += 1
        for name, dtype in dtypes.items():
            self._found.setdefault(name, []).append(dtype)

    def columns(self) -> list[Column]:
        """Return all columns: a type holds every block's values exactly, and NaN where a block lacks the column."""
        return [Column(name, self._joined(found)) for name, found in self._found.items()]

    def _joined(self, found: Sequence[np.dtype[Any] | None]) -> np.dtype[Any] | None:
        known = [each for each in found if each is not None]
        if len(known) < len(found):
            return None
        if {each.kind for each in known} == {"i", "u"}:
            return None
        missing = [np.dtype(np.float64)] if len(found) < self._num_blocks and all(each.kind in "iu" for each in known) else []
        return np.result_type(*known, *missing)


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """Blocks in a folder, each a list of rows or a table of Arrow."""

    folder: Path
    num_rows: tuple[int, ...]
    columns: tuple[Column, ...]

    @classmethod
    def at(cls, folder: str) -> StoredBlocks:
        """Return what :func:`store` wrote there."""
        return cls(Path(folder), *pickle.loads((Path(folder) / INDEX).read_bytes()))  # noqa: S301  (of the run's own folder)

    def read(self, block: int) -> Any:
        """Read a block by its number."""
        return pickle.loads((self.folder / str(block)).read_bytes())  # noqa: S301  (of the run's own folder)


def store(blocks: Iterable[Block], folder: Path) -> int:
    """Write blocks into a folder, and return how many rows they have."""
    num_rows: list[int] = []
    types = ColumnTypes()
    for number, (block, rows, _) in enumerate(blocks):
        (folder / str(number)).write_bytes(pickle.dumps(block, protocol=pickle.HIGHEST_PROTOCOL))
        num_rows.append(rows)
        types.add(_types_of_rows(block) if isinstance(block, list) else types_of_table(block))
    (folder / INDEX).write_bytes(pickle.dumps((tuple(num_rows), tuple(types.columns()))))
    return sum(num_rows)


def as_it_is(source: SourceSpec) -> SourceSpec:
    """Return the source: what travels to the host is a function."""
    return source


def column_of_values(values: list[Any]) -> np.ndarray[Any, Any]:
    """Return the values of one column of rows as an array: of numbers where all are, with NaN for None if that is exact."""
    numbers = [each for each in values if each is not None]
    if numbers and all(type(each) in (int, float) for each in numbers):
        has_none = len(numbers) < len(values)
        is_mixed = has_none or any(type(each) is float for each in numbers)
        largest = max((abs(each) for each in numbers if type(each) is int), default=0)
        if largest < 2**63 and not (is_mixed and largest > EXACT_AS_FLOAT):
            return np.array([np.nan if each is None else each for each in values] if is_mixed else values)
    if numbers and len(numbers) == len(values) and all(type(each) is bool for each in numbers):
        return np.array(values)
    array = np.empty(len(values), dtype=object)
    for place, each in enumerate(values):
        array[place] = as_array(each)
    return array


def as_array(value: Any) -> Any:
    """Return a list of numbers, however nested, as an array, if it has one shape; anything else as it is."""
    if not isinstance(value, list) or not value:
        return value
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        return value
    return array if array.dtype.kind in "biuf" else value


def types_of_table(table: Any) -> dict[str, np.dtype[Any] | None]:
    """Return the types of a table's columns of numbers; one with nulls has floats."""
    return {
        name: _type_of(column.type, has_nulls=bool(column.null_count)) if not is_large(column) else None
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def is_large(column: Any) -> bool:
    """Return whether a column of whole numbers with nulls would change as one of floats."""
    import pyarrow as pa
    from pyarrow import compute

    if not pa.types.is_integer(column.type) or not column.null_count:
        return False
    return any(abs(each or 0) > EXACT_AS_FLOAT for each in compute.min_max(column).as_py().values())


def types_of_group(schema: Any, group: Any) -> dict[str, np.dtype[Any] | None]:
    """Return the types of the columns of a row group of a Parquet file, as its footer says them."""
    found = {field.name: _type_of(field.type, has_nulls=False) for field in schema}
    for at in range(group.num_columns):
        column = group.column(at)
        name, about = column.path_in_schema, column.statistics
        if found.get(name) is not None and about is not None and about.has_null_count and about.null_count:
            ends = [each for each in (about.min, about.max) if isinstance(each, int)] if about.has_min_max else []
            is_exact = all(abs(each) <= EXACT_AS_FLOAT for each in ends)
            found[name] = np.result_type(found[name], np.float64) if is_exact else None
    return found


def _type_of(arrow_type: Any, *, has_nulls: bool) -> np.dtype[Any] | None:
    import pyarrow as pa

    if pa.types.is_floating(arrow_type):
        return np.dtype(arrow_type.to_pandas_dtype())
    if pa.types.is_integer(arrow_type):
        return np.dtype(np.float64 if has_nulls else arrow_type.to_pandas_dtype())
    return None


def _types_of_rows(rows: list[dict[str, Any]]) -> dict[str, np.dtype[Any] | None]:
    found = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        dtype = column_of_values([row.get(name) for row in rows]).dtype
        found[name] = dtype if dtype.kind in "iuf" else None
    return found
