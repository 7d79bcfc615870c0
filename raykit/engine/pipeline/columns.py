"""Python values as Arrow columns and back: a value stays what it was, whatever values stand beside it.

Arrow and numpy look for one type that all values of a column fit into, and change values on the way: 13835058055282163713
beside 5 becomes a float, True beside 7 becomes 1, a time with a zone loses it. A column is stored as an Arrow type only if
every value can be read back equal; otherwise its values are pickled one by one (Ray Data's type for Python objects).
"""

from __future__ import annotations

import datetime as dt
import decimal
import itertools
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np

from raykit.spec.rows import ABSENT, NOTE, TUPLES, as_noted

if TYPE_CHECKING:
    import pyarrow as pa

PLAIN = frozenset((bool, int, float, str, bytes, dt.date, dt.timedelta, decimal.Decimal))
NUMBERS = frozenset((int, float))
TENSOR_KINDS = "biuf"
EXACT_FLOAT_BYTES = 8  # integers of fewer bytes are exact as float64


@dataclass(slots=True)
class _Dicts:
    """What the dicts of a column are like: whether their keys differ, and whether a key has the value None."""

    keys_differ: bool = False
    has_none: bool = False


def column_from(name: str, values: Any) -> tuple[pa.Field, pa.Array]:
    """Return a column with its field.

    Args:
        name: the column's.
        values: a list with a value a row, or an array whose first axis is the rows. None, ``pandas.NA`` and ``NaT`` are null;
            so is a NaN beside values that are no numbers, as in pandas.
    """
    import pyarrow as pa

    note = b""
    if isinstance(values, np.ndarray) and values.dtype != object and values.ndim > 0:
        array = _from_numpy(values)
    else:
        note, array = _from_values(list(values))
    return pa.field(name, array.type, metadata={NOTE: note} if note else None), array


def values_from(field: pa.Field, column: Any) -> list[Any]:
    """Return the Python values of an Arrow column: what :func:`column_from` was given, tensors as arrays."""
    import pyarrow as pa

    if isinstance(field.type, pa.BaseExtensionType):
        if not len(column):
            return []
        arrays = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        return [value for array in arrays for value in _of_extension(array)]
    return as_noted((field.metadata or {}).get(NOTE, b""), column.to_pylist())


def numpy_from(field: pa.Field, column: Any) -> np.ndarray:
    """Return an Arrow column as an array whose first axis is the rows.

    Numbers, booleans and times without a zone are arrays of their types (floats have NaN where a value is missing), lists of
    numbers an array each; everything else, as integers with a missing value among them, are objects: Python's own values.
    """
    import pyarrow as pa

    kind = field.type
    if isinstance(kind, pa.BaseExtensionType):
        return stacked(values_from(field, column))
    is_number = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    is_time = (pa.types.is_timestamp(kind) and kind.tz is None) or pa.types.is_duration(kind)
    if pa.types.is_floating(kind) or is_time or (is_number and not column.null_count):
        return np.asarray(column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy())
    values = values_from(field, column)
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_primitive(kind.value_type):
        values = [value if value is None else stacked(value) if value else _empty(kind.value_type) for value in values]
    return objects(values)


def stacked(values: Sequence[Any]) -> np.ndarray:
    """Return values as an array whose first axis is the values, if each can be read back from it equal; otherwise as objects."""
    kinds = set(map(type, values))
    if not kinds:
        return np.empty(0)
    array = None
    if kinds == {np.ndarray}:
        array = _stacked_arrays(values)
    elif any(issubclass(kind, np.datetime64 | np.timedelta64) for kind in kinds):
        array = np.array(values) if len({getattr(value, "dtype", None) for value in values}) == 1 else None
    elif kinds <= {bool, np.bool_}:
        array = np.array(values)
    elif all(kind is int or issubclass(kind, np.integer) for kind in kinds):
        array = _stacked_integers(values, kinds)
    elif all(kind in (int, float, complex) or issubclass(kind, np.number) for kind in kinds):
        array = _stacked_numbers(values)
    return objects(values) if array is None else array


