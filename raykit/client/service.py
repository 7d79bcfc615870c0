"""Services from Python and from cells: a stage behind HTTP."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from raykit.client import session
from raykit.client.capture import pack
from raykit.client.pipeline import stage_spec
from raykit.client.run import Run, start
from raykit.errors import (
    ClusterLostError,
    InputError,
    RaykitError,
    RequestError,
    RunError,
    UpdateRefusedError,
    WaitTimeoutError,
    from_wire,
)
from raykit.spec import ServiceSpec
from raykit.spec.json_text import PYTHON_JSON, as_json
from raykit.spec.priority import Priority
from raykit.spec.service import TOKEN_FILE
from raykit.spec.words import nearest_named

POLL_S = 1.0
ANSWER_S = 60.0
AGAIN_S = 0.2


class Service:
    """A service in a cluster. It goes on without this object; call it with a row (a dict) or with a list of them."""

    def __init__(self, run: Run, *, version: int = 1) -> None:
        """Store; ``version`` is the one that was asked for."""
        self.run, self._version = run, version
        self._http: httpx.Client | None = None

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def url(self) -> str:
        """Where it takes requests; of a cluster elsewhere an address of its door. Empty before it is open."""
        service = self.run.view.service
        if service is None or self._is_here:
            return service.url if service else ""
        return self.run.cluster.door.service_url(self.name)

    @property
    def token(self) -> str:
        """What a request has to send as ``Authorization: Bearer TOKEN``: its own, or that of a cluster elsewhere."""
        return self._token_file.read_text()

    @property
    def _token_file(self) -> Path:
        record = self.run.cluster.record
        return Path(self.run.view.folder) / TOKEN_FILE if self._is_here else Path(record.token_file)

    @property
    def _is_here(self) -> bool:
        return self.run.cluster.record.spec.place == "local"

    def wait(self, *, timeout_s: float | None = None) -> Service:
        """Wait until it takes requests; after an update, until all are answered by the new version.

        Raises:
            RunFailedError: the user's class could not be built.
            UpdateRefusedError: that of an update could not; the service goes on as it was.
            RunStoppedError: it was ended.
            WaitTimeoutError: it did not come to that within ``timeout_s``; it goes on.
        """
        for view in self.run.follow(poll_s=POLL_S, timeout_s=timeout_s):
            if view.started_at_unix_s is not None and view.service and view.service.has_answered(self._version):
                break
        self.run.raise_if_failed()
        service = self.run.view.service
        if service and service.refused and service.version < self._version:
            refused = service.refused
            raise UpdateRefusedError(self.name, refused.where, refused.error, refused.traceback_text)
        return self

    @property
    def is_update(self) -> bool:
        """Whether it was there before, and is to go on in a new version."""
        return self._version > 1

    def stop(self) -> None:
        """End it when the requests that it has are answered; returns at once."""
        self.run.stop()

    def __call__(self, row: Any, *, timeout_s: float = ANSWER_S) -> Any:
        """Return the answer to a row, or those to a list of rows, in their order.

        Both travel as JSON: numbers, text, lists and dicts come as they were, with NaN and infinity (an HTTP client gets
        ``null`` for these); tuples, arrays, tensors and columns come as lists.

        Raises:
            InputError: JSON has no form for a value or a key of the row; the message names type and place.
            RequestError: the user's code raised, or returned what JSON has no form for, the request is larger than 64 MiB, or
                too many requests wait.
            WaitTimeoutError: no answer came within ``timeout_s``. A request that waited is dropped; one that has begun runs to
                its end.
            RunFailedError: its class could not be built.
            RunError: it is over.
        """
        if self._http is None:
            self.run.refresh()
            if not self.url or self.run.view.ended:
                raise RunError(f"The service {self.name} is {self.run.view.state}.", f"Start it again: %ray resume {self.name}")
            self._http = httpx.Client(headers={"Authorization": f"Bearer {self.token}"}, trust_env=False)
            weakref.finalize(self, self._http.close)
        try:
            text = as_json("The request", row)
        except (TypeError, ValueError) as exc:
            raise InputError(str(exc)) from exc
        answer = self._post(self._http, text, timeout_s)
        if answer.status_code == httpx.codes.OK:
            return answer.json()
        raise self._refusal(answer)

    def _post(self, http: httpx.Client, text: str, timeout_s: float) -> httpx.Response:
        """Send it, and once more when the ingress died meanwhile: a request may be answered twice, but is answered."""
        deadline_s, headers = time.monotonic() + timeout_s, {"Content-Type": PYTHON_JSON}
        while True:
            left_s = deadline_s - time.monotonic()
            try:
                timeout = httpx.Timeout(max(0.1, left_s), connect=5.0)
                answer = http.post(self.url, content=text, headers=headers, timeout=timeout)
                if answer.status_code != httpx.codes.BAD_GATEWAY or left_s <= AGAIN_S:
                    return answer
                time.sleep(AGAIN_S)
            except httpx.TransportError as exc:
                self.run.refresh()
                self.run.raise_if_failed()
                if isinstance(exc, httpx.ReadTimeout):
                    raise WaitTimeoutError(
                        f"The service {self.name} has not answered within {timeout_s:g} s.",
                        f"Give it longer, as timeout_s={2 * timeout_s:g}, or see what it does: %ray watch {self.name}",
                    ) from exc
                if isinstance(exc, httpx.NetworkError | httpx.RemoteProtocolError) and left_s > AGAIN_S:
                    time.sleep(AGAIN_S)
                    continue
                raise ClusterLostError(
                    f"The service {self.name} did not answer ({type(exc).__name__}).", f"See what it does: %ray watch {self.name}"
                ) from exc

    def _refusal(self, answer: httpx.Response) -> RaykitError:
        """Return the error that an answer tells: the ingress's, the door's, or that of whatever lies between."""
        try:
            said = answer.json()
        except ValueError:  # also of text that is not UTF-8
            said = None
        if isinstance(said, dict) and "facts" in said:
            return from_wire(said)
        if isinstance(said, dict) and "error" in said:
            return RequestError(str(said["error"]), str(said.get("hint", "")))
        return RequestError(
            f"The service {self.name} answered with status {answer.status_code} and no JSON: {answer.text[:200]}",
            "Is there a proxy in between?",
        )

    def __repr__(self) -> str:
        state = self.run.view.state
        if not self.url or self.run.view.ended:
            return f"Service {self.name} is {state}."
        ask = f'curl -H "Authorization: Bearer $(cat {self._token_file})" -d \'{{"x": 1}}\' {self.url}'
        return f"Service {self.name} is {state} at {self.url}\nFrom Python: rk.service({self.name!r})({{...}}); by HTTP: {ask}"


@nearest_named
def serve(
    work: Callable[..., Any],
    *,
    name: str | None = None,
    replicas: int | tuple[int, int] = 1,
    slo_s: float = 1.0,
    warm: int | None = None,
    priority: Priority = "high",
    on: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Service:
    """Serve a stage over HTTP; returns at once. Requests to a cluster elsewhere go through its door.

    A request is a JSON object, a row, or a list of them; its answer is what the stage makes of it. What it holds, and how many
    requests a call takes (``batch``), says ``rk.stage``. An HTTP client gets ``null`` for NaN and infinity, which are not JSON;
    :class:`Service` gets them as they are. A request whose client has gone is dropped, unless it has begun.

    A service of that name that goes on is updated in place: a first replica of the new version is built while the old ones
    answer. If it can be built, the others follow one by one, and no request is lost; else the service goes on as it was.

    Args:
        work: a function or a class; marked with ``rk.stage`` or not.
        name: how it is called, if not by the name of the function.
        replicas: how many, or (least, most): as many as its requests need; with 0 as the least none when there are none.
        slo_s: how soon requests shall be answered.
        warm: how many more replicas are built ahead and hold no slot, as far as ``replicas`` allows: they are at work as soon
            as there is a slot for them. If not given, one where the number of replicas is not fixed. Not where slots are real
            GPUs, on which nothing is loaded ahead.
        priority: elastic training of a lower one lends what it needs.
        on: the cluster; the current one if not given.
        env: variables of the environment of each replica's process, set before its modules are imported.

    Raises:
        RunError: it is an update, and its replicas would hold other CPUs or GPUs.
    """
    least_most = (replicas, replicas) if isinstance(replicas, int) else replicas
    spec = service_spec(work, name=name, replicas=least_most, slo_s=slo_s, num_warm=warm, priority=priority)
    return start_service(spec, work, on=on, env=env)


def service_spec(work: Callable[..., Any], *, name: str | None, **options: Any) -> ServiceSpec:
    """Give the spec of a stage that is served."""
    stage = stage_spec(work)
    return ServiceSpec(name=name or stage.name, stage=stage, **options)


def start_service(spec: ServiceSpec, work: Callable[..., Any], *, on: str | None, env: Mapping[str, str] | None = None) -> Service:
    """Start a service, or update it, and give its viewer."""
    run = start(spec, pack(work, {spec.stage.name: work}, {}), on=on, env=env)
    view = run.refresh()  # an update is in the log before the door answers
    return Service(run, version=view.service.asked if view.service else 1)


@nearest_named
def service(name: str, *, on: str | None = None) -> Service:
    """Give a service that was started before.

    Raises:
        RunError: the run of that name is none.
    """
    run = Run(session.get(on), name)
    if run.refresh().run_kind != "service":
        raise RunError(f"The run {run.name} is no service.", "See what runs: %ray runs")
    return Service(run)
