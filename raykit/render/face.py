"""What every face of a run says, in its words and in its order: text, HTML and widget draw this and nothing else.

What is unknown is written as unknown, never as zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from raykit.decisions import StageChange
from raykit.events import ProcessUse
from raykit.render.past import Past, past_of
from raykit.views import AdviceView, RankView, RunView, SlotView, StageView

NUM_LINES = 8
MAX_LOST_SHOWN = 3
MAX_CARDS_SHOWN = 50
SECONDS_SHOWN = 100
DRILLS = {
    "training": ("kill-worker", "hang", "kill-node", "kill-host"),
    "pipeline": ("kill-worker", "kill-host"),
    "service": ("kill-worker", "kill-host"),
}
UNITS = ("B", "kB", "MB", "GB", "TB")

STAGE_HEADERS = ("stage", "is", "replicas", "rows in", "rows out", "rate", "busy", "starved", "blocked", "rows waiting")
OPERATOR_HEADERS = (
    *("operator", "replicas", "rows in", "rows out", "rate", "rows waiting"),
    *("CPUs", "GPUs", "backpressure", "tasks failed", "is"),
)
RANK_HEADERS = ("place", "worker", "state", "device", "node", "process")
USE_HEADERS = ("CPUs used", "memory")
GPU_HEADERS = ("GPUs used", "GPU memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A row of the table: a stage or a worker.

    ``spent`` fills its bar: shares of the time that were busy, starved and blocked; None where nobody counts them.
    """

    cells: tuple[str, ...]
    spent: tuple[float, float, float] | None
    faded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A failure and how it was mended, or a verdict."""

    title: str
    good: bool
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """A run as a person sees it."""

    name: str
    kind: str
    state: str
    figures: tuple[tuple[str, str], ...]
    ended: bool
    buttons: tuple[str, ...]
    drills: tuple[str, ...]
    workers: str
    advice: str
    labels: tuple[str, ...]
    progress: float | None
    progress_words: str
    headers: tuple[str, ...]
    lanes: tuple[Lane, ...]
    metrics: tuple[tuple[str, str], ...]
    cards: tuple[Card, ...]
    held: str
    outputs: str
    error: str
    lines: tuple[str, ...]
    num_lines_hidden: int
    past: Past


def face_of(view: RunView) -> Face:
    """Put a view into words."""
    shown = view.lines[-NUM_LINES:]
    used = _use_headers(view)
    if view.run_kind == "training":
        headers: tuple[str, ...] = (*RANK_HEADERS, *used)
        lanes = tuple(_rank_lane(rank, used) for rank in _in_order(view.ranks))
    elif view.run_kind == "observed":
        headers = OPERATOR_HEADERS
        lanes = tuple(map(_operator_lane, view.stages))
    else:
        headers = (*STAGE_HEADERS, *used)
        lanes = tuple(_stage_lane(stage, _slots_of(stage, view), used) for stage in view.stages)
    return Face(
        name=view.name,
        kind=view.run_kind,
        state=view.state,
        figures=tuple(_figures(view)),
        ended=view.ended,
        buttons=_buttons(view),
        drills=DRILLS.get(view.run_kind, ()),
        workers=_workers(view),
        advice="" if view.advice is None or view.ended else advice_words(view.advice),
        labels=tuple(_labels(view)),
        progress=view.progress,
        progress_words=_progress_words(view),
        headers=headers if lanes else (),
        lanes=lanes,
        metrics=tuple((name, f"{value:.4g}") for name, value in view.metrics),
        cards=tuple(_cards(view)),
        held=_held(view),
        outputs=", ".join(f"{output.name} ({size(output.num_bytes)})" for output in view.outputs),
        error=f"{view.error_where or 'the run'}: {view.error}" if view.error else "",
        lines=tuple(f"{line.source} | {line.text}" for line in (*shown, *view.open_lines[-NUM_LINES:])),
        num_lines_hidden=view.num_lines - len(shown),
        past=past_of(view),
    )


def number(value: float | None, unit: str = "") -> str:
    """Write a number with its unit, or say that it is unknown."""
    if value is None:
        return "unknown"
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}") + unit  # noqa: PLR2004  (three digits are enough)


def size(num_bytes: int) -> str:
    """Write a number of bytes in its decimal unit."""
    power = min((len(str(num_bytes)) - 1) // 3, len(UNITS) - 1)
    return f"{num_bytes / 1000**power:.3g} {UNITS[power]}"


def duration(seconds: float) -> str:
    """Write a duration in two units at most."""
    if seconds < SECONDS_SHOWN:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_rest = divmod(minutes, 60)
    return f"{hours} h {minutes_rest:02} min" if hours else f"{minutes} min {rest:02} s"


def _figures(view: RunView) -> Iterator[tuple[str, str]]:
    """Give the header's figures. While a run goes on each keeps its place, known or not."""
    if view.elapsed_s is not None:
        yield "elapsed", duration(view.elapsed_s)
    if view.run_kind in ("training", "pipeline") and not view.ended:
        yield "left", "unknown" if view.left_s is None else _about(view.left_s)
    if view.run_kind == "training":
        yield "rate", number(_rate(view, view.rate.per_s, view.rows), " rows/s")
        yield "world", _ranks(view.world_size) if view.world_size else "none yet"
    if view.run_kind == "pipeline":
        last = view.stages[-1] if view.stages else None
        yield "rate", number(_rate(view, last.rate.per_s, last.rows_out) if last else None, " rows/s")
        yield "replicas", _count(_sum(stage.num_replicas for stage in view.stages))
        yield "put aside", f"{sum(stage.num_bad for stage in view.stages):,} rows"
    if view.service is not None:
        yield "requests", number(view.service.rate_s, "/s")
        yield "half within", number(view.service.p50_s, " s")
        yield "99 % within", f"{number(view.service.p99_s, ' s')}, {view.service.slo_s:g} s wanted"
        there = sum(stage.num_replicas or 0 for stage in view.stages)
        num_warm = sum(not replica.gone for stage in view.stages for replica in stage.replicas) - there
        at_work = f"{there} of {view.service.wanted}" if view.service.wanted != there else f"{there}"
        yield "replicas", f"{at_work}, {num_warm} warm" if num_warm > 0 else at_work
        yield "failed", f"{view.service.num_failed:,} requests"


