"""A way from this machine to the door of a cluster's head: one port-forward a connection.

Nothing is kept open between connections, so there is nothing to mend: one that drops is opened again by who uses it,
to the head's pod as it is then, a new one too.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

from raykit.cluster.kuberay.api import PATHS, Kube, pod_named, pods_of, refusal
from raykit.cluster.kuberay.manifest import DOOR_PORT
from raykit.errors import ClusterError

CHUNK_BYTES = 1 << 16
PROTOCOL = "v4.channel.k8s.io"
DATA, ERROR = 0, 1  # the two channels of the one port; the first message of each repeats the port's number


class Tunnel:
    """Listens on loopback; the door behind it asks for the cluster's token.

    ``reach`` gives the API server anew for each connection, with the credentials as they are then. ``failure`` is why the
    last connection could not be opened or ended.
    """

    def __init__(self, reach: Callable[[], Kube], cluster: str) -> None:
        self._reach = reach
        self._cluster = cluster
        self.failure: ClusterError | None = None
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        Thread(target=self._accept, name=f"tunnel to {cluster}", daemon=True).start()

    def close(self) -> None:
        """Open no further connections."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = self._listening.accept()
                Thread(target=self._carry, args=(near,), name=f"connection to {self._cluster}", daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        """Carry one connection until either side ends it. One that cannot be opened is closed: the door is not there."""
        try:
            with near, self._reach() as kube, _forwarded(kube, self._cluster) as far:
                _pump(near, far)
        except ClusterError as exc:
            self.failure = exc


@contextmanager
def _forwarded(kube: Kube, cluster: str) -> Iterator[Any]:
    """Give a WebSocket to the door of the cluster's head.

    Raises:
        ClusterError: no head runs, or the port-forward is refused or ends.
    """
    from kubernetes.stream import ws_client
    from websocket import WebSocketBadStatusException, WebSocketException

    head = pod_named(kube.find("Pod", pods_of(cluster)), "head")
    if head is None:
        raise ClusterError(f"The cluster {cluster} has no head that runs.")
    path = f"{PATHS['Pod'].format(namespace=kube.namespace)}/{head['metadata']['name']}/portforward"
    _, url, headers, *_ = kube.client.param_serialize("GET", path, header_params={}, query_params=[], auth_settings=["BearerToken"])
    offered = {key.lower(): value for key, value in headers.items()} | {"sec-websocket-protocol": PROTOCOL}
    far = None
    try:
        where = ws_client.get_websocket_url(url, [("ports", str(DOOR_PORT))])
        far = ws_client.create_websocket(kube.client.configuration, where, offered)
        yield far
    except WebSocketBadStatusException as exc:
        raise refusal(exc.status_code, exc.resp_body or b"", "create pods/portforward", kube) from exc
    except (WebSocketException, OSError) as exc:
        raise ClusterError(f"The port-forward to {head['metadata']['name']} ended: {exc}") from exc
    finally:
        if far is not None:
            far.shutdown()


def _pump(near: socket.socket, far: Any) -> None:
    """Carry bytes both ways until one side ends or the far one tells of an error."""
    named: set[int] = set()
    while True:
        held = isinstance(far.sock, ssl.SSLSocket) and far.sock.pending()  # decrypted already: select would not see it
        ready = [far.sock] if held else select.select([near, far.sock], [], [])[0]
        if near in ready:
            data = near.recv(CHUNK_BYTES)
            if not data:
                return
            far.send_binary(bytes([DATA]) + data)
        if far.sock in ready:
            message = far.recv()
            if not message or (message[0] == ERROR and ERROR in named):
                return
            if message[0] in named:
                near.sendall(message[1:])
            named.add(message[0])
