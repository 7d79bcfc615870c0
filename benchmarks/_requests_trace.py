"""The Azure code-completion trace as requests that take a GPU so many seconds."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

TRACE = Path(__file__).parent / "data" / "azure_llm_2023_code.csv"
PREFILL_TOKENS_S, DECODE_TOKENS_S = 8000, 800  # of a GPU, assumed
GLANCE_S = 0.02

Request = tuple[float, float]
"""When it comes, in seconds, and how many seconds of a GPU it takes."""


def whole() -> list[Request]:
    """Give all requests, the first of which comes at 0."""
    with TRACE.open() as file:
        rows = [
            (
                datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp(),
                int(row["ContextTokens"]) / PREFILL_TOKENS_S + int(row["GeneratedTokens"]) / DECODE_TOKENS_S,
            )
            for row in csv.DictReader(file)
        ]
    return [(at_s - rows[0][0], takes_s) for at_s, takes_s in rows]


def busiest(for_s: float) -> list[Request]:
    """Give the requests of the stretch that has the most work, from its begin on."""
    requests = whole()
    begins = range(0, int(requests[-1][0] - for_s), 10)
    begin = max(begins, key=lambda begin: sum(takes_s for at_s, takes_s in requests if begin <= at_s < begin + for_s))
    return [(at_s - begin, takes_s) for at_s, takes_s in requests if begin <= at_s < begin + for_s]


def thinned(requests: Sequence[Request], num_slots: int, *, seed: int = 1) -> list[Request]:
    """Leave requests out by chance, until in 99 % of the time no more than ``num_slots`` of them would be worked on at once."""
    source = random.Random(seed)
    keys = [source.random() for _ in requests]
    least, most = 0.0, 1.0
    for _ in range(20):
        share = (least + most) / 2
        kept = [request for request, key in zip(requests, keys, strict=True) if key < share]
        least, most = (share, most) if _at_once(kept, 0.99) <= num_slots else (least, share)
    return [request for request, key in zip(requests, keys, strict=True) if key < least]


def _at_once(requests: Sequence[Request], quantile: float) -> int:
    """Give how many would be worked on at once, if each were when it comes, in that share of the time."""
    end_s = max((at_s for at_s, _ in requests), default=0.0)
    counts = [0] * (int(end_s / GLANCE_S) + 1)
    for at_s, takes_s in requests:
        for place in range(int(at_s / GLANCE_S), min(len(counts), int((at_s + takes_s) / GLANCE_S) + 1)):
            counts[place] += 1
    return sorted(counts)[int(quantile * (len(counts) - 1))]
