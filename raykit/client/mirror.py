"""Brings home what a cluster elsewhere tells, so that it can be audited when it is gone."""

from __future__ import annotations

import logging
from contextlib import closing
from threading import Event, Thread

from raykit.cluster.record import ClusterRecord
from raykit.errors import RaykitError
from raykit.store.log import Log
from raykit.wire.door import Door, DoorClosedError

PAUSE_S = 2.0
LAST_S = 10.0

logger = logging.getLogger(__name__)


class Mirror:
    """Keeps the events of a cluster in its folder here, by their numbers, for as long as somebody is connected to it.

    What is missing is asked for after each number that is there: a link that drops loses nothing, and mirrors of several
    processes write each event once.
    """

    def __init__(self, record: ClusterRecord, url: str) -> None:
        self._record = record
        self._door = Door(url, record.token)
        self._closed = Event()
        self._thread = Thread(target=self._watch, name=f"mirror of {record.name}", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Bring what is newest, as far as the cluster tells it now, and end; returns at once."""
        self._closed.set()

    def close(self) -> None:
        """End, and wait for what is newest."""
        self.end()
        self._thread.join(LAST_S)

    def _watch(self) -> None:
        with closing(Log(self._record.folder / "log.sqlite")) as log, closing(self._door) as door:
            while True:
                is_last = self._closed.is_set()
                try:
                    bring(door, log)
                except DoorClosedError:  # its hub restarts, or the link is down
                    pass
                except RaykitError as exc:
                    logger.warning("What %s tells is kept here no more: %s", self._record.name, exc)
                    return
                if is_last:
                    return
                self._closed.wait(PAUSE_S)


def bring(door: Door, log: Log) -> None:
    """Write down here what a cluster's log has more."""
    life = door.ping().get("log")
    if life in (None, log.life):
        return  # its hub is an earlier raykit's, or its head is this machine and its folder this one
    while records := door.events(None, after=log.kept_up_to(life), wait_s=0):
        log.keep(life, records)
