"""A view of every state, made of events as a run would tell them: for the gallery, and for the tests of the faces."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from raykit import events as ev
from raykit.decisions import StageChange
from raykit.views.cluster import ClusterView, NodeView, WaitingView
from raykit.views.fold import fold_all
from raykit.views.values import RunView

BEGUN_UNIX_S = 1_800_000_000.0

Told = Iterable[tuple[float, ev.Event]]
"""Events, each with the second of the run in which it happened."""


def examples() -> dict[str, RunView]:
    """Give a view in each state, by the state's name."""
    return {
        "waiting": view_of("digits", _WAITED),
        "starting": view_of("digits", [(0, _TRAINING), *_workers(0.4)]),
        "running": pipeline(),
        "recovering": view_of("digits", [*training(40), (40.2, _LOST)]),
        "resizing": view_of("digits", [*training(30), (30.4, ev.Resized(min_workers=4, max_workers=6)), *_steps(31, 34)]),
        "stopping": view_of("digits", [*training(20), (20.3, ev.StopAsked())]),
        "done": view_of("digits", [*_recovered(), *_steps(41, 93), (93.2, _MODEL), (93.3, ev.RunEnded(state="done"))]),
        "failed": view_of("labels", [*_stages(("decode", "classify"), 12), *_RAISED]),
        "stopped": view_of("digits", [*training(20), (20.3, ev.StopAsked()), (20.6, ev.RunEnded(state="stopped"))]),
        "lost": view_of("digits", [*training(20), (26, ev.RunEnded(state="lost", error="its cluster went down"))]),
    }


def pipeline(num_stages: int = 4, seconds: int = 60) -> RunView:
    """Give a pipeline that runs, with an advice and rows put aside."""
    names = ("read", "decode", "classify", "write", *(f"stage {place}" for place in range(5, num_stages + 1)))[:num_stages]
    change = StageChange(stage="classify", min_replicas=1, max_replicas=4)
    advised = ev.Advised(changes=(change,), rows_s=98, expected_rows_s=214, reason="it is the bottleneck and CPU slots are free")
    aside = ev.RowsQuarantined(stage="decode", num_rows=3, error="OSError: broken data stream when reading image file")
    lost = ev.ReplicaLost(stage="decode", replica="decode-2", cause="killed by signal 9", num_rows_again=64)
    told: list[tuple[float, ev.Event]] = [(0.2, ev.SourceCounted(num_rows=12_000)), (14.5, lost), (21, aside), (30, advised)]
    printed = ev.LinesPrinted(source="decode-1", lines=("Corrupt JPEG data: 2 extraneous bytes",) * 4)
    return view_of("labels", [*_stages(names, seconds), *told, (22, printed)])


def service(seconds: int = 60) -> RunView:
    """Give a service whose requests come in a wave, with a replica that was killed on purpose and two updates."""
    lost = ev.ReplicaLost(stage="greet", replica="greet-1.1", cause="killed by signal 9", num_rows_again=7)
    verdict = "another was there after 2.2 s; meanwhile 0 requests failed"
    told: list[tuple[float, ev.Event]] = [
        (0, ev.RunAccepted(run_kind="service", folder="", stages=("greet",), priority="high")),
        (0.3, ev.ServiceOpened(url="http://127.0.0.1:8123/", slo_s=0.2)),
        (1.9, ev.RunStarted()),
        (31.2, ev.DrillStarted(action="kill-worker", target="greet-1.1", pid=5001)),
        (31.3, lost),
        (33.4, ev.DrillEnded(action="kill-worker", passed=True, verdict=verdict)),
        (44.0, ev.UpdateAsked(version=2)),
        (45.5, ev.UpdateRefused(version=2, where="greet", error="NameError: name 'greeting' is not defined", traceback_text="")),
        (52.0, ev.UpdateAsked(version=3)),
        (56.0, ev.ServiceUpdated(version=3, slo_s=0.2, priority="high")),
    ]
    for at_s, slot, number in ((1.0, 1, 1), (14.0, 2, 2), (18.0, 3, 3), (32.6, 1, 4)):
        name = f"greet-{slot}.{number}"
        told.append((at_s + 0.8, ev.ReplicaStarted(stage="greet", replica=name, pid=5000 + number, node="node-1", start_s=0.7)))
        if slot == number:
            told.append((at_s - 0.5, ev.ReplicasWanted(count=number)))
            told.append((at_s, ev.SlotsHeld(holder=f"slot {slot}", num_cpus=1, num_gpus=0)))
    return view_of("greeter", [*told, *_requests(seconds)])


