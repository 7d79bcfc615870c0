"""GPUs that a service and a training share, beside a static split of them, and Ray Serve with Ray Train.

Five GPUs, all emulated: a request sleeps as long as it would take one, a step of training as long as its rows take its ranks,
in 80 micro-batches of 50 ms a step. Requests come as in the five busiest minutes of the Azure code-completion trace, thinned until
serving needs four GPUs at its 99th percentile; training has one in any case. The fluid bound is what no request uses: a
training that had each GPU for all the time in which the service did nothing with it would come to it.

What is measured: the steps that training committed, and how long requests took, on each side; of raykit also how long the
service waited for a GPU from the moment it wanted one, less the micro-batch that training had to end before; and how long it
takes to kill an actor and make another one at work, which is how a GPU changes hands without raykit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _measure import Figure, end_in_order, report
from _requests_trace import Request, busiest, thinned

import raykit as rk
from raykit.events import ReplicasWanted, RunEnded, SlotsHeld, SlotsReleased, WorldFormed
from raykit.store.log import Log

NAME = "sharing"
NUM_GPUS, NUM_SERVING = 5, 4
STEP_GPU_S, ROWS, MICRO_ROWS = 4.0, 240, 3
MICRO_S = STEP_GPU_S * MICRO_ROWS / ROWS
SECONDS, QUICK_S, SETTLE_S = 300.0, 20.0, 5.0
PEER_TRAINS_S = 120.0  # so long Ray Train is waited for: with Ray Serve beside it, it may never come to its first step
SLO_S = 0.3
RECLAIMS = 10
RAY_PORT = 18124


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One side: how long requests took, how many failed, and the GPU seconds of the steps that were committed."""

    took_s: list[float]
    num_failed: int
    trained_gpu_s: float

    @property
    def p99_s(self) -> float:
        return statistics.quantiles(self.took_s, n=100)[98]


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="20 s a side: only whether it runs")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="so long a side", metavar="S")
    parser.add_argument("--without-peers", action="store_true", help="no static split, and no Ray Serve with Ray Train")
    parser.add_argument(
        "--ask", action="store_true", help="be the clients: of the address, by the token, of the requests in the input"
    )
    given = parser.parse_args()
    if given.ask:
        print(json.dumps(asyncio.run(ask(*json.loads(sys.stdin.read())))))
        return
    for_s = QUICK_S if given.quick else given.seconds
    requests = thinned(busiest(for_s), NUM_SERVING)
    print(f"{len(requests)} requests in {for_s:g} s, {sum(takes_s for _, takes_s in requests):.0f} GPU seconds", flush=True)
    bound = 1 - sum(takes_s for _, takes_s in requests) / (NUM_GPUS * for_s)
    with _cluster():
        alone = side("alone", requests, for_s, replicas=(NUM_SERVING, NUM_SERVING), workers=None)
        shared = side("shared", requests, for_s, replicas=(0, NUM_SERVING), workers=(1, NUM_GPUS))
        waits = hand_overs()
        print("hand-overs, s:", [round(took_s, 3) for took_s in waits], flush=True)
        split = None if given.without_peers else side("static split", requests, for_s, replicas=(2, 2), workers=(3, 3))
        recreated = kill_and_recreate()
    peer = None if given.without_peers else _on_ray(requests, for_s)
    for name, trial in (("alone", alone), ("shared", shared), ("static split", split), ("Ray Serve and Ray Train", peer)):
        if trial is not None:
            print(f"{name}: p99 {trial.p99_s:.3f} s, {trial.num_failed} failed, {trial.trained_gpu_s:.0f} GPU seconds trained")
    figures = {
        "harvest of the fluid bound, raykit": Figure(value=shared.trained_gpu_s / (bound * NUM_GPUS * for_s), goal=">= 0.90"),
        "p99, shared / serving alone": Figure(value=shared.p99_s / alone.p99_s, goal="<= 1.10"),
        "requests that failed, raykit": Figure(value=shared.num_failed, goal="== 0"),
        "hand-over less a micro-batch, p95, s": Figure(value=_p95(waits) - MICRO_S, goal="<= 0.05"),
        "hand-over, median, s": Figure(value=statistics.median(waits)),
        "hand-overs": Figure(value=len(waits)),
    }
    for name, trial in (("static split", split), ("Ray Serve and Ray Train", peer)):
        if trial is not None:
            figures[f"harvest of the fluid bound, {name}"] = Figure(value=trial.trained_gpu_s / (bound * NUM_GPUS * for_s))
            figures[f"p99, {name} / serving alone"] = Figure(value=trial.p99_s / alone.p99_s)
    ratio = statistics.median(recreated) / statistics.median(waits)
    figures["kill and recreate / hand-over, medians"] = Figure(value=ratio, goal=">= 20")
    report("sharing", {} if given.quick else figures)