def objects(values: Iterable[Any]) -> np.ndarray:
    """Return an array of the objects themselves, also where they are sequences."""
    values = list(values)
    array = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        array[place] = value
    return array


def scalar(value: Any) -> Any:
    """Return a value of numpy's as Python's own; nanoseconds, for which Python has no type, as pandas' one."""
    if isinstance(value, np.datetime64 | np.timedelta64) and not isinstance(made := value.item(), int):
        return made
    if isinstance(value, np.datetime64 | np.timedelta64):
        import pandas as pd

        return pd.Timestamp(value) if isinstance(value, np.datetime64) else pd.Timedelta(value)
    return value.item() if isinstance(value, np.generic) else value


def _stacked_arrays(values: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return arrays of one shape as one, unless their types would change a value."""
    dtypes = {value.dtype for value in values}
    is_exact = all(dtype.kind in "fc" or (dtype.kind in "iu" and dtype.itemsize < EXACT_FLOAT_BYTES) for dtype in dtypes)
    if len({value.shape for value in values}) == 1 and (len(dtypes) == 1 or is_exact or {dtype.kind for dtype in dtypes} == {"U"}):
        return np.stack(values)
    return None


def _stacked_integers(values: Sequence[Any], kinds: set[type]) -> np.ndarray | None:
    if len(kinds) == 1 and int not in kinds:
        return np.array(values)
    integers = [int(value) for value in values]
    for dtype in (np.int64, np.uint64):
        bounds = np.iinfo(dtype)
        if bounds.min <= min(integers) and max(integers) <= bounds.max:
            return np.array(integers, dtype=dtype)
    return None


def _stacked_numbers(values: Sequence[Any]) -> np.ndarray | None:
    with suppress(OverflowError):
        array = np.array(values)
        integers = [(there, value) for there, value in zip(array, values, strict=True) if isinstance(value, int | np.integer)]
        if array.dtype.kind in "fc" and all(int(there.real) == value for there, value in integers):
            return array
    return None


def _from_numpy(array: np.ndarray) -> pa.Array:
    import pyarrow as pa

    if array.ndim > 1:
        return _tensors(list(array)) if array.dtype.kind in TENSOR_KINDS and len(array) else _pickled(list(array))
    if array.dtype.kind in "biufMm" and array.dtype.isnative:
        try:
            return pa.array(array)
        except (pa.ArrowException, ValueError, TypeError):  # a unit of time that Arrow has not
            pass
    return _from_values(array.tolist())[1]


def _from_values(values: list[Any]) -> tuple[bytes, pa.Array]:
    """Return how the values are to be read, and the array."""
    import pyarrow as pa

    kinds = set(map(type, values)) - {type(None)}
    if any(kind.__name__ in ("NAType", "NaTType") for kind in kinds) or (float in kinds and not kinds <= NUMBERS):
        values = [None if _is_missing(value) else value for value in values]
        kinds = set(map(type, values)) - {type(None)}
    if np.ndarray in kinds:
        values = [value[()] if isinstance(value, np.ndarray) and not value.ndim else value for value in values]
        if all(isinstance(value, np.ndarray) for value in values):
            return b"", _tensors(values)
        kinds = set(map(type, values)) - {type(None)}
    if len(kinds) > 1 and all(kind in NUMBERS or issubclass(kind, np.integer | np.floating) for kind in kinds):
        values = [value.item() if isinstance(value, np.generic) else value for value in values]
        kinds = set(map(type, values)) - {type(None)}
    is_tuples = kinds == {tuple}
    dicts = _Dicts()
    try:
        flat = [value if value is None else list(value) for value in values] if is_tuples else values
        if not _fits_arrow(flat, dicts) or (dicts.keys_differ and dicts.has_none):
            return b"", _pickled(values)
        array = pa.array(flat, type=_type_of(flat, kinds))
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return b"", _pickled(values)
    if dicts.keys_differ and is_tuples:
        return b"", _pickled(values)
    return TUPLES if is_tuples else ABSENT if dicts.keys_differ else b"", array


def _fits_arrow(values: Iterable[Any], dicts: _Dicts) -> bool:
    """Return whether Arrow has a type that all values, which may be nested, can be read back from as they were."""
    there = [value for value in values if value is not None]
    kinds = set(map(type, there))
    if len(kinds) != 1:
        return not kinds or kinds == NUMBERS
    kind = next(iter(kinds))
    if kind is list:
        return _fits_arrow(itertools.chain.from_iterable(there), dicts)
    if kind is dict:
        return _dicts_fit_arrow(there, dicts)
    if kind is dt.time:
        return all(value.tzinfo is None for value in there)
    if issubclass(kind, dt.datetime):
        return kind.__module__.partition(".")[0] in ("datetime", "pandas") and len({str(value.tzinfo) for value in there}) == 1
    is_numpy = issubclass(kind, np.bool_ | np.number | np.datetime64) and not issubclass(kind, np.complexfloating)
    return kind in PLAIN or is_numpy or (kind.__name__, kind.__module__.partition(".")[0]) == ("Timedelta", "pandas")


def _dicts_fit_arrow(values: Sequence[dict[Any, Any]], dicts: _Dicts) -> bool:
    names = dict.fromkeys(name for value in values for name in value)
    if not names or not all(type(name) is str for name in names):
        return False
    dicts.keys_differ |= any(len(value) < len(names) for value in values)
    for name in names:
        inner = [value[name] for value in values if name in value]
        dicts.has_none |= any(each is None for each in inner)
        if not _fits_arrow(inner, dicts):
            return False
    return True


def _type_of(values: Sequence[Any], kinds: set[type]) -> Any:
    """Return the type that Arrow would not find for itself: of 64-bit integers without a sign, and of nanoseconds."""
    import pyarrow as pa

    there = [value for value in values if value is not None]
    if kinds == {int} and max(there) > np.iinfo(np.int64).max:
        return pa.uint64()
    if any(getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0) for value in there):
        return pa.duration("ns") if hasattr(there[0], "nanoseconds") else pa.timestamp("ns", tz=there[0].tzinfo)
    return None


def _is_missing(value: Any) -> bool:
    return type(value).__name__ in ("NAType", "NaTType") or (type(value) is float and math.isnan(value))


def _tensors(values: Sequence[np.ndarray]) -> pa.Array:
    from ray.data._internal.tensor_extensions.arrow import (
        ArrowConversionError,
        ArrowTensorArray,
        ArrowVariableShapedTensorArray,
    )

    alike = len({(value.dtype, value.ndim) for value in values}) == 1 and values[0].dtype.isnative
    if not alike or values[0].dtype.kind not in TENSOR_KINDS:
        return _pickled(values)
    try:
        if len({value.shape for value in values}) == 1:
            return ArrowTensorArray.from_numpy(np.stack(values))
        return ArrowVariableShapedTensorArray.from_numpy(objects(values))
    except (ArrowConversionError, ValueError, TypeError):
        return _pickled(values)


def _pickled(values: Iterable[Any]) -> pa.Array:
    """Return Ray Data's column of Python objects; pickled so that a class of the notebook is that same class again there."""
    import pyarrow as pa
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    kind = ArrowPythonObjectType()
    return kind.wrap_array(pa.array([cloudpickle.dumps(value) for value in values], type=kind.storage_type))


def _of_extension(array: Any) -> list[Any]:
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    is_tensor = hasattr(array.type, "shape") or hasattr(array.type, "ndim")  # of one shape, of several
    if isinstance(array.type, ArrowPythonObjectType) or not is_tensor:
        return list(array.to_pylist())
    if array.null_count:
        return [None if not scalar.is_valid else scalar.as_py() for scalar in array]
    return list(array.to_numpy(zero_copy_only=False))


def _empty(kind: Any) -> np.ndarray:
    return np.empty(0, dtype=kind.to_pandas_dtype())