def lending() -> RunView:
    """Give a training of low priority that has given a slot to a service."""
    low = ev.RunAccepted(run_kind="training", folder="", simulated_gpus=True, priority="low")
    lent: list[tuple[float, ev.Event]] = [
        (25.0, ev.SlotsLent(borrower="greeter", max_workers=2)),
        (25.6, ev.SlotsReleased(holder="slot 3")),
    ]
    smaller = (25.5, ev.WorldFormed(generation=2, workers=("w1", "w2"), step=45))
    return view_of(
        "digits", [(0, low), *list(training(25))[1:], *lent, smaller, (25.6, ev.WorkerEnded(worker="w3")), *_steps(26, 34)]
    )


def training(seconds: int) -> Iterator[tuple[float, ev.Event]]:
    """Give what a training of three ranks and a spare tells in its first seconds."""
    yield 0, _TRAINING
    yield from _workers(0.4)
    for worker in ("w1", "w2", "w3", "w4"):
        yield 2.0, ev.WorkerReady(worker=worker)
    yield 2.1, ev.RunStarted()
    yield 2.2, ev.WorldFormed(generation=1, workers=("w1", "w2", "w3"), step=0)
    yield 2.3, ev.LinesPrinted(source="w1", lines=("60,000 pictures",))
    yield 3.0, ev.UseSampled(node="node-1", uses=tuple(map(_used, range(1, 5))))
    yield from _steps(3, seconds)


def view_of(name: str, told: Told) -> RunView:
    """Fold events into a view, in the order of their times."""
    return fold_all(RunView(name=name), _records(name, told))


def training_records(count: int) -> list[ev.Record]:
    """Give the first records of a training of three ranks."""
    return _records("digits", training(count))[:count]


