"""A way to the head's door through ssh, which is opened again when it drops."""

from __future__ import annotations

import socket
import subprocess
import time
from contextlib import suppress
from threading import Event, Thread

from raykit.cluster.ssh.machine import CONNECT_S, Machine
from raykit.errors import ClusterError

AGAIN_S = 0.5
LOOK_S = 0.05
ENDS_WITH_US = "exec cat >/dev/null"  # it reads our pipe, which closes when this process ends, however that happens


class Forward:
    """Listens on loopback for as long as this process lives, or until it is closed."""

    def __init__(self, head: Machine, door_port: int) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        where = f"127.0.0.1:{port}:127.0.0.1:{door_port}"
        self._command = head.command("-L", where, ENDS_WITH_US)
        self._host = head.host
        self._closed = Event()
        self._process = self._open()
        try:
            self._wait(port)
        except BaseException:
            self.close()
            raise
        Thread(target=self._keep, name=f"way to {head.host}", daemon=True).start()

    def close(self) -> None:
        """Open no further connections."""
        self._closed.set()
        self._process.terminate()
        self._process.wait()

    def _open(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )

    def _wait(self, port: int) -> None:
        """Wait until it listens.

        Raises:
            ClusterError: ssh ended, or took too long.
        """
        deadline = time.monotonic() + CONNECT_S
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self._process.communicate(timeout=1)[1].decode(errors="replace").strip() if self._process.poll() else ""
                why = said.splitlines()[-1] if said else f"no word in {CONNECT_S} s"
                raise ClusterError(f"{self._host} is not reached by ssh: {why}", f"Try it in a terminal: ssh {self._host} true")
            time.sleep(LOOK_S)

    def _keep(self) -> None:
        while not self._closed.is_set():
            assert self._process.stderr is not None
            self._process.stderr.read()  # to its end: a pipe that is full would stop ssh
            self._process.wait()
            if not self._closed.wait(AGAIN_S):
                self._process = self._open()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
