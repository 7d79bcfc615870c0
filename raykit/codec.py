"""Frozen dataclasses to JSON values and back, named by their class.

Specs, commands and events cross the door and lie in the log in this form. The schema version stands in each message,
so that a newer reader can still read an older log.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA_VERSION = 1


def encode(value: Any) -> dict[str, Any]:
    """Give a dataclass as JSON values, with its class under ``kind``."""
    return {"kind": type(value).__name__, **asdict(value)}


def decode(union: Any, data: dict[str, Any]) -> Any:
    """Rebuild the member of ``union`` (a union of dataclasses, or one of them) that :func:`encode` described.

    Raises:
        LookupError: no member of the union has that name (a message of a newer raykit).
        ValueError: the fields do not fit.
    """
    members = {member.__name__: member for member in get_args(union) or (union,)}
    fields = dict(data)
    return validate(members[fields.pop("kind")], fields)


def validate(kind: Any, fields: dict[str, Any]) -> Any:
    """Build the dataclass ``kind`` from JSON values, nested ones included."""
    return _adapter(kind).validate_python(fields)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
