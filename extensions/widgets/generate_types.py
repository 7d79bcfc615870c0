"""Write src/face.ts: the TypeScript types of what raykit.render says, from the Python ones."""

from __future__ import annotations

import sys
import types
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from raykit.render.cluster import ClusterFace, Domain, NodeBlock
from raykit.render.face import Card, Face, Lane
from raykit.render.past import Chart, Log, Mark, Past, Span
from raykit.render.picker import ClusterRow, Form, FormField, PickerFace

TARGET = Path(__file__).parent / "src" / "face.ts"
HEAD = "// Written by generate_types.py from the dataclasses of raykit/render; do not edit.\n"
KINDS = (
    *(Span, Mark, Chart, Log, Past, Lane, Card, Face),
    *(NodeBlock, Domain, ClusterFace),
    *(FormField, Form, ClusterRow, PickerFace),
)
PLAIN = {str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def generated() -> str:
    """Give the text of face.ts."""
    return HEAD + "".join(_interface(kind) for kind in KINDS)


def _interface(kind: type) -> str:
    hints = get_type_hints(kind)
    lines = [f"  readonly {each.name}: {_typescript(hints[each.name])};\n" for each in fields(kind)]
    return f"\nexport interface {kind.__name__} {{\n{''.join(lines)}}}\n"


def _typescript(hint: Any) -> str:
    if hint in PLAIN:
        return PLAIN[hint]
    if is_dataclass(hint):
        return str(hint.__name__)
    arguments = get_args(hint)
    if get_origin(hint) is types.UnionType:
        return " | ".join(_typescript(each) for each in arguments)
    if get_origin(hint) is tuple and arguments[-1] is ...:
        return f"readonly {_grouped(_typescript(arguments[0]))}[]"
    if get_origin(hint) is tuple:
        return f"[{', '.join(_typescript(each) for each in arguments)}]"
    raise TypeError(f"no TypeScript for {hint}")


def _grouped(text: str) -> str:
    return f"({text})" if " " in text and not text.startswith("[") else text


if __name__ == "__main__":
    TARGET.write_text(generated())
    sys.stdout.write(f"wrote {TARGET.name}\n")
