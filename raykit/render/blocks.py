"""Bars, curves and a timeline made of block characters, which every page and terminal can show."""

from __future__ import annotations

from collections.abc import Sequence

from raykit.render.past import Past

EIGHTHS = " ▏▎▍▌▋▊▉█"
LEVELS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 40
SPENT = "█░▒"  # busy, starved, blocked
STATES = {"running": "━", "recovering": "✗", "resizing": "↔", "stopping": "▿"}


def bar(share: float | None, width: int = 24) -> str:
    """Draw a share of one, to an eighth of a character; dots where it is unknown."""
    if share is None:
        return "·" * width
    whole, rest = divmod(round(max(0.0, min(1.0, share)) * width * 8), 8)
    return ("█" * whole + (EIGHTHS[rest] if rest else "")).ljust(width)


def spent_bar(spent: tuple[float, float, float] | None, width: int = 16) -> str:
    """Draw what time went to: busy, starved, blocked; dots where it is unknown."""
    if spent is None:
        return "·" * width
    ends = [round(sum(spent[: place + 1]) * width) for place in range(len(spent))]
    parts = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    return "".join(sign * part for sign, part in zip(SPENT, parts, strict=True)).ljust(width)


def curve(points: Sequence[tuple[float, float]], width: int = CURVE_WIDTH) -> str:
    """Draw values as a line of blocks; each block is the mean of its part."""
    values = [value for _, value in points]
    size = max(1, -(-len(values) // width))
    means = [sum(part) / len(part) for part in (values[at : at + size] for at in range(0, len(values), size))]
    low, high = min(means, default=0.0), max(means, default=0.0)
    return "".join(LEVELS[round((mean - low) / (high - low) * 7) if high > low else 0] for mean in means)


def timeline(past: Past, width: int = CURVE_WIDTH) -> str:
    """Draw the states of a run over its time; a state that was short still has its sign."""
    signs = ["·"] * width
    for span in sorted(past.spans, key=lambda span: span.state != "running"):
        first = min(int(span.from_s / past.to_s * width), width - 1)
        last = max(first + 1, round(span.to_s / past.to_s * width))
        signs[first:last] = STATES.get(span.state, "·") * (min(last, width) - first)
    return "".join(signs)
