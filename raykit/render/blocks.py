"""Bars and curves made of block characters, which every page and terminal can show."""

from __future__ import annotations

from collections.abc import Sequence

EIGHTHS = " ▏▎▍▌▋▊▉█"
LEVELS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 40


def bar(share: float | None, width: int = 24) -> str:
    """Draw a share of one, to an eighth of a character; dots where it is unknown."""
    if share is None:
        return "·" * width
    whole, rest = divmod(round(max(0.0, min(1.0, share)) * width * 8), 8)
    return ("█" * whole + (EIGHTHS[rest] if rest else "")).ljust(width)


def curve(points: Sequence[tuple[int, float]]) -> str:
    """Draw values as a line of blocks; each block is the mean of its part."""
    values = [value for _, value in points]
    size = max(1, -(-len(values) // CURVE_WIDTH))
    means = [sum(part) / len(part) for part in (values[at : at + size] for at in range(0, len(values), size))]
    low, high = min(means, default=0.0), max(means, default=0.0)
    return "".join(LEVELS[round((mean - low) / (high - low) * 7) if high > low else 0] for mean in means)
