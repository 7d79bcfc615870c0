"""Requests and answers of services as JSON text: what Python's values become, and which texts are refused.

What JSON can hold is written exactly: integers of any size with all their digits, floats so that they are read back the
same, text of any characters. Lists, tuples, arrays, tensors and columns become lists, numpy's numbers plain ones. Anything
else is refused by its name and place, never changed without a word: ``json.dumps`` would make the key 1 a text, and numpy a
``datetime64[ns]`` an integer.

NaN and infinity are no JSON: a browser's ``JSON.parse`` refuses the whole text. An HTTP client therefore gets ``null`` for
them, as from JavaScript's ``JSON.stringify``, orjson and pydantic, and so from newer FastAPI. A refusal, as by Ray Serve and
older FastAPI (status 500), would cost all of an answer because of a mean over nothing. ``rk.service(...)`` sends its requests
as :data:`PYTHON_JSON`, in which these numbers are written as Python's ``json`` writes them, and so gets NaN as NaN.
"""

from __future__ import annotations

import json
import math
from typing import Any

from raykit.errors import InputError

PYTHON_JSON = "application/vnd.raykit+json"
"""The content type of JSON with ``NaN``, ``Infinity`` and ``-Infinity``; who sends it gets it."""

_NUMBER_BYTES = 8  # of numpy's largest numbers that are Python's, too
_SCALARS = frozenset((str, int, float, bool, type(None)))
_HINTS = {
    "Decimal": "str(value) keeps its digits, float(value) makes it a number",
    "datetime": "use value.isoformat()",
    "date": "use value.isoformat()",
    "time": "use value.isoformat()",
    "Timestamp": "use value.isoformat()",
    "timedelta": "use value.total_seconds()",
    "Timedelta": "use value.total_seconds()",
    "bytes": "use base64.b64encode(value).decode(), or value.decode() for text",
    "bytearray": "use base64.b64encode(value).decode(), or value.decode() for text",
    "memoryview": "use base64.b64encode(value).decode()",
    "set": "use sorted(value) or list(value)",
    "frozenset": "use sorted(value) or list(value)",
    "complex": "use [value.real, value.imag]",
}


class _UnwritableError(Exception):
    """JSON has no form for a value; ``path`` are the keys and places that lead to it, the innermost first."""

    def __init__(self, kind: str, hint: str, *, verb: str = "is") -> None:
        super().__init__(kind, hint)
        self.kind, self.hint, self.verb = kind, hint, verb
        self.path: list[Any] = []


def json_texts(called: str, value: Any) -> tuple[str, str]:
    """Return a value as JSON, where NaN and infinity are ``null``, and as :data:`PYTHON_JSON`.

    Args:
        called: what the value is, as a subject of a sentence: "The answer".
        value: what is written.

    Raises:
        TypeError: it holds a value or a key for which JSON has no form; the message names type and place.
        ValueError: it is nested too deeply, holds itself, or has an integer of more digits than Python writes.
    """
    try:
        plain = _plain(value)
        text = json.dumps(plain)
        standard = text if _is_standard(text) else json.dumps(_finite(plain))
    except _UnwritableError as exc:
        at = "".join(f"[{step!r}]" for step in reversed(exc.path))
        has = f"{called} has {exc.kind} at {at}" if at else f"{called} {exc.verb} {exc.kind}"
        raise TypeError(f"{has}, for which JSON has no form: {exc.hint}") from None
    except RecursionError:
        raise ValueError(f"{called} is nested too deeply for JSON, or holds itself") from None
    return standard, text


def as_json(called: str, value: Any) -> str:
    """Return a value as :data:`PYTHON_JSON`; arguments and errors are those of :func:`json_texts`."""
    return json_texts(called, value)[1]


def from_json(body: bytes, *, is_python: bool) -> Any:
    """Return what the body of a request holds.

    Args:
        body: JSON in UTF-8 (or UTF-16 or UTF-32, as its first bytes tell).
        is_python: whether it is :data:`PYTHON_JSON`.

    Raises:
        InputError: it is no such JSON, has a key twice in an object, or is nested too deeply.
    """
    if not body.strip():
        raise InputError("The request's body is empty.", "Send a JSON object, or a list of objects.")
    try:
        text = body.decode(json.detect_encoding(body), "surrogatepass")
        return (_PYTHON if is_python else _STANDARD).decode(text)
    except InputError:
        raise
    except UnicodeDecodeError as exc:
        raise InputError(f"The request's body is not text: {exc}.", "Send JSON in UTF-8.") from exc
    except ValueError as exc:
        raise InputError(f"The request's body is not JSON: {exc}.", "Send a JSON object, or a list of objects.") from exc
    except RecursionError:
        raise InputError("The request is nested too deeply.", "Nest lists and objects less than 200 deep.") from None


def _plain(value: Any) -> Any:
    """Return a value in dicts with text keys, lists, text, numbers, booleans and None."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        return _plain_dict(value)
    if isinstance(value, list | tuple):
        return value if _SCALARS.issuperset(map(type, value)) else _plain_list(value)
    if hasattr(value, "tolist") and not isinstance(value, memoryview):
        return _plain(_listed(value))
    raise _unwritable(type(value).__name__)


def _plain_dict(value: dict[Any, Any]) -> dict[str, Any]:
    made = {}
    for key, each in value.items():
        if not isinstance(key, str):
            raise _UnwritableError(f"the key {key!r} of type {type(key).__name__}", "keys are text, as str(key)", verb="has")
        try:
            made[key] = _plain(each)
        except _UnwritableError as exc:
            exc.path.append(key)
            raise
    return made


def _plain_list(value: list[Any] | tuple[Any, ...]) -> list[Any]:
    made = []
    for place, each in enumerate(value):
        try:
            made.append(_plain(each))
        except _UnwritableError as exc:
            exc.path.append(place)
            raise
    return made


def _listed(value: Any) -> Any:
    """Return an array, a tensor, a column or one of their numbers as lists of plain values."""
    dtype: Any = getattr(value, "dtype", None)
    kind = getattr(dtype, "kind", "")
    if kind in ("M", "m", "V", "c") or (
        kind == "f" and dtype.itemsize > _NUMBER_BYTES
    ):  # numpy would give integers, bytes, or itself
        raise _UnwritableError(
            f"a value of type {type(value).__name__} ({dtype})", "give numbers of at most 64 bits, or text as of astype(str)"
        )
    made = value.tolist()
    if type(made) is type(value):
        raise _unwritable(type(value).__name__)
    return made


def _unwritable(kind: str) -> _UnwritableError:
    return _UnwritableError(f"a value of type {kind}", _HINTS.get(kind, "give numbers, text, lists and dicts"))


def _is_standard(text: str) -> bool:
    """Return whether JSON that Python wrote has certainly no NaN and no infinity."""
    return "NaN" not in text and "Infinity" not in text


def _finite(plain: Any) -> Any:
    """Return a plain value with None instead of NaN and infinity."""
    if isinstance(plain, float):
        return plain if math.isfinite(plain) else None
    if isinstance(plain, dict):
        return {key: _finite(each) for key, each in plain.items()}
    if isinstance(plain, list | tuple):
        return [_finite(each) for each in plain]
    return plain


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InputError(f"The request has the key {twice!r} twice in one object.", "Send each key once.")
    return made


def _refuse(constant: str) -> Any:
    raise InputError(
        f"The request has {constant}, which is not JSON.", f"Send null, or send it with the content type {PYTHON_JSON} to mean it."
    )


_STANDARD = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)
_PYTHON = json.JSONDecoder(object_pairs_hook=_unique)
