"""What is written down of a cluster, so that any later process finds it by name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from raykit.cluster.home import clusters_home, private_folder
from raykit.codec import validate
from raykit.spec import ClusterSpec
from raykit.spec.cluster import THIS_MACHINE

TITLE = "ray::"  # of Ray's own processes, but for a driver's
MARK = "RAYKIT_CLUSTER"
"""Every process of a cluster carries its folder under this name in its environment: so they are found again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMark:
    """A process that cannot be mistaken for a later one with the same id."""

    pid: int
    created_unix_s: float

    @staticmethod
    def of(pid: int) -> ProcessMark:
        return ProcessMark(pid=pid, created_unix_s=psutil.Process(pid).create_time())

    def is_alive(self) -> bool:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created_unix_s) < 1
            return same and process.status() != psutil.STATUS_ZOMBIE
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRecord:
    """What is known of a cluster wherever it is. The token's text stands in its file only."""

    spec: ClusterSpec
    token_file: str
    created_unix_s: float
    python_version: str
    ray_version: str
    raykit_version: str

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def folder(self) -> Path:
        return cluster_folder(self.name)

    @property
    def is_here(self) -> bool:
        """Whether this machine has the files of its runs."""
        return True

    @property
    def token(self) -> str:
        return Path(self.token_file).read_text()

    def save(self) -> None:
        """Write the record in one move: a reader sees the old one or the new one."""
        draft = self.folder / "record.json.new"
        draft.write_text(json.dumps(asdict(self), indent=2))
        draft.chmod(0o600)
        draft.replace(self.folder / "record.json")

    def remove(self) -> None:
        """Forget the cluster; its log and its runs stay."""
        (self.folder / "record.json").unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRecord(ClusterRecord):
    """A cluster's place on this machine."""

    head: ProcessMark
    gcs_address: str
    door_url: str
    dashboard_url: str | None
    ray_temp: str

    def is_alive(self) -> bool:
        """Whether the head's process is there."""
        return self.head.is_alive()


@dataclass(frozen=True, slots=True, kw_only=True)
class SshRecord(ClusterRecord):
    """A cluster's place on machines that ssh reaches, a person's own or rented ones.

    ``address`` is the head's among them, ``door_port`` on its loopback; ``ray_temp`` is a folder of each of them.
    """

    address: str
    gcs_port: int
    door_port: int
    ray_temp: str

    @property
    def is_here(self) -> bool:
        return self.spec.hosts[:1] == (THIS_MACHINE,)


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeRecord(ClusterRecord):
    """A cluster's place on Kubernetes: what context and namespace stood for when it was made."""

    context: str
    namespace: str

    @property
    def is_here(self) -> bool:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeRecord(ClusterRecord):
    """A cluster that is nothing but this."""

    suspended_unix_s: float | None = None


RECORDS: dict[str, type[ClusterRecord]] = {
    "local": LocalRecord,
    "ssh": SshRecord,
    "aws": SshRecord,
    "gcp": SshRecord,
    "sky": SshRecord,
    "k8s": KubeRecord,
    "fake": FakeRecord,
}


def cluster_folder(name: str) -> Path:
    return clusters_home() / name


def find(name: str) -> ClusterRecord | None:
    """Give the record of a cluster, alive or not; one that cannot be read counts as none."""
    file = cluster_folder(name) / "record.json"
    try:
        written = json.loads(file.read_text())
        return validate(RECORDS[written["spec"]["place"]], written)  # type: ignore[no-any-return]
    except (FileNotFoundError, LookupError, ValueError):
        return None


def find_all() -> list[ClusterRecord]:
    """Give the records of all clusters, the newest first."""
    records = [find(folder.name) for folder in clusters_home().iterdir()]
    return sorted((each for each in records if each), key=lambda each: each.created_unix_s, reverse=True)


def processes(name: str) -> list[psutil.Process]:
    """Give every process of a cluster, by the mark in its environment."""
    mark = str(cluster_folder(name))
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def agents(ray_temp: str) -> list[psutil.Process]:
    """Give Ray's agents that write below its folder: they overwrite their environment with their title.

    A person's own processes may have files open there too: who reads a log, a kernel that is connected.
    """
    found, place = [], os.path.realpath(ray_temp)
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            is_titled = "".join(process.cmdline()).startswith(TITLE)
            if is_titled and any(Path(file.path).is_relative_to(place) for file in process.open_files()):
                found.append(process)
    return found


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Let one process at a time make or end a cluster: two notebooks that click at once get one."""
    import fcntl

    folder = private_folder(cluster_folder(name))
    with (folder / "lock").open("w") as file:
        os.chmod(file.fileno(), 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