def side(
    name: str, requests: Sequence[Request], for_s: float, *, replicas: tuple[int, int], workers: tuple[int, int] | None
) -> Trial:
    """Serve the requests, with a training beside them."""
    service = rk.serve(work, name="service", replicas=replicas, slo_s=SLO_S, warm=NUM_SERVING).wait()
    service({"seconds": 0.3})
    training = rk.train(soak, workers=workers, gpus=1, spares=0, name="training", priority="low") if workers else None
    if training:
        least = workers[1] if replicas[0] else workers[1] - 1
        until(lambda: training.refresh().world_size >= least and training.view.step > 0)
    time.sleep(SETTLE_S)
    before = training.refresh().step if training else 0
    begun_s = time.monotonic()
    took_s, num_failed = from_clients(service.url, service.token, requests)
    time.sleep(max(0.0, begun_s + for_s - time.monotonic()))
    passed_s = time.monotonic() - begun_s
    steps = training.refresh().step - before if training else 0
    service.stop()
    if training:
        training.stop()
        until(lambda: training.refresh().ended)
    until(lambda: service.run.refresh().ended)
    trial = Trial(took_s=took_s, num_failed=num_failed, trained_gpu_s=steps * STEP_GPU_S * for_s / passed_s)
    print(f"{name}: p99 {trial.p99_s:.3f} s, {trial.trained_gpu_s:.0f} GPU seconds", flush=True)
    return trial


@rk.stage(cpus=0, gpus=1)
def work(row):
    import time

    time.sleep(row["seconds"])
    return {"seconds": row["seconds"]}


def soak():
    """Train: each rank sleeps as long as its rows would take its GPU."""
    import time

    import torch

    import raykit as rk

    model = torch.nn.Linear(8, 1)
    job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01))
    for batch in job.batches({"x": torch.zeros(10 * ROWS, 8)}, batch_size=ROWS, epochs=1_000_000, micro_batch=MICRO_ROWS):
        done_s = time.monotonic() + STEP_GPU_S * len(batch["x"]) / ROWS
        model(batch["x"]).mean().backward()
        time.sleep(max(0.0, done_s - time.monotonic()))
        job.commit()


def hand_overs() -> list[float]:
    """Read from the log how many seconds the service waited for each GPU that it wanted."""
    log = Log(Path(os.environ["RAYKIT_HOME"]) / "clusters" / NAME / "log.sqlite")
    try:
        records = list(log.read_all(kinds=(ReplicasWanted, RunEnded, SlotsHeld, SlotsReleased, WorldFormed)))
    finally:
        log.close()
    held, is_training, found, wanting = 0, False, list[float](), list[float]()
    for record in records:
        event = record.event
        if isinstance(event, WorldFormed):
            is_training = True
        elif record.run.startswith("service"):
            if isinstance(event, ReplicasWanted):
                more = event.count - held - len(wanting)
                wanting = [*wanting, *[record.at_unix_s] * more][: max(0, event.count - held)]
            elif isinstance(event, SlotsHeld):
                held += 1
                if wanting and is_training:
                    found.append(record.at_unix_s - wanting.pop(0))
            elif isinstance(event, SlotsReleased):
                held -= 1
            else:
                held, wanting = 0, []
    return found


