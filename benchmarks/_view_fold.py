"""What it costs to come late: a reader folds all that it missed."""

from __future__ import annotations

import statistics
import time

from _measure import Figure

from raykit.views import RunView, fold_all
from raykit.views.examples import pipeline_records, training_records

NUM_EVENTS = 10_000


def fold_figures(rounds: int) -> dict[str, Figure]:
    """Give the time of 10,000 events of a training and of a pipeline of 20 stages, which take turns."""
    kinds = {"training": training_records(NUM_EVENTS), "pipeline": pipeline_records(NUM_EVENTS)}
    times_s: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, records in kinds.items():
            begun_s = time.perf_counter()
            fold_all(RunView(name=kind), records)
            times_s[kind].append(time.perf_counter() - begun_s)
    return {
        f"fold of {NUM_EVENTS:,} events of a {kind}, {word}, ms": Figure(
            value=1000 * of(times), goal="<= 50" if word == "median" else None
        )
        for kind, times in times_s.items()
        for word, of in (("median", statistics.median), ("worst", max))
    }
