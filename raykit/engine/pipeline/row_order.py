"""Where each row under way stands in the order of the source: keys that sort as the rows would come out of plain Python.

A key is four bytes of the row's number in its span; a stage that makes several rows of one appends four bytes with the number
among these. So keys sort, as bytes do, in the order in which nested loops over the stages would make the rows. numpy takes a
shorter key as if zeros followed, which is the first row that was made of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Keys = np.ndarray
"""The keys of rows: an array of dtype ``S4``, ``S8``, ..., one for each row."""

Origins = np.ndarray
"""For each row that a call gave, which of the call's rows it was made of: their numbers, integers from 0 on."""

LEVEL_BYTES = 4


def source_keys(start: int, stop: int) -> Keys:
    """Return the keys of the rows ``[start, stop)`` of a span."""
    return np.arange(start, stop, dtype=">u4").view(f"S{LEVEL_BYTES}")


def keys_of(taken: Sequence[Keys]) -> Keys:
    """Return the keys of several pieces, one after the other."""
    return np.concatenate(taken) if taken else source_keys(0, 0)


def made_of(keys: Keys, origins: Origins | None) -> Keys:
    """Return the keys of the rows that a call gave.

    Args:
        keys: of the rows that the call took.
        origins: None where it gave one row for each, in their order.
    """
    if origins is None:
        return keys
    made = keys[origins]
    numbers = _numbers_among_equal(origins)
    if not numbers.any():
        return made
    width = made.dtype.itemsize
    levels = np.empty((len(made), width + LEVEL_BYTES), dtype=np.uint8)
    levels[:, :width] = np.ascontiguousarray(made).view(np.uint8).reshape(len(made), width)
    levels[:, width:] = numbers.astype(">u4").view(np.uint8).reshape(len(made), LEVEL_BYTES)
    return levels.view(f"S{width + LEVEL_BYTES}").reshape(len(made))


def spread(num_made: int, taken: Sequence[int] | Origins) -> Origins:
    """Return origins for ``num_made`` rows that a batch gave in place of ``taken``: where their numbers differ, in their order."""
    there = np.asarray(taken)
    if num_made == len(there):
        return there
    return np.sort(there)[np.arange(num_made) * len(there) // max(num_made, 1)]


def _numbers_among_equal(origins: Origins) -> np.ndarray:
    """Number the rows that were made of the same row, from 0 on, in the order in which they came."""
    order = np.argsort(origins, kind="stable")
    ordered = origins[order]
    firsts = np.searchsorted(ordered, ordered, side="left")
    numbers = np.empty(len(origins), dtype=np.int64)
    numbers[order] = np.arange(len(origins)) - firsts
    return numbers