def _rate(view: RunView, per_s: float | None, rows: int) -> float | None:
    """Give the rate now, and of a run that is over its mean; one that was taken up again has rows of before."""
    if not view.ended or view.resumed or view.started_at_unix_s is None or view.ended_at_unix_s is None:
        return per_s
    return rows / max(view.ended_at_unix_s - view.started_at_unix_s, 1e-3)


def _about(seconds: float) -> str:
    return f"about {seconds:.0f} s" if seconds < SECONDS_SHOWN else f"about {duration(seconds)}"


def _buttons(view: RunView) -> tuple[str, ...]:
    """Name what a person can ask of this run now; what a cell executes itself is ended by the kernel's interrupt."""
    if view.ended or view.run_kind == "observed":
        return ()
    works = view.state in ("running", "recovering", "resizing")
    applies = view.advice is not None and bool(view.advice.changes) and not view.advice.applied
    return (
        *(("apply",) if applies else ()),
        *(("resize",) if works and view.run_kind == "training" else ()),
        *(("drill",) if works and view.run_kind in DRILLS else ()),
        "stop",
    )


def _workers(view: RunView) -> str:
    """Write the ranks that were asked last as ``%ray resize`` reads them."""
    least, most = view.resized_to or (view.world_size, view.world_size)
    return f"{least}" if least == most else f"{least}:{most}"


def _ranks(count: int) -> str:
    return "1 rank" if count == 1 else f"{count:,} ranks"


