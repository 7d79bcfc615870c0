"""What a picker of clusters shows: a form of the fields of :class:`ClusterSpec`, the clusters, and how far a start is."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from raykit.spec import ClusterSpec
from raykit.spec.cluster import PLACES

FIRST = ("num_nodes", "num_cpus", "num_gpus", "gpus_per_node", "num_simulated_gpus", "idle_s", "price_per_node_h", "max_cost_per_h")
"""The fields that stand in front; the others are folded away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormField:
    """An option of ``%ray up``: its flag, what it means, how it is written, and the places that know it (none: all)."""

    flag: str
    help: str
    example: str
    places: tuple[str, ...]
    is_switch: bool
    is_first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What can be asked: the places, with what each is, and the options."""

    places: tuple[tuple[str, str], ...]
    fields: tuple[FormField, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRow:
    """A cluster that is written down."""

    name: str
    place: str
    state: str
    nodes: str
    why: str
    current: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PickerFace:
    """The clusters, what is being done and has been told of it, the magic's line of what was asked, and its plan."""

    clusters: tuple[ClusterRow, ...]
    doing: str
    told: tuple[str, ...]
    line: str
    plan: tuple[tuple[str, str], ...]
    price: str


def form() -> Form:
    """Give the form of a cluster's spec."""
    return Form(places=tuple(PLACES.items()), fields=tuple(_fields()))


def _fields() -> Iterator[FormField]:
    known = {each.name: each for each in fields(ClusterSpec)}
    for name in (*FIRST, *(name for name in known if name not in (*FIRST, "name", "place"))):
        flags, text, read, metavar = known[name].metadata["option"]
        places = known[name].metadata["places"]
        yield FormField(
            flag=flags[0],
            help=text.removesuffix(f" ({', '.join(places)})"),
            example=metavar or "",
            places=places,
            is_switch=read is None,
            is_first=name in FIRST,
        )


def line_of(name: str, place: str, options: Mapping[str, str]) -> str:
    """Write what was asked as ``%ray up`` reads it. An option without text was not given; a switch that is on is its own text."""
    words = [*([name] if name else []), "--on", place]
    for flag, text in options.items():
        words += [flag] if text == flag else [flag, text] if text else []
    return shlex.join(words)