def pipeline_records(count: int, num_stages: int = 20) -> list[ev.Record]:
    """Give the first records of a pipeline, each stage with two replicas."""
    names = tuple(f"stage {place}" for place in range(1, num_stages + 1))
    return _records("labels", _stages(names, count // num_stages))[:count]


def _records(name: str, told: Told) -> list[ev.Record]:
    in_order = sorted(told, key=lambda each: each[0])
    return [
        ev.Record(number=number, at_unix_s=BEGUN_UNIX_S + at_s, run=name, event=event)
        for number, (at_s, event) in enumerate(in_order, 1)
    ]


_TRAINING = ev.RunAccepted(run_kind="training", folder="", simulated_gpus=True)
_LOST = ev.WorkerLost(worker="w3", rank=2, cause="killed by signal 9")
_MODEL = ev.OutputReady(name="model", file="model.pkl", num_bytes=1_830_000)
_WAITED: Told = ((0, _TRAINING), (0.1, ev.RunWaited(reason="4 GPU slots are asked, 2 are free")))
_RAISED: Told = (
    (12.2, ev.UserFailed(where="classify", error="ValueError: cannot reshape array of size 150528", traceback_text="")),
    (12.3, ev.RunEnded(state="failed", error="ValueError: cannot reshape array of size 150528")),
)


def _workers(at_s: float) -> Iterator[tuple[float, ev.Event]]:
    for number in range(1, 5):
        yield at_s, ev.SlotsHeld(holder=f"slot {number}", num_cpus=1, num_gpus=1 if number < 4 else 0)  # noqa: PLR2004  (a spare)
        started = ev.WorkerStarted(worker=f"w{number}", pid=4100 + number, node="node-1", device="cpu", num_cpus=1, num_gpus=1)
        yield at_s + number / 10, started


def _used(number: int) -> ev.ProcessUse:
    """Give what a worker uses; of simulated GPUs nothing is known."""
    return ev.ProcessUse(worker=f"w{number}", num_cpus=0.97 - 0.02 * number, memory_bytes=612_000_000 + 3_400_000 * number)


def _steps(begin_s: int, end_s: int) -> Iterator[tuple[float, ev.Event]]:
    """Give two committed steps a second, from the third on."""
    for step in range(begin_s * 2 - 5, end_s * 2 - 5):
        metrics = {
            "loss": 2.3 * math.exp(-step / 40) + 0.08 * math.sin(step / 3) ** 2 + 0.05,
            "accuracy": 1 - math.exp(-step / 30),
        }
        event = ev.StepCommitted(step=step, epoch=step // 45, num_rows=step * 256, total_steps=180, metrics=metrics, step_s=0.5)
        yield (step + 5) / 2, event


def _requests(seconds: int) -> Iterator[tuple[float, ev.Event]]:
    """Give what is told of requests that come in a wave, which three replicas answer."""
    done = 0
    for second in range(2, seconds + 1):
        rate_s = 120 * math.sin(second / 25) ** 2 + 12
        done += round(rate_s)
        num_waiting, num_open = int(rate_s / 40), int(rate_s / 20)
        p99_s = 0.26 if second in {13, 17, 32} else 0.06
        yield (
            second,
            ev.RequestsSampled(
                rate_s=rate_s,
                p50_s=0.04,
                p95_s=0.05,
                p99_s=p99_s,
                num_waiting=num_waiting,
                num_open=num_open,
                num_done=done,
                num_failed=0,
                idle_s=None,
            ),
        )
        yield (
            second,
            ev.StageSampled(
                stage="greet",
                num_replicas=1 + (second >= 15) + (second >= 19),  # noqa: PLR2004  (when they started)
                rows_waiting=num_waiting,
                rows_in=done + num_open,
                rows_out=done,
                word="balanced",
            ),
        )
        yield (
            second,
            ev.ReplicaSampled(
                stage="greet",
                replica="greet-2.2",
                rows_in=done // 2,
                rows_out=done // 2,
                busy_s=0.6 * second,
                starved_s=0.4 * second,
                blocked_s=0.0,
            ),
        )


def _recovered() -> Iterator[tuple[float, ev.Event]]:
    yield from training(40)
    yield 40.2, _LOST
    yield 40.4, ev.WorldFormed(generation=2, workers=("w1", "w2", "w4"), step=74)
    recovered = ev.Recovered(
        what="rank 2 was lost",
        cause="killed by signal 9",
        detected_after_s=0.04,
        recovered_after_s=0.31,
        world_before=3,
        world_after=3,
        step_before=74,
        steps_lost=0,
        steps_redone=1,
        remedy="a warm spare took its place",
    )
    yield 41, recovered


def _stages(names: tuple[str, ...], seconds: int) -> Iterator[tuple[float, ev.Event]]:
    """Give what a pipeline tells: its third stage is the bottleneck, those before it are held up, those after it wait."""
    yield 0, ev.RunAccepted(run_kind="pipeline", folder="", stages=names)
    yield 1.2, ev.RunStarted()
    for name in names:
        for number in (1, 2):
            yield 1.0, ev.SlotsHeld(holder=f"{name}-{number}", num_cpus=1, num_gpus=0)
            yield 1.1, ev.ReplicaStarted(stage=name, replica=f"{name}-{number}", pid=5000, node="node-1", start_s=0.4)
    used = (ev.ProcessUse(worker=f"{name}-{n}", num_cpus=0.86, memory_bytes=294_000_000) for name in names for n in (1, 2))
    yield 2.0, ev.UseSampled(node="node-1", uses=tuple(used))
    for second in range(2, seconds + 1):
        for place, name in enumerate(names):
            rows = int(98 * (second - 1) + 40 * math.sin(second / 4 + place)) - 12 * place
            busy, starved, blocked = ((0.35, 0.05, 0.6), (0.62, 0.08, 0.3), (0.97, 0.01, 0.02), (0.3, 0.7, 0.0))[min(place, 3)]
            yield (
                second,
                ev.StageSampled(
                    stage=name,
                    num_replicas=2,
                    rows_waiting=(512, 480, 1024, 8)[min(place, 3)],
                    rows_in=rows,
                    rows_out=rows,
                    num_bad=3 if name == "decode" and second > 20 else 0,  # noqa: PLR2004  (when they were put aside)
                    word=("buffered", "balanced", "bottleneck", "starved")[min(place, 3)],
                ),
            )
            for number in (1, 2):
                yield (
                    second,
                    ev.ReplicaSampled(
                        stage=name,
                        replica=f"{name}-{number}",
                        rows_in=rows // 2,
                        rows_out=rows // 2,
                        busy_s=second * busy,
                        starved_s=second * starved,
                        blocked_s=second * blocked,
                    ),
                )


def cluster(num_nodes: int = 20, gpus_each: int = 8, second: int = 0) -> ClusterView:
    """Give a simulated cluster in racks of eight nodes: three runs at work, GPUs without use, one broken, a node gone.

    Its last node has no GPUs; ``second`` moves the use of the others.
    """
    nodes = tuple(_node(number, 0 if number == num_nodes - 1 else gpus_each, second) for number in range(num_nodes))
    num_gpus = gpus_each * (num_nodes - 1)
    return ClusterView(
        name="lab",
        simulated_gpus=True,
        nodes=nodes,
        num_cpus=64 * num_nodes,
        num_cpus_free=21 * num_nodes,
        num_gpus=num_gpus,
        num_gpus_free=num_gpus // 5,
        object_store_bytes=num_nodes * 64_000_000_000,
        waiting=(WaitingView(run="pretrain", run_kind="training", reason="32 ranks wait for GPUs: 24 are free"),),
    )


def _node(number: int, num_gpus: int, second: int) -> NodeView:
    node, alive = f"n{number:03}", number != 1
    use = ev.NodeSampled(
        node=node,
        num_cpus=8 + 40 * _wave(number + second / 7),
        memory_used_bytes=int(2e11 + 2e11 * _wave(number / 3 + second / 11)),
        memory_bytes=512_000_000_000,
        gpus=tuple(_gpu_use(number, place, second) for place in range(num_gpus)),
    )
    labels = {"raykit.io/rack": f"rack {number // 8}"}
    return NodeView(node=node, alive=alive, num_cpus=64, num_gpus=num_gpus, labels=labels, use=use if alive else None)


def _gpu_use(number: int, place: int, second: int) -> ev.GpuUse:
    owner = (number * 5 + place // 4) % 5
    if (number, place) == (2, 3):
        return ev.GpuUse(gpu=str(place), name="H100", fault="GPU is lost")
    run = ("digits", "labels", "serve")[owner] if owner < 3 else ""  # noqa: PLR2004  (two of five are idle)
    at_work = {"digits": 0.85 + 0.15 * _wave(second + place), "labels": _wave(number + second / 5 + place)}.get(run, 0.0)
    return ev.GpuUse(
        gpu=str(place),
        name="H100",
        utilization=at_work,
        memory_used_bytes=60_000_000_000 if run else 0,
        memory_bytes=80_000_000_000,
        power_w=90 + 600 * at_work,
        temperature_c=35 + 40 * at_work,
        throttled_by=(),
        users=(f"{run} rank {place}",) if run else (),
    )


def _wave(phase: float) -> float:
    return 0.5 + 0.5 * math.sin(phase)
