"""Reads a pipeline's Parquet parts: rows in the order of the source, each value as it was made.

Ray Data's column types for tensors and objects are unknown here as long as nobody imports Ray: a column is then what its type
stores, and its field says the type's name. Where Ray is imported the type itself says it.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raykit.spec.rows import NOTE, ORDER, as_noted
from raykit.wire.classes import keep_classes_one

NAME, FACTS = b"ARROW:extension:name", b"ARROW:extension:metadata"
FIXED = ("ray.data.arrow_tensor", "ray.data.arrow_tensor_v2")
RAGGED = "ray.data.arrow_variable_shaped_tensor"
PICKLED = "ray.data.arrow_pickled_object"

Kind = tuple[str, bytes]
"""The name of a column type of Ray Data's, and what it says of itself."""


class UnlikePartsError(Exception):
    """A column is of types in two parts that do not go together; ``str`` says which."""


def unified(found: Any) -> Any:
    """Give a ``pyarrow.dataset.Dataset`` in one schema: what a part has not is empty there.

    Raises:
        UnlikePartsError: there is none.
    """
    import pyarrow.dataset

    if not (schemas := [part.physical_schema for part in found.get_fragments()]):
        return found
    schema = _schema_of(schemas)
    # A schema that replaces another may not widen a type.
    return pyarrow.dataset.dataset(found.files, schema=schema, format=found.format, filesystem=found.filesystem)


def read(found: Any, *, rows: int | None = None) -> Any:
    """Read all rows of a ``pyarrow.dataset.Dataset``, or the first of them, into a pandas table.

    Rows are in the order of the pipeline's source; those of a file that does not say it come last. Integers with a missing value
    among them are of pandas' nullable type, and stay exact; values of unlike types are objects.
    """
    import pandas as pd

    runs = sorted((run for file in found.get_fragments() for run in _runs_of(file)), key=lambda run: run.place)
    if rows is not None:
        runs = _first(runs, rows)
    tables, places = [], []
    for file in dict.fromkeys(run.file for run in runs):
        of_file = [run for run in runs if run.file is file]
        first, stop = min(run.start for run in of_file), max(run.stop for run in of_file)
        tables.append((file.to_table() if rows is None else file.head(stop)).slice(first))
        places += [(run.place, at) for run in sorted(of_file, key=lambda run: run.start) for at in range(run.start, run.stop)]
    names = dict.fromkeys(name for table in tables for name in table.column_names)
    names = names or dict.fromkeys(found.schema.names)
    whole = pd.DataFrame({name: _column(name, tables) for name in names}, index=range(len(places)))
    order = sorted(range(len(places)), key=places.__getitem__)
    return whole if order == list(range(len(places))) else whole.take(order).reset_index(drop=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Run:
    """Rows ``[start, stop)`` of a file; ``place`` is the number of their span of the source."""

    file: Any
    place: float
    start: int
    stop: int


def _runs_of(file: Any) -> list[_Run]:
    """Return the runs of rows of a Parquet part."""
    written = (file.metadata.metadata or {}).get(ORDER)
    spans = json.loads(written) if written else [(float("inf"), file.metadata.num_rows)]
    runs, at = [], 0
    for place, num_rows in spans:
        runs.append(_Run(file=file, place=place, start=at, stop=at + num_rows))
        at += num_rows
    return runs


def _first(runs: Sequence[_Run], rows: int) -> list[_Run]:
    """Return the runs of the first rows; the last one is cut."""
    found, left = [], rows
    for run in runs:
        if left <= 0:
            break
        found.append(_Run(file=run.file, place=run.place, start=run.start, stop=min(run.stop, run.start + left)))
        left -= run.stop - run.start
    return found


def _schema_of(schemas: Sequence[Any]) -> Any:
    import pyarrow as pa

    kinds: dict[str, Kind] = {}
    for field in (field for schema in schemas for field in schema):
        kind = _kind(field)
        if field.type != pa.null() and kinds.setdefault(field.name, kind) != kind:
            raise UnlikePartsError(f"{field.name} is of unlike shapes or types")
    try:
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid) as exc:
        raise UnlikePartsError(str(exc).partition("\n")[0]) from exc
    return pa.schema([_marked(field, kinds.get(field.name)) for field in schema])


