"""A way to the head's door through ssh, which is opened again when it drops."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from threading import Event, Thread

from raykit.cluster.ssh.machine import CONNECT_S, NOT_REACHED, Machine

AGAIN_S = 0.5
LOOK_S = 0.05
ENDS_WITH_US = "exec cat >/dev/null"  # it reads our pipe, which closes when this process ends, however that happens
OWN_CONNECTION = ["-o", "ControlPath=none"]  # one that is shared would keep the forward when this process has ended


class Forward:
    """Listens on loopback for as long as this process lives, or until it is closed."""

    def __init__(self, head: Machine, door_port: int) -> None:
        """Open it.

        Raises:
            ClusterError: ssh ended, or does not listen in time.
        """
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        where = f"127.0.0.1:{port}:127.0.0.1:{door_port}"
        self._command = head.command(ENDS_WITH_US, options=[*OWN_CONNECTION, "-L", where])
        self._closed = Event()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the way)
        self._process = self._open()
        self._thread = Thread(target=self._keep, name=f"way to {head.host}", daemon=True)
        try:
            self._wait(head, port)
        except BaseException:
            self._end()
            raise
        self._thread.start()

    def close(self) -> None:
        """Open no further connections."""
        self._closed.set()
        self._process.terminate()
        self._thread.join()
        self._end()

    def _open(self) -> subprocess.Popen[bytes]:
        self._said.seek(0)
        self._said.truncate()
        return subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._said, start_new_session=True
        )

    def _end(self) -> None:
        self._process.terminate()
        with self._process:  # waits, and closes its pipe
            pass
        self._said.close()

    def _wait(self, head: Machine, port: int) -> None:
        deadline = time.monotonic() + CONNECT_S
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._said.seek(0)
                raise head.refusal(NOT_REACHED, self._said.read().decode(errors="replace"))
            time.sleep(LOOK_S)

    def _keep(self) -> None:
        while not self._closed.is_set():
            self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()
            if not self._closed.wait(AGAIN_S):
                self._process = self._open()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