def _sum(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(filter(None, known))


def _labels(view: RunView) -> Sequence[str]:
    said = [f"waits: {view.reason}"] if view.reason else []
    if view.service is not None and not view.ended:
        said.append(f"takes requests {f'at {view.service.url}' if view.service.url else 'through the door of its cluster'}")
        if not view.service.has_answered(view.service.asked):
            said.append(f"version {view.service.asked} is being brought in")
    if view.priority != "normal":
        said.append(f"{view.priority} priority")
    if view.loan is not None:
        said.append(f"{view.loan.borrower} comes first: {_ranks(view.loan.max_workers)} at most while it waits")
    if view.simulated_gpus:
        said.append("GPUs of this cluster are simulated")
    if view.resumed:
        said.append("taken up again")
    return said


def advice_words(advice: AdviceView) -> str:
    """Put an advice into a sentence."""
    change = "; ".join(map(_change_words, advice.changes))
    gain = f"{advice.rows_s:.3g} source rows/s now, {advice.expected_rows_s:.3g} expected"
    if not change:
        return f"advice: {advice.reason}" + (f": {gain}" if advice.expected_rows_s > advice.rows_s else "")
    done = " (applied)" if advice.applied else ""
    return f"advice{done}: {change}, since {advice.reason}: {gain}"


def _change_words(change: StageChange) -> str:
    """Put a change into the words of ``rk.stage``."""
    said = [] if change.max_replicas is None else [f"replicas of {change.stage} {change.min_replicas}:{change.max_replicas}"]
    named = {
        "batch": change.batch_size,
        "concurrency": change.concurrency,
        "threads": change.num_threads,
        "cpus": change.num_cpus,
        "gpus": change.num_gpus,
        "memory": change.memory_bytes,
    }
    said += [f"{name} of {change.stage} {value:.10g}" for name, value in named.items() if value is not None]
    return ", ".join(said)


def _progress_words(view: RunView) -> str:
    if view.run_kind == "training":
        whole = f" of {view.total_steps:,}" if view.total_steps else ""
        if view.epoch is None:
            return f"step {view.step:,}{whole}"
        return f"step {view.step:,}{whole}, epoch {view.epoch + 1}"
    if view.run_kind == "pipeline":
        whole = "an unknown number of" if view.source_rows is None else f"{view.source_rows:,}"
        taken = view.stages[0].rows_in if view.stages else 0
        return f"{_count(taken)} of {whole} source rows taken"
    if view.service is not None:
        return f"{view.stages[0].rows_out:,} requests answered, {view.service.num_open:,} open" if view.stages else ""
    if view.run_kind == "observed" and view.stages:
        return f"{view.stages[-1].rows_out:,} rows came out"
    return ""


def _stage_lane(stage: StageView, slots: Sequence[SlotView], used: Sequence[str]) -> Lane:
    shares = ["unknown"] * 3 if stage.shares is None else [f"{share:.0%}" for share in stage.shares]
    word = stage.word or "unknown"
    num_cpus, num_gpus = sum(slot.num_cpus for slot in slots), sum(slot.num_gpus for slot in slots)
    cells = (
        *(stage.name, f"{word}, {stage.num_bad:,} rows aside" if stage.num_bad else word),
        *(_count(stage.num_replicas), _count(stage.rows_in), f"{stage.rows_out:,}", number(stage.rate.per_s, "/s")),
        *(*shares, number(stage.rows_waiting), *_use_cells(stage.use, num_cpus, num_gpus)[: len(used)]),
    )
    return Lane(cells=cells, spent=stage.shares, faded=False)


def _slots_of(stage: StageView, view: RunView) -> list[SlotView]:
    """Give what a stage holds: its replicas' slots, all of a service's."""
    there = {replica.replica for replica in stage.replicas if not replica.gone}
    return [slot for slot in view.held if view.run_kind == "service" or slot.holder in there]


def _operator_lane(stage: StageView) -> Lane:
    """An operator of plain Ray Data code: it tells no shares of time, but what it holds and what holds it."""
    cells = (
        *(stage.name, _count(stage.num_replicas), _count(stage.rows_in), f"{stage.rows_out:,}", number(stage.rate.per_s, "/s")),
        *(_count(stage.rows_waiting), number(stage.num_cpus), number(stage.num_gpus)),
        *("unknown" if stage.held_by is None else stage.held_by or "none", _count(stage.num_failed_tasks), stage.word or "unknown"),
    )
    return Lane(cells=cells, spent=None, faded=False)


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _rank_lane(rank: RankView, used: Sequence[str]) -> Lane:
    place = "lost" if rank.lost else "spare" if rank.rank is None else f"rank {rank.rank}"
    state = "lost" if rank.lost else rank.busy_with or ("ready" if rank.ready else "starting")
    num_cpus, num_gpus = (None, None) if rank.rank is None else (rank.num_cpus, rank.num_gpus)
    use = None if rank.lost else rank.use or ProcessUse(worker=rank.worker)
    cells = (
        *(place, rank.worker, state, rank.device, rank.node, str(rank.pid)),
        *_use_cells(use, num_cpus, num_gpus)[: len(used)],
    )
    return Lane(cells=cells, spent=None, faded=rank.lost)


def _use_cells(use: ProcessUse | None, num_cpus: float | None, num_gpus: float | None) -> tuple[str, ...]:
    """Write what is used beside the slots that are held, where some are. Nobody who could use something is ``none``."""
    if use is None:
        return ("none",) * (len(USE_HEADERS) + len(GPU_HEADERS))
    return (
        _of(number(use.num_cpus), num_cpus),
        "unknown" if use.memory_bytes is None else size(use.memory_bytes),
        _of(number(use.num_gpus), num_gpus) + (f" ({use.gpu_fault})" if use.gpu_fault else ""),
        "unknown" if use.gpu_memory_bytes is None else size(use.gpu_memory_bytes),
    )


def _of(used: str, held: float | None) -> str:
    return used if held is None else f"{used} of {held:g}"


def _use_headers(view: RunView) -> tuple[str, ...]:
    """Name what is used: of GPUs where some are held or used, and nothing of a run whose replicas are gone with its end."""
    uses = [*(stage.use for stage in view.stages), *(rank.use for rank in view.ranks)]
    if view.ended and view.run_kind != "training" and not any(uses):
        return ()
    concerns_gpus = any(slot.num_gpus for slot in view.slots) or any(use.gpu_memory_bytes for use in uses if use)
    return (*USE_HEADERS, *(GPU_HEADERS if concerns_gpus else ()))


def _in_order(ranks: Sequence[RankView]) -> list[RankView]:
    living = sorted((each for each in ranks if not each.lost), key=lambda each: (each.rank is None, each.rank or 0))
    return [*living, *[each for each in ranks if each.lost][-MAX_LOST_SHOWN:]]


def _cards(view: RunView) -> Iterator[Card]:
    """Give the newest cards, after one for those before them."""
    earlier, newest = view.cards[:-MAX_CARDS_SHOWN], view.cards[-MAX_CARDS_SHOWN:]
    if earlier:
        facts = (("all of them", f"rk.watch({view.name!r}).view.cards"),)
        yield Card(title=f"{len(earlier):,} earlier cards", good=all(card.good for card in earlier), facts=facts)
    yield from (Card(title=card.title, good=card.good, facts=card.facts) for card in newest)


def _held(view: RunView) -> str:
    """Slots are logical: held, not used."""
    held = view.held
    if not held:
        return ""
    gpus = sum(slot.num_gpus for slot in held)
    kind = "simulated " if view.simulated_gpus else ""
    return f"holds {sum(slot.num_cpus for slot in held):g} CPU slots" + (f" and {gpus:g} {kind}GPU slots" if gpus else "")