def _column(name: str, tables: Sequence[Any]) -> Any:
    """Return a column of several tables, one after the other, as pandas has it."""
    import pandas as pd
    import pyarrow as pa

    fields = [table.schema.field(name) for table in tables if name in table.column_names]
    known = [field for field in fields if not pa.types.is_null(field.type)]
    columns = [table.column(name) if name in table.column_names else pa.nulls(table.num_rows) for table in tables]
    if known and all(field.type == known[0].type and not _is_changed(field) for field in known):
        kind = known[0].type
        parts = [pa.nulls(len(column), kind) if pa.types.is_null(column.type) else column for column in columns]
        whole = pa.chunked_array([chunk for part in parts for chunk in getattr(part, "chunks", [part])], type=kind)
        return whole.to_pandas(types_mapper=_nullable if whole.null_count else None)
    values: list[Any] = []
    for table, column in zip(tables, columns, strict=True):
        values += _values(table.schema.field(name), column) if name in table.column_names else [None] * len(column)
    return pd.Series(values, dtype=_numbers_of(values) or object)


def _nullable(kind: Any) -> Any:
    """Return pandas' own type of integers that may be missing; None of other types."""
    import pandas as pd
    import pyarrow as pa

    if not pa.types.is_integer(kind):
        return None
    return getattr(pd, f"{'UInt' if pa.types.is_unsigned_integer(kind) else 'Int'}{kind.bit_width}Dtype")()


def _numbers_of(values: Sequence[Any]) -> str | None:
    """Return pandas' type of numbers that are of one type in one part and of another in the next, if it has each exactly."""
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {int} and all(value is None or abs(value) <= np.iinfo(np.int64).max for value in values):
        return "Int64" if None in values else "int64"
    if kinds == {int, float} and all(int(float(value)) == value for value in values if type(value) is int):
        return "float64"
    return None


def _is_changed(field: Any) -> bool:
    """Return whether the values of a column are others than those that Arrow gives pandas."""
    import pyarrow as pa

    return pa.types.is_nested(field.type) or isinstance(field.type, pa.BaseExtensionType) or bool(_kind(field)[0])


def _values(field: Any, column: Any) -> list[Any]:
    """Return the values of a column as they were made."""
    import pyarrow as pa

    told, facts = _kind(field)
    if isinstance(field.type, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], type=field.type.storage_type)
    if made := _maker(told, facts, column.type):
        return [None if value is None else made(value) for value in column.to_pandas()]
    return as_noted((field.metadata or {}).get(NOTE, b""), column.to_pylist())


def _maker(name: str, facts: bytes, stored: Any) -> Callable[[Any], Any] | None:
    """Give what makes a value of what is stored; None where that is the value."""
    if name in FIXED:
        shape = json.loads(facts)
        return lambda value: value.reshape(shape)
    if name == RAGGED:
        dtype = stored.field("data").type.value_type.to_pandas_dtype()
        return lambda value: np.asarray(value["data"], dtype=dtype).reshape([int(size) for size in value["shape"]])
    if name == PICKLED:
        keep_classes_one()
        return pickle.loads  # our own cluster's
    return None


def _kind(field: Any) -> Kind:
    import pyarrow as pa

    if isinstance(field.type, pa.BaseExtensionType):
        return field.type.extension_name, field.type.__arrow_ext_serialize__()
    facts = field.metadata or {}
    return facts.get(NAME, b"").decode(), facts.get(FACTS, b"")


def _marked(field: Any, kind: Kind | None) -> Any:
    """Have a field say its kind, also where the first part that has it had nothing in it."""
    import pyarrow as pa

    if kind is None or not kind[0] or isinstance(field.type, pa.BaseExtensionType):
        return field
    return field.with_metadata({NAME: kind[0].encode(), FACTS: kind[1]})
