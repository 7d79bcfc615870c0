"""The hub: the detached, restartable actor that serves a cluster's door, and the registry of its runs.

It holds no state of its own. What runs there are, and what they did, stands in the log; so a hub that is killed is
back when Ray has started its process, and no run notices.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from aiohttp import ClientConnectionError, ClientSession, ClientTimeout, TCPConnector, web
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykit.codec import decode
from raykit.commands import Command, Resize, Stop, Update
from raykit.engine import capacity
from raykit.engine.arbiter import Arbiter, free_slots, whole_slots
from raykit.engine.buffers import Buffers, free_memory
from raykit.engine.guard import Guard
from raykit.engine.host import Host
from raykit.engine.registry import Registry
from raykit.engine.run import HOST_PREFIX, describe, find_host
from raykit.engine.screen import shown
from raykit.engine.setting import NAMESPACE, ClusterSetting
from raykit.engine.telemetry.telemetry import Telemetry
from raykit.engine.why import why
from raykit.errors import RaykitError, RunError, RunNotFoundError, to_wire
from raykit.events import Record, RunEnded, record_to_json
from raykit.spec import RunSpec, TrainSpec
from raykit.spec.service import PORT_FILE, TOKEN_FILE
from raykit.store.room import is_full
from raykit.views import ClusterView, fold_cluster

HUB = "hub"
MAX_PAYLOAD_BYTES = 2**31
PART_BYTES = 2**20
LOOK_S = 0.01  # a look at the log's version costs microseconds, and is made only while somebody waits
RARE_LOOK_S = 0.05
MAX_WAIT_S = 30.0
GONE_S = 0.2  # after so long it is seen that the client of a service has gone
HOST_RESTART_S = 15.0
STALE_S = 10.0  # a sample of a node that is older says nothing of now

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Keep an actor where the log's file is."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


@ray.remote(num_cpus=0, max_concurrency=1000)
class Hub:
    """Serves the door from its constructor on: after a restart Ray calls nothing else."""

    def __init__(self, setting: ClusterSetting) -> None:
        self._setting = setting
        self._token = Path(setting.token_file).read_text()
        self._registry, self._telemetry = Registry(setting), Telemetry(setting)
        self._buffers = Buffers(setting)
        self._started_unix_s = time.time()
        self._starting = asyncio.Lock()
        self._guard = Guard(setting, self._registry, self._look, self._tell)
        self._arbiter = Arbiter(self._registry, self._tell)
        self._serving = asyncio.get_event_loop().create_task(self._serve())

    async def ready(self) -> int:
        """Wait until the door is open."""
        await self._serving
        return os.getpid()

    async def _serve(self) -> None:
        await asyncio.to_thread(self._close_lost_runs)
        if self._setting.idle_s is not None or self._setting.budget is not None:
            self._watching = asyncio.get_event_loop().create_task(self._guard.watch())
        app = web.Application(middlewares=[self._admit], client_max_size=MAX_PAYLOAD_BYTES)
        app.add_routes(
            [
                web.get("/ping", self._ping),
                web.get("/status", self._status),
                web.get("/runs", self._runs),
                web.get("/runs/why", self._why),
                web.post("/buffers", self._missing),
                web.put("/buffers/{name}", self._buffer),
                web.post("/runs", self._start),
                web.post("/runs/resume", self._resume),
                web.post("/commands", self._command),
                web.get("/events", self._events),
                web.get("/outputs/{run}/{name}", self._output),
                web.get("/logs/{run}", self._logs),
                web.get("/files/{run}", self._files),
                web.post("/services/{run}", self._ask),
            ]
        )
        self._http = ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=None))
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._setting.port, reuse_address=True).start()
        self._lending = asyncio.create_task(self._arbiter.watch())
        if self._setting.sample_s:
            self._sampling = asyncio.create_task(self._telemetry.run())

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            return web.json_response({"error": "RunError", "facts": ["The door asks for the cluster's token.", ""]}, status=401)
        try:
            return await handler(request)
        except RaykitError as exc:
            return web.json_response(to_wire(exc), status=409)
        except (LookupError, ValueError) as exc:
            facts = [f"The door does not understand the request: {exc!r}", "Is the kernel's raykit of another version?"]
            return web.json_response({"error": "RunError", "facts": facts}, status=400)
        except web.HTTPException:  # aiohttp's own answers, such as 404
            raise
        except Exception as exc:
            logger.exception("%s %s", request.method, request.path)
            facts = [f"The hub could not answer: {describe(exc)}", "This is a fault of raykit's: report it with %ray doctor."]
            if is_full(exc):
                facts = ["The disk of the cluster's head is full.", f"Free space at {self._setting.folder}, and ask again."]
            return web.json_response({"error": "RunError", "facts": facts}, status=500)

    async def _ping(self, _: web.Request) -> web.Response:
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        versions = {"ray": ray.__version__, "raykit": version("raykit"), "python": python, "log": self._registry.log.life}
        return web.json_response(
            {"name": self._setting.name, "pid": os.getpid(), "started_unix_s": self._started_unix_s} | versions
        )

    async def _status(self, request: web.Request) -> web.Response:
        view = await self._look(min(float(request.query.get("wait_s", 0)), MAX_WAIT_S))
        waiting = await asyncio.to_thread(self._registry.waiting)
        return web.json_response(asdict(replace(view, guard=self._guard.words, waiting=waiting)))

    async def _look(self, wait_s: float) -> ClusterView:
        """Give the cluster as it stands, with what its nodes use; those are looked at anew where that may take a while."""
        asked_unix_s = time.time()
        if wait_s:
            await self._telemetry.look(timeout_s=wait_s, everywhere=True)
        view = await asyncio.to_thread(capacity.cluster_view, self._setting)
        for record in await asyncio.to_thread(self._registry.sampled):
            if record.at_unix_s > asked_unix_s - STALE_S:
                view = fold_cluster(view, record)
        return view

    async def _runs(self, _: web.Request) -> web.Response:
        views = await asyncio.to_thread(self._registry.views)
        return web.json_response({"runs": [asdict(view) for view in views]})

    async def _missing(self, request: web.Request) -> web.Response:
        sizes: dict[str, int] = (await request.json())["sizes"]
        free = await asyncio.to_thread(lambda: free_memory(self._setting, self._registry.sampled()))
        missing = await asyncio.to_thread(self._buffers.missing, sizes, free)
        return web.json_response({"missing": missing})

    async def _buffer(self, request: web.Request) -> web.Response:
        at, of = int(request.query["at"]), int(request.query["of"])
        await asyncio.to_thread(self._buffers.write_at, request.match_info["name"], at, await request.read(), of=of)
        return web.json_response({})

    async def _start(self, request: web.Request) -> web.Response:
        parts = await request.post()
        spec = capacity.fitted(decode(RunSpec, json.loads(_part(parts["spec"]))), self._setting)
        capacity.check(spec, self._setting)
        async with self._starting:
            payload, key = _part(parts["payload"]), request.headers["Idempotency-Key"]
            if begun := self._registry.asked(spec, key):
                return web.json_response({"run": begun})
            buffers = json.loads(_part(parts["buffers"])) if "buffers" in parts else []
            if updated := self._registry.accept_update(spec, payload, buffers):
                await self._tell(updated, Update(run=updated))
                return web.json_response({"run": updated})
            run = self._registry.accept(spec, payload, key, buffers)
            self._make_host(run, replace(spec, name=run))
        return web.json_response({"run": run})

    async def _resume(self, request: web.Request) -> web.Response:
        asked = await request.json()
        async with self._starting:
            check = partial(capacity.check, setting=self._setting)
            if asked.get("folder"):
                run, spec = await asyncio.to_thread(self._registry.accept_from, Path(asked["folder"]), check)
            else:
                run, spec = self._registry.accept_again(str(asked["run"]), check)
            await self._wait_for_name(run)
            self._make_host(run, spec)
        return web.json_response({"run": run})

    async def _why(self, request: web.Request) -> web.Response:
        run = self._registry.newest(request.query["run"])
        parties, free, whole = await asyncio.to_thread(lambda: (self._arbiter.parties(), free_slots(), whole_slots()))
        if all(party.view.name != run for party in parties):
            raise RunError(f"The run {run} is over, or runs in a kernel.", f"See it: %ray watch {run}")
        return web.json_response(asdict(why(parties, run, free=free, whole=whole)))

    async def _wait_for_name(self, run: str) -> None:
        """Let the earlier host leave: it does right after it has written the run's end."""
        deadline = time.monotonic() + HOST_RESTART_S
        with suppress(ValueError):
            while time.monotonic() < deadline:
                find_host(run)
                await asyncio.sleep(LOOK_S)

    async def _command(self, request: web.Request) -> web.Response:
        command: Command = decode(Command, await request.json())
        run = self._registry.newest(command.run)
        if isinstance(command, Resize) and isinstance(spec := self._registry.spec(run), TrainSpec):
            capacity.check(replace(spec, workers=command.workers), self._setting)
        await self._tell(run, replace(command, run=run))
        return web.json_response({"run": run})

    async def _tell(self, run: str, command: Command) -> None:
        """Give a command to a run's host; one that is on its way back from a kill is waited for."""
        deadline = time.monotonic() + HOST_RESTART_S
        while True:
            try:
                await find_host(run).command.remote(command)
            except ray.exceptions.RayTaskError as exc:
                if isinstance(exc.cause, RaykitError):
                    raise exc.cause from None
                raise
            except ray.exceptions.ActorUnavailableError as exc:
                if time.monotonic() > deadline:
                    raise RunError(f"The host of {run} does not answer for {HOST_RESTART_S:.0f} s.", "See %ray doctor.") from exc
                await asyncio.sleep(LOOK_S)
                continue
            except (ValueError, ray.exceptions.ActorDiedError) as exc:  # it has left, or leaves just now
                if not isinstance(command, Stop):  # stopping twice is fine
                    raise RunError(f"The run {run} is over.", f"Start it again: %ray resume {run}") from exc
            return

    async def _events(self, request: web.Request) -> web.Response:
        run = self._registry.newest(request.query["run"]) if "run" in request.query else None
        after, wait_s = int(request.query["after"]), float(request.query.get("wait_s", 0))
        records = await self._records(run, after, wait_s, has_left=lambda: request.transport is None)
        return web.json_response({"records": [record_to_json(record) for record in records]})

    async def news(self, run: str, after: int, wait_s: float) -> None:
        """Wait until the log has news of a run, for who waits in Ray."""
        await self._records(self._registry.newest(run), after, wait_s)

    async def _records(
        self, run: str | None, after: int, wait_s: float, *, has_left: Callable[[], bool] = lambda: False
    ) -> list[Record]:
        """Return the records above ``after``, of one run or of all; wait for the first, if nobody ``has_left`` who wants them."""
        begun_s = time.monotonic()
        deadline = begun_s + min(wait_s, MAX_WAIT_S)
        log = self._registry.log
        while True:
            version = log.version()
            records = await asyncio.to_thread(log.read, after=after, run=run)
            if records:
                return records
            while log.version() == version:
                if time.monotonic() > deadline or has_left():
                    return []
                # Late by a tenth of the wait at most: a hundred looks a second would take a hundredth of a core.
                await asyncio.sleep(min(LOOK_S + (time.monotonic() - begun_s) / 10, RARE_LOOK_S))

    async def _output(self, request: web.Request) -> web.StreamResponse:
        run = self._registry.newest(request.match_info["run"])
        name = request.match_info["name"]
        file = self._setting.run_folder(run) / "outputs" / f"{name}.pkl"
        if not name.isidentifier() or not file.is_file():
            raise RunNotFoundError(f"The run {run} has no output {name}.", f"See what it has: %ray watch {run}")
        return web.FileResponse(file)

    async def _logs(self, request: web.Request) -> web.Response:
        run = self._registry.newest(request.match_info["run"])
        source, tail = request.query.get("source", ""), int(request.query.get("tail", 200))
        folder = self._setting.run_folder(run) / "logs"
        text = await asyncio.to_thread(_read_logs, folder, source, tail)
        return web.Response(text=text)

    async def _files(self, request: web.Request) -> web.StreamResponse:
        run = self._registry.newest(request.match_info["run"])
        folder = self._setting.run_folder(run).resolve()
        path = (folder / request.query["path"]).resolve()
        if not path.is_relative_to(folder) or not path.exists():
            raise RunNotFoundError(f"The run {run} has no {request.query['path']}.", f"See what it has: %ray watch {run}")
        with tempfile.NamedTemporaryFile(prefix="raykit-", suffix=".tar") as packed:
            answer = web.StreamResponse()
            answer.content_length = await asyncio.to_thread(_pack, path, packed.name)
            await answer.prepare(request)
            while part := await asyncio.to_thread(packed.read, PART_BYTES):
                await answer.write(part)
            return answer

    async def _ask(self, request: web.Request) -> web.Response:
        """Give a request to a service, which takes them on this machine only, and its answer back."""
        run = self._registry.newest(request.match_info["run"])
        view = next(view for view in self._registry.views() if view.name == run)
        if view.service is None or view.ended:
            raise RunError(f"The run {run} takes no requests: it is {view.state}.", f"See it: %ray watch {run}")
        folder = self._setting.run_folder(run)
        headers = {"Authorization": f"Bearer {(folder / TOKEN_FILE).read_text()}", "Content-Type": request.content_type}
        url = f"http://127.0.0.1:{(folder / PORT_FILE).read_text()}/"
        body = await request.read()

        async def answered() -> web.Response:
            async with self._http.post(url, data=body, headers=headers) as answer:
                return web.Response(body=await answer.read(), status=answer.status, content_type=answer.content_type)

        answering = asyncio.create_task(answered())
        try:
            while not answering.done():
                await asyncio.wait([answering], timeout=GONE_S)
                if request.transport is None:  # the client has gone: the ingress drops its request, unless that has begun
                    answering.cancel()
            return await answering
        except ClientConnectionError as exc:
            said = {"error": f"The ingress of {run} does not answer ({type(exc).__name__}).", "hint": "Ask again."}
            return web.json_response(said, status=502)

    def _make_host(self, run: str, spec: RunSpec) -> None:
        options = {"name": HOST_PREFIX + run, "namespace": NAMESPACE, "lifetime": "detached", "scheduling_strategy": on_this_node()}
        Host.options(**options).remote(self._setting, run, spec)  # type: ignore[attr-defined]

    def _close_lost_runs(self) -> None:
        """Say of runs that were open when an earlier head died that they are lost."""
        for view in self._registry.views():
            if view.ended:
                continue
            try:
                find_host(view.name)
            except ValueError:
                ended = RunEnded(state="lost", error="The cluster's head died while the run went on.")
                self._registry.log.append(view.name, [ended])


def _part(part: Any) -> bytes:
    return bytes(part.file.read()) if hasattr(part, "file") else str(part).encode()


def _pack(path: Path, file: str) -> int:
    """Write a tar, and give its size in bytes."""
    with tarfile.open(file, "w") as archive:
        archive.add(path, path.name)
    return Path(file).stat().st_size


def _read_logs(folder: Path, source: str, tail: int) -> str:
    parts: list[str] = []
    for file in sorted(folder.glob("*.log")):
        if source in ("", file.stem):
            text = file.read_bytes().decode(errors="replace").removesuffix("\n")  # a line may have other marks in it
            parts.extend(f"{file.stem} | {shown(line)}" for line in (text.split("\n")[-tail:] if text else ()))
    return "\n".join(parts)
