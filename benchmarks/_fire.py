"""A pipeline under fire: its stages, the kills that are drawn for a run, and the verdict on every row by its value.

``spread`` makes up to three rows of one and drops each eleventh; ``square`` takes batches; ``settle`` refuses some rows,
which go to quarantine. Rows carry 2 kB, so that the blocks between stages lie in the nodes' object stores and are lost
with them. tests/ray/test_exactly_once.py and exactly_once.py beside this share it.
"""

from __future__ import annotations

import os
import random
import signal
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

import raykit as rk
from raykit.cluster import record
from raykit.errors import RaykitError

NODES = 3
BLOB = 2000
SPREAD, EACH_DROPPED, EACH_REFUSED = 3, 11, 50
KINDS = {"replica": 6, "host": 2, "node": 2}
KILLS = (3, 6)
PAUSES_S = (0.0, 0.3, 1.0, 2.0)
LIMIT_S = 150.0
LOOK_S = 0.05


@rk.stage(cpus=0.25, replicas=(1, 2), on_error="quarantine")
def spread(row):
    """Make several rows of one, none of some."""
    time.sleep(0.0005)
    number = row["item"]
    if number % EACH_DROPPED == 0:
        yield None
        return
    for ordinal in range(1 + number % SPREAD):
        yield {"number": number, "ordinal": ordinal, "blob": bytes([number % 256]) * BLOB}


@rk.stage(cpus=0.25, batch=32, replicas=2, on_error="quarantine")
class Square:
    """Take batches, the last of a span a short one."""

    def __call__(self, batch):
        time.sleep(0.005)
        return {**batch, "square": batch["number"] ** 2}


@rk.stage(cpus=0.25, replicas=(1, 3), on_error="quarantine")
def settle(row):
    """Refuse some rows, and give a sum of the others' bytes."""
    time.sleep(0.0003)
    if is_refused(row["number"], row["ordinal"]):
        raise ValueError(f"refused: {row['number']}")
    return {**{name: row[name] for name in ("number", "ordinal", "square")}, "crc": zlib.crc32(row["blob"])}


STAGES = [spread, Square, settle]


def is_refused(number: int, ordinal: int) -> bool:
    return (7 * number + ordinal) % EACH_REFUSED == 0


def ordinals(number: int) -> range:
    """Say which rows are made of the source's row of that number."""
    return range(0 if number % EACH_DROPPED == 0 else 1 + number % SPREAD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a run and of its rows.

    ``accused`` are rows in quarantine because their replica was killed twice at the very row: told, and not lost.
    """

    state: str
    took_s: float
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    accused: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    hosts: int = 0
    spans_again: int = 0
    error: str = ""

    @property
    def holds(self) -> bool:
        return self.state == "done" and not (self.lost or self.doubled or self.wrong)


def stand(name: str) -> None:
    """Have the cluster up with all of its nodes; one that has lost some is made anew."""
    with suppress(RaykitError):
        if sum(node.alive for node in rk.status(name).nodes) == NODES:
            rk.use(name)
            return
    rk.down(name)
    rk.up(name, num_nodes=NODES, num_cpus=1, object_store_bytes=100_000_000)


def under_fire(name: str, num_rows: int, seed: str) -> Verdict:
    """Run the pipeline in the current cluster while its parts are killed, and judge it when it is over."""
    chance = random.Random(seed)
    begun_s = time.monotonic()
    run = rk.Pipeline(STAGES).run(range(num_rows), name=name)
    struck: Counter[str] = Counter()
    for pause_s, kind in drawn(chance):
        if not _goes_on(run, begun_s, for_s=pause_s):
            break
        struck[kind] += strike(run, kind, chance)
    while _goes_on(run, begun_s, for_s=1.0):
        pass
    view = run.view
    about: dict[str, Any] = {"took_s": round(time.monotonic() - begun_s, 1), "kills": dict(struck), "hosts": view.host_attempts}
    about["spans_again"] = sum("are made again" in card.title for card in view.cards)
    if view.state != "done":
        return Verdict(state=view.state if view.ended else "hung", error=view.error or repr(view), **about)
    return Verdict(state="done", **judge(run, num_rows), **about)


def drawn(chance: random.Random) -> Iterator[tuple[float, str]]:
    """Draw a run's kills: how long after the one before (the first comes when a replica is there), and of what."""
    for _ in range(chance.randint(*KILLS)):
        (kind,) = chance.choices(list(KINDS), weights=list(KINDS.values()))
        yield chance.choice(PAUSES_S) * (0.5 + chance.random()), kind


def strike(run: rk.Run, kind: str, chance: random.Random) -> bool:
    """Kill a replica, the host, or a node that is not the head's; False where there is none."""
    if kind == "host":
        with suppress(RaykitError):  # it is over just now
            run.drill("kill-host")
            return True
        return False
    if kind == "replica":
        living = [[each.pid] for stage in run.refresh().stages for each in stage.replicas if not each.gone]
        victims = chance.choice(living) if living else []
    else:
        victims = further_node(run.cluster.name, chance)
    killed = False
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed = True
    return killed


def further_node(cluster: str, chance: random.Random) -> list[int]:
    """Give the processes of a node that is not the head's: its raylet and all that it started."""
    raylets = []
    for process in record.processes(cluster):
        with suppress(psutil.Error):
            if process.name() == "raylet" and "--head" not in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                raylets.append(process)
    if not raylets:
        return []
    raylet = chance.choice(sorted(raylets, key=lambda each: each.pid))
    return [raylet.pid, *(each.pid for each in raylet.children(recursive=True))]


def judge(run: rk.Run, num_rows: int) -> dict[str, int]:
    """Compare what is in the sink and in quarantine with what the source's rows must become."""
    sink, quarantine = run.result.to_pandas(), run.quarantine.to_pandas()
    expected = Counter((number, ordinal) for number in range(num_rows) for ordinal in ordinals(number))
    found = Counter(zip(sink["number"], sink["ordinal"], strict=True))
    wrong = sum(
        square != number**2 or crc != zlib.crc32(bytes([number % 256]) * BLOB) or is_refused(number, ordinal)
        for number, ordinal, square, crc in zip(sink["number"], sink["ordinal"], sink["square"], sink["crc"], strict=True)
    )
    accused = 0
    for row, error in zip(quarantine["row"], quarantine["error"], strict=True):
        number = row.get("item", row.get("number"))
        aside = [row["ordinal"]] if "ordinal" in row else ordinals(number)
        found.update((number, ordinal) for ordinal in aside)
        is_right = error.startswith("ValueError: refused") and is_refused(number, row.get("ordinal", -1))
        accused += "died twice" in error
        wrong += not is_right and "died twice" not in error
    return {"lost": (expected - found).total(), "doubled": (found - expected).total(), "wrong": int(wrong), "accused": accused}


def _goes_on(run: rk.Run, begun_s: float, *, for_s: float) -> bool:
    """Look at the run for a while, from its first replica on; False when it is over or has taken too long."""
    until_s = 0.0
    while time.monotonic() - begun_s < LIMIT_S:
        view = run.refresh()
        if view.ended:
            return False
        if not until_s and any(stage.replicas for stage in view.stages):
            until_s = time.monotonic() + for_s
        if until_s and time.monotonic() >= until_s:
            return True
        time.sleep(LOOK_S)
    return False
