"""Samples of nodes, written so that a run of a week does not fill the disk."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from raykit.events import NodeSampled, UseSampled
from raykit.store.log import Log

KEPT_EVERY_S = 60.0

Told = tuple[str, NodeSampled | UseSampled]
"""A sample, and the run that it is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Last:
    """The newest sample of one run and node, and when one was written that stays."""

    number: int
    stays: bool
    kept_s: float


class Samples:
    """Writes each sample in the place of the one before it, of which one a minute stays. Called from one thread at a time."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._last: dict[tuple[str, str], _Last] = {}

    def write(self, told: Iterable[Told], now_s: float) -> None:
        """Write samples that were taken at ``now_s``, a run at a time."""
        self._last = {
            key: last for key, last in self._last.items() if now_s - last.kept_s <= 2 * KEPT_EVERY_S
        }  # the others are over
        in_order = sorted(told, key=lambda each: each[0])
        for run, group in itertools.groupby(in_order, key=lambda each: each[0]):
            self._write(run, [sample for _, sample in group], now_s)

    def _write(self, run: str, samples: list[NodeSampled | UseSampled], now_s: float) -> None:
        before = [self._last.get((run, sample.node)) for sample in samples]
        number = self._log.append(run, samples, instead_of=[last.number for last in before if last and not last.stays])
        for place, (sample, last) in enumerate(zip(samples, before, strict=True), 1 - len(samples)):
            kept_s = last.kept_s if last else -math.inf
            stays = now_s - kept_s >= KEPT_EVERY_S
            self._last[run, sample.node] = _Last(number=number + place, stays=stays, kept_s=now_s if stays else kept_s)
