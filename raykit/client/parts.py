"""Reads a pipeline's Parquet parts: in one schema where they have one, with tensors and objects as they were made.

Ray Data's column types for these are unknown here as long as nobody imports Ray: a column is then what its type stores, and
its field says the type's name. Where Ray is imported the type itself says it.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

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
    """Read so many rows of a ``pyarrow.dataset.Dataset``, or all, into a pandas table; where parts are unlike, each as it is."""
    import pandas as pd

    try:
        whole = unified(found)
    except UnlikePartsError:
        tables: list[Any] = []
        for part in found.get_fragments():
            left = None if rows is None else rows - sum(map(len, tables))
            if left != 0:
                tables.append(_as_pandas(part.to_table() if left is None else part.head(left)))
        return pd.concat(tables, ignore_index=True)
    return _as_pandas(whole.to_table() if rows is None else whole.head(rows))


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


def _as_pandas(table: Any) -> Any:
    """Give a ``pyarrow.Table`` as a pandas table in which tensors are arrays of their shapes, and objects are themselves."""
    import pandas as pd
    import pyarrow as pa

    columns = {}
    for field, column in zip(table.schema, table.columns, strict=True):
        name, facts = _kind(field)
        if isinstance(field.type, pa.BaseExtensionType):
            column = pa.chunked_array([chunk.storage for chunk in column.chunks], type=field.type.storage_type)  # noqa: PLW2901
        columns[field.name] = values = column.to_pandas()
        if made := _maker(name, facts, column.type):
            columns[field.name] = pd.Series([None if value is None else made(value) for value in values], dtype=object)
    return pd.DataFrame(columns, index=range(table.num_rows))


def _maker(name: str, facts: bytes, stored: Any) -> Callable[[Any], Any] | None:
    """Give what makes a value of what is stored; None where that is the value."""
    if name in FIXED:
        shape = json.loads(facts)
        return lambda value: value.reshape(shape)
    if name == RAGGED:
        dtype = stored.field("data").type.value_type.to_pandas_dtype()
        return lambda value: np.asarray(value["data"], dtype=dtype).reshape([int(size) for size in value["shape"]])
    if name == PICKLED:
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
