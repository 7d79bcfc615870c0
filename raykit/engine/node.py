"""``ray start`` for a node that raykit starts itself; run as a program, with the options of ``ray start``.

It leaves out what such a node does not need, which halves the time to its first port, and keeps a further node of a
cluster on this machine on loopback. All of it is private to Ray 2.60; tests/ray/test_node_contract.py holds the names.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import Any

import psutil

LEAN = "--include-dashboard=false"
LOOPBACK = "--node-ip-address=127.0.0.1"
# The command line's other groups. Ray does without those that cannot be imported; serve's alone takes a second.
OTHER_GROUPS = ("ray.serve.scripts", "ray.dashboard.modules.job.cli", "ray.util.state.state_cli")


def main() -> None:
    """Start the node and stay until it ends or is told to."""
    for module in OTHER_GROUPS:
        sys.modules[module] = None  # type: ignore[assignment]
    from ray._private import ray_constants, services
    from ray._private.node import Node
    from ray.scripts.scripts import start

    def left_out(_: Node, **__: Any) -> None:
        """Start nothing."""

    kill_all = Node.kill_all_processes

    def kill_all_and_agents(node: Node, **options: Any) -> None:
        kill_all(node, **options)
        end_session()

    Node.kill_all_processes = kill_all_and_agents
    Node.start_ray_client_server = left_out  # for drivers on other machines: there are none
    if LEAN in sys.argv:
        Node.start_api_server = left_out  # even without a dashboard it would be a process that reports usage
    if LOOPBACK in sys.argv and "--head" not in sys.argv:
        # Ray refuses a second node under the switch that keeps all ports on loopback. Here both are wanted.
        services.get_node_ip_address = lambda address=None: "127.0.0.1"  # noqa: ARG005
        ray_constants.ENABLE_RAY_CLUSTER = True
        # Nodes of one machine share a folder, and those that start at once would choose the same name for their sockets.
        choose = Node._prepare_socket_file  # noqa: SLF001
        Node._prepare_socket_file = lambda self, socket_path, default_prefix: choose(  # noqa: SLF001
            self, socket_path or f"{self._sockets_dir}/{default_prefix}.{os.getpid()}", default_prefix
        )
    start()


def end_session() -> None:
    """Kill what else is in the session that this process leads: Ray's agents stay when their raylet was killed."""
    mine = os.getsid(0)
    if mine != os.getpid():
        return
    for pid in psutil.pids():
        with suppress(OSError):
            if pid != os.getpid() and os.getsid(pid) == mine:
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