def kill_and_recreate() -> list[float]:
    """Take a GPU from an actor by killing it, and have another at work on it, built from nothing."""
    rk.connect()
    import ray  # once it is imported, Ray takes no other kind of address

    @ray.remote(num_cpus=0, num_gpus=NUM_GPUS)
    class Holder:
        def answer(self) -> int:
            import torch  # as a model's code does

            return torch.get_num_threads()

    took_s = []
    holder = Holder.remote()
    ray.get(holder.answer.remote())
    for _ in range(RECLAIMS):
        begun_s = time.monotonic()
        ray.kill(holder)
        holder = Holder.remote()
        ray.get(holder.answer.remote())
        took_s.append(time.monotonic() - begun_s)
    ray.kill(holder)
    ray.shutdown()
    print(f"kill and recreate: median {statistics.median(took_s):.2f} s, worst {max(took_s):.2f} s", flush=True)
    return took_s


def from_clients(url: str, token: str, requests: Sequence[Request]) -> tuple[list[float], int]:
    """Have a process of its own send the requests at their times."""
    command = [sys.executable, __file__, "--ask"]
    clients = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    said, _ = clients.communicate(json.dumps((url, token, requests)))
    took_s, num_failed = json.loads(said)
    return took_s, num_failed


async def ask(url: str, token: str, requests: Sequence[Request]) -> tuple[list[float], int]:
    """Send each request when it comes, whatever became of the others."""
    import aiohttp

    took: list[float] = []
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    limits = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=limits, timeout=aiohttp.ClientTimeout(total=600)) as http:
        begun_s = time.monotonic()

        async def send(at_s: float, takes_s: float) -> None:
            await asyncio.sleep(max(0.0, begun_s + at_s - time.monotonic()))
            sent_s = time.monotonic()
            try:
                async with http.post(url, json={"seconds": takes_s}) as answer:
                    if answer.status == 200 and await answer.json() == {"seconds": takes_s}:
                        took.append(time.monotonic() - sent_s)
            except aiohttp.ClientError:
                pass

        await asyncio.gather(*(send(*request) for request in requests))
    return took, len(requests) - len(took)


def until(condition: Callable[[], Any], *, for_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + for_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"it did not come to this within {for_s:g} s")
        time.sleep(0.1)


@contextmanager
def _cluster() -> Iterator[None]:
    home = Path(tempfile.mkdtemp(prefix="rk-"))
    os.environ["RAYKIT_HOME"] = str(home)
    try:
        rk.up(NAME, num_cpus=8, num_simulated_gpus=NUM_GPUS, object_store_bytes=100_000_000)
        yield
    finally:
        rk.down(NAME)
        shutil.rmtree(home)


def _p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20)[18]


def _on_ray(requests: Sequence[Request], for_s: float) -> Trial:
    """Ray Serve's autoscaling beside Ray Train's elastic workers, in a Ray of their own."""
    program = Path(__file__).parent / "_sharing_ray.py"
    with tempfile.TemporaryDirectory(prefix="rk-") as folder:
        settings = {"slots": NUM_GPUS, "serving": NUM_SERVING, "port": RAY_PORT, "step_gpu_s": STEP_GPU_S, "folder": folder}
        # Whoever was connected to raykit's cluster has its token in the environment.
        others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
        peer = subprocess.Popen(
            [sys.executable, str(program), json.dumps(settings)], stdin=subprocess.PIPE, env=others | {"RAY_TMPDIR": folder}
        )
        try:
            steps, has_served = Path(folder) / "steps", Path(folder) / "serves"
            until(lambda: has_served.exists() or peer.poll() is not None, for_s=300)
            try:
                until(lambda: steps.exists() or peer.poll() is not None, for_s=PEER_TRAINS_S)
            except TimeoutError:
                print(f"Ray Train beside Ray Serve has trained nothing in {PEER_TRAINS_S:.0f} s; what it does from now on counts.")
                steps.touch()
            time.sleep(SETTLE_S)
            before = len(steps.read_bytes())
            begun_s = time.monotonic()
            took_s, num_failed = from_clients(f"http://127.0.0.1:{RAY_PORT}/", "", requests)
            time.sleep(max(0.0, begun_s + for_s - time.monotonic()))
            passed_s = time.monotonic() - begun_s
            trained = (len(steps.read_bytes()) - before) * STEP_GPU_S * for_s / passed_s
        finally:
            peer.communicate(b"\n", timeout=120)
    return Trial(took_s=took_s, num_failed=num_failed, trained_gpu_s=trained)


if __name__ == "__main__":
    main()
