"""A service beside Ray Serve: the same stage of one replica, the same clients, in turns.

The stage sleeps 20 ms a call, whatever the number of its requests, as a model on a GPU would take (emulated). The clients
are coroutines of a process of their own, each of which asks again when it was answered; they take part of the two cores.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from _measure import ROUNDS, Figure, end_in_order, report

import raykit as rk

NAME, CALL_S, BATCH, NUM_CLIENTS, SECONDS = "bench", 0.02, 16, 32, 8.0
KILL_AT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What clients saw of one side."""

    requests_s: float
    p50_s: float
    p99_s: float
    num_failed: int


@rk.stage(cpus=0.5, batch=BATCH)
def double(batch):
    time.sleep(CALL_S)
    return {"y": 2 * batch["x"]}


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round: only whether it runs")
    parser.add_argument("--ask", nargs=3, metavar=("URL", "TOKEN", "SECONDS"), help="be the clients")
    given = parser.parse_args()
    if given.ask:
        print(json.dumps(asyncio.run(ask(given.ask[0], given.ask[1], float(given.ask[2])))))
        return
    rounds, seconds = (1, 2.0) if given.quick else (ROUNDS, SECONDS)
    with _cluster(), _raykit() as (our_url, our_token, kill_ours), _ray_serve() as (their_url, kill_theirs):
        sides: dict[str, Callable[[], Trial]] = {
            "raykit": lambda: trial(our_url, our_token, seconds),
            "Ray Serve": lambda: trial(their_url, "", seconds),
        }
        trials: dict[str, list[Trial]] = {side: [] for side in sides}
        for number in range(rounds):
            for side in list(sides)[:: 1 if number % 2 == 0 else -1]:
                trials[side].append(sides[side]())
                print(f"round {number + 1} of {rounds}: {side} {trials[side][-1]}", flush=True)
        killed = {
            "raykit": trial(our_url, our_token, seconds, kill=kill_ours),
            "Ray Serve": trial(their_url, "", seconds, kill=kill_theirs),
        }
    report("serving", {} if given.quick else figures(trials, killed))


def figures(trials: dict[str, list[Trial]], killed: dict[str, Trial]) -> dict[str, Figure]:
    """Give the ratios of medians, what both sides took, and what failed when a replica was killed."""

    def medians(field: str) -> tuple[float, float]:
        ours, theirs = (statistics.median(getattr(each, field) for each in trials[side]) for side in ("raykit", "Ray Serve"))
        return ours, theirs

    found: dict[str, Figure] = {}
    for field, words, goal in (("requests_s", "requests a second", ">= 1"), ("p50_s", "p50", None), ("p99_s", "p99", "<= 1")):
        ours, theirs = medians(field)
        found[f"{words}, raykit / Ray Serve"] = Figure(value=ours / theirs, goal=goal)
        found |= {f"{words}, {side}": Figure(value=value) for side, value in (("raykit", ours), ("Ray Serve", theirs))}
    for side, each in killed.items():
        goal = "== 0" if side == "raykit" else None
        found[f"requests that failed when the replica was killed, {side}"] = Figure(value=each.num_failed, goal=goal)
    return found


def trial(url: str, token: str, seconds: float, *, kill: Callable[[], None] | None = None) -> Trial:
    """Have clients ask for so long, and kill the replica meanwhile, if that is asked."""
    command = [sys.executable, __file__, "--ask", url, token, str(seconds)]
    clients = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if kill is not None:
        time.sleep(KILL_AT_S)
        kill()
    said, _ = clients.communicate(timeout=seconds + 120)
    took, num_failed = json.loads(said)
    quantiles = statistics.quantiles(took, n=100)
    return Trial(requests_s=len(took) / seconds, p50_s=quantiles[49], p99_s=quantiles[98], num_failed=num_failed)


async def ask(url: str, token: str, seconds: float) -> tuple[list[float], int]:
    """Ask from all clients until the time is over, and give the seconds of each answer, and how many there were not."""
    import aiohttp

    took: list[float] = []
    num_failed = 0
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=NUM_CLIENTS)) as http:
        end_s = time.monotonic() + seconds

        async def client(number: int) -> None:
            nonlocal num_failed
            while time.monotonic() < end_s:
                begun_s = time.monotonic()
                try:
                    async with http.post(url, json={"x": number}) as answer:
                        right = answer.status == 200 and (await answer.json()) == {"y": 2 * number}
                except aiohttp.ClientError:
                    right = False
                if right:
                    took.append(time.monotonic() - begun_s)
                else:
                    num_failed += 1
                    await asyncio.sleep(CALL_S)

        await asyncio.gather(*map(client, range(NUM_CLIENTS)))
    return took, num_failed


@contextmanager
def _cluster() -> Iterator[None]:
    home = Path(tempfile.mkdtemp(prefix="rk-"))
    os.environ["RAYKIT_HOME"] = str(home)
    try:
        rk.up(NAME, num_cpus=2, object_store_bytes=100_000_000)
        rk.connect()
        yield
    finally:
        rk.down(NAME)
        shutil.rmtree(home)


@contextmanager
def _raykit() -> Iterator[tuple[str, str, Callable[[], None]]]:
    service = rk.serve(double).wait()

    def kill() -> None:
        pids = [replica.pid for replica in service.run.refresh().stages[0].replicas if not replica.gone]
        os.kill(pids[0], 9)

    yield service.url, service.token, kill
    service.stop()


@contextmanager
def _ray_serve() -> Iterator[tuple[str, Callable[[], None]]]:
    from ray import serve

    @serve.deployment(num_replicas=1, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.5})
    class Double:
        @serve.batch(max_batch_size=BATCH)  # and its default wait of 10 ms for more: with none it takes them one by one
        async def batched(self, rows):
            await asyncio.sleep(CALL_S)
            return [{"y": 2 * row["x"]} for row in rows]

        async def pid(self):
            return os.getpid()

        async def __call__(self, request):
            return await self.batched(await request.json())

    serve.start(http_options={"host": "127.0.0.1", "port": 18123})
    handle = serve.run(Double.bind())
    try:
        yield "http://127.0.0.1:18123/", lambda: os.kill(handle.pid.remote().result(), 9)
    finally:
        serve.shutdown()


if __name__ == "__main__":
    main()
