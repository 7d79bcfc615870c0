"""What is done on a machine, by its own Python: this file travels there as text, and needs nothing but Linux and Python 3.8.

A cluster's folder there holds the files that were sent, the logs, and the id of the node's first process, with the time at
which it began and its ``ray_temp``. All processes of the cluster carry the folder's path in their environment, so they are found again.
"""

from __future__ import annotations

import base64
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from typing import IO, Any

MARK = "RAYKIT_CLUSTER"
NODE = "node.pid"
GRACE_S = 5.0
LOOK_S = 0.05


def answer(verb: str, **facts: Any) -> str:
    """Do what is asked, and give the answer as a line of JSON."""
    if "folder" in facts:
        facts["folder"] = os.path.expanduser(facts["folder"])
    return json.dumps(VERBS[verb](**facts))


def look(modules: list[str], num_ports: int) -> dict[str, Any]:
    """Say what is here: Python, Ray, what is missing, this machine's address and the asker's, and ports that are free."""
    connection = os.environ.get("SSH_CONNECTION", "").split()
    try:
        ray = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        ray = None
    return {
        "system": sys.platform,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "ray": ray,
        "missing": [name for name in modules if importlib.util.find_spec(name) is None],
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "home": os.path.expanduser("~"),
        "temp": os.path.join(tempfile.gettempdir(), f"raykit-{os.getuid()}"),
        "address": connection[2] if connection else "",
        "asker": connection[0] if connection else "",
        "ports": _free_ports(num_ports),
    }


def find(folder: str) -> dict[str, Any]:
    """Give what stands here of a cluster: whether its node lives, the note that was written with it, whether anything is left."""
    note = _text(os.path.join(folder, "note.json"))
    return {"alive": _first(folder) is not None, "note": note, "left": note is not None or bool(_processes(folder))}


def start(
    folder: str, ray_temp: str, files: dict[str, str], environment: dict[str, str], commands: list[tuple[str, list[str]]]
) -> dict[str, Any]:
    """Write files and start commands, each named by its log, the node's first; a node that lives stays as it is.

    Ray gives its folders mode 0777: the one above ``ray_temp`` keeps others out.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with open(os.path.join(folder, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two people may ask at once
        if _first(folder) is not None:
            return {"started": False}
        os.makedirs(os.path.dirname(ray_temp), mode=0o700, exist_ok=True)
        write(folder, files)
        environment = {**os.environ, **environment, MARK: folder}
        pids = []
        for name, command in commands:
            with _private(os.path.join(folder, f"{name}.log")) as log:
                started = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=folder, env=environment
                )
            pids.append(started.pid)
        with _private(os.path.join(folder, NODE)) as file:
            file.write(f"{pids[0]} {_begun(pids[0])} {ray_temp}".encode())
        return {"started": True}


def write(folder: str, files: dict[str, str]) -> dict[str, Any]:
    """Write files, given in base64 by their names, that only their owner can read."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for name, data in files.items():
        with _private(os.path.join(folder, name)) as file:
            file.write(base64.b64decode(data))
    return {}


def ended(folder: str) -> dict[str, Any]:
    """Say whether the node has ended, with the ends of the logs."""
    return {"node": _first(folder) is None, **logs(folder, tail=15)}


def logs(folder: str, tail: int) -> dict[str, Any]:
    """Give the last lines of each log."""
    names = sorted(name for name in os.listdir(folder) if name.endswith(".log")) if os.path.isdir(folder) else []
    return {"logs": {name[: -len(".log")]: (_text(os.path.join(folder, name)) or "").splitlines()[-tail:] for name in names}}


def end(folder: str, ray_temp: str, kept: list[str]) -> dict[str, Any]:
    """End every process of the cluster here, the node first by asking, and remove its files but for those that are kept.

    A later cluster of the same name, which has another ``ray_temp``, is left alone.
    """
    found, first = _processes(folder), _first(folder)
    if first is not None and not (_text(os.path.join(folder, NODE)) or "").endswith(f" {ray_temp}"):
        return {"was_there": False}
    if first is not None:
        _signal(first, signal.SIGTERM)  # `ray start --block` ends its processes in order
    deadline = time.monotonic() + GRACE_S
    while _processes(folder) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    while left := [*_processes(folder), *_agents(ray_temp)]:
        for pid in left:
            _signal(pid, signal.SIGKILL)
        time.sleep(LOOK_S)
    shutil.rmtree(ray_temp, ignore_errors=True)
    with suppress(OSError):  # of another cluster too
        os.rmdir(os.path.dirname(ray_temp))
    was_there = os.path.isdir(folder)
    for name in set(os.listdir(folder)) - set(kept) if was_there else ():
        path = os.path.join(folder, name)
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    with suppress(OSError):  # something is kept
        os.rmdir(folder)
    return {"was_there": was_there or bool(found)}


VERBS: dict[str, Any] = {"look": look, "find": find, "start": start, "write": write, "ended": ended, "logs": logs, "end": end}


def _free_ports(number: int) -> list[int]:
    """Find ports that are free now; all are held open together, so that no two are the same."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]


def _private(path: str) -> IO[bytes]:
    with suppress(FileNotFoundError):
        os.remove(path)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def _first(folder: str) -> int | None:
    """Give the id of the node's first process, or None if that has ended; a later process of the same id is another."""
    pid, begun, *_ = (*(_text(os.path.join(folder, NODE)) or "").split(" "), "", "")
    return int(pid) if begun and _begun(int(pid)) == begun else None


def _begun(pid: int) -> str | None:
    """Give when a process began, as the kernel counts; None of one that has ended."""
    words = (_text(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
    return None if not words or words[0] == "Z" else words[19]


def _processes(folder: str) -> list[int]:
    mark, found = f"{MARK}={folder}".encode(), []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if mark in file.read().split(b"\0") and _begun(pid) is not None:
                found.append(pid)
    return found


def _agents(ray_temp: str) -> list[int]:
    """Give Ray's agents that write below its folder: they overwrite their environment with their title."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if not (_text(f"/proc/{pid}/cmdline") or "").startswith("ray::"):
            continue  # a person's own process may have a file open there too
        with suppress(OSError):
            files = [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
            if ray_temp and any(file.startswith(f"{ray_temp}/") for file in files):
                found.append(pid)
    return found


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
