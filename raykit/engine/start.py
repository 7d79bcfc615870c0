"""The short program that makes a cluster's hub; run inside the cluster, it leaves the hub behind and ends.

python -m raykit.engine.start '{"name": ..., "address": ..., "port": ..., "token_file": ..., "folder": ...}'
"""

from __future__ import annotations

import json
import socket
import sys
import time
from contextlib import suppress

from raykit.engine.setting import NAMESPACE, ClusterSetting

GCS_TIMEOUT_S = 60.0
LOOK_S = 0.02


def main(argument: str) -> None:
    """Connect to the head, make the hub on it, and wait until its door is open."""
    setting = ClusterSetting(**json.loads(argument))
    import ray  # while the head boots: the import takes as long as the head's first port

    from raykit.engine.hub import HUB, Hub, on_this_node

    _wait_for_port(setting.address)
    _wait_for_node(setting.address)
    ray.init(address=setting.address, namespace=NAMESPACE, logging_level="ERROR", log_to_driver=False)
    hub = Hub.options(  # type: ignore[attr-defined]
        name=HUB, lifetime="detached", get_if_exists=True, max_restarts=-1, scheduling_strategy=on_this_node()
    ).remote(setting)
    ray.get(hub.ready.remote())


def _wait_for_port(address: str) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + GCS_TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(LOOK_S)
    sys.exit(f"no head answers at {address}")


def _wait_for_node(address: str) -> None:
    """Wait until the head's node is registered: ``ray.init`` itself would look for it once a second."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    client = GcsClient(address=address)
    deadline = time.monotonic() + GCS_TIMEOUT_S
    while not client.get_all_node_info():
        if time.monotonic() > deadline:
            sys.exit(f"the head at {address} has no node")
        time.sleep(LOOK_S)


if __name__ == "__main__":
    main(sys.argv[1])
