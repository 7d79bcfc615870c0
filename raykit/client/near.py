"""A run's files, as this process reads them: where they are a cluster's elsewhere, copied through its door."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from raykit.views import RunView
from raykit.wire.door import address_of

if TYPE_CHECKING:
    from raykit.client.cluster import Cluster


class NearFiles:
    """The files of one run."""

    def __init__(self, cluster: Cluster, view: RunView) -> None:
        self._cluster, self._run, self._folder = cluster, view.name, view.folder
        self._copied: dict[str, str] = {}
        self._place: Path | None = None

    @property
    def cluster(self) -> str:
        """The name of the run's cluster."""
        return self._cluster.name

    def path(self, path: str) -> str:
        """Give where to read a file or a folder of the run; a copy lasts as long as this object.

        What the user has put elsewhere, such as a bucket, is read there.

        Raises:
            RunNotFoundError: there is no such file.
            ClusterLostError: the cluster that has it is gone.
        """
        if self._cluster.record.is_here or not Path(path).is_relative_to(self._folder):
            return path
        if path not in self._copied:
            place = self._place or self._made()
            packed, near = place / "packed.tar", place / str(len(self._copied))
            within = str(Path(path).relative_to(self._folder))
            self._cluster.ask(lambda door: door.fetch(address_of(self._run), within, packed))
            with tarfile.open(packed) as archive:
                archive.extractall(near, filter="data")
            packed.unlink()
            self._copied[path] = str(near / Path(path).name)
        return self._copied[path]

    def _made(self) -> Path:
        self._place = Path(tempfile.mkdtemp(prefix="raykit-"))
        weakref.finalize(self, shutil.rmtree, self._place, ignore_errors=True)
        return self._place
