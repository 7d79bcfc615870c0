"""A way from this machine to a port of a cluster's head: one port-forward a connection.

Nothing is kept open between connections, so there is nothing to mend: one that drops is opened again by who uses it,
to the head's pod as it is then, a new one too.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

from raykit.cluster.kuberay.api import Kube, pod_named, pods_of
from raykit.cluster.kuberay.manifest import DOOR_PORT
from raykit.errors import ClusterError

CHUNK_BYTES = 1 << 16


class Tunnel:
    """Listens on loopback; the door behind it asks for the cluster's token.

    ``reach`` gives the API server anew for each connection, with the credentials as they are then.
    """

    def __init__(self, reach: Callable[[], Kube], cluster: str) -> None:
        self._reach = reach
        self._cluster = cluster
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._accepting = Thread(target=self._accept, name=f"tunnel to {cluster}", daemon=True)
        self._accepting.start()

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
        with near, suppress(ClusterError), self._reach() as kube, _forwarded(kube, self._cluster) as far:
            _pump(near, far)


@contextmanager
def _forwarded(kube: Kube, cluster: str) -> Iterator[Any]:
    """Give a socket to the door of the cluster's head.

    Raises:
        ClusterError: no head runs, or the port-forward is refused.
    """
    from kubernetes import client
    from kubernetes.stream import portforward

    head = pod_named(kube.find("Pod", pods_of(cluster)), "head")
    if head is None:
        raise ClusterError(f"The cluster {cluster} has no head that runs.")
    ask = client.CoreV1Api(kube.client).connect_get_namespaced_pod_portforward
    try:
        forward = portforward(ask, head["metadata"]["name"], kube.namespace, ports=str(DOOR_PORT))
    except client.ApiException as exc:
        raise ClusterError(f"The port-forward to {head['metadata']['name']} is refused: {exc.reason}") from exc
    try:
        yield forward.socket(DOOR_PORT)
    finally:
        forward.close()
        with suppress(OSError):  # the package leaves its socket open when the far side has closed
            forward.websocket.shutdown()


def _pump(near: socket.socket, far: Any) -> None:
    ends = {near.fileno(): (near, far), far.fileno(): (far, near)}
    with suppress(OSError):
        while True:
            for ready in select.select(list(ends), [], [])[0]:
                source, target = ends[ready]
                data = source.recv(CHUNK_BYTES)
                if not data:
                    return
                target.sendall(data)
