"""``ray start`` for a node that raykit starts itself; run as a program, with the options of ``ray start``.

It leaves out what such a node does not need, which halves the time to its first port, and keeps a further node of a
cluster on this machine on loopback. All of it is private to Ray 2.60; tests/ray/test_node_contract.py holds the names.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil

LEAN = "--include-dashboard=false"
LOOPBACK = "--node-ip-address=127.0.0.1"
PATIENCE_S = 300.0  # Ray gives a node half a minute to appear, which it may take where the disk is cold or others are busy
LOOK_S = 0.1
# The command line's other groups. Ray does without those that cannot be imported; serve's alone takes a second.
OTHER_GROUPS = ("ray.serve.scripts", "ray.dashboard.modules.job.cli", "ray.util.state.state_cli")


def main() -> None:
    """Start the node and stay until it ends or is told to."""
    for module in OTHER_GROUPS:
        sys.modules[module] = None  # type: ignore[assignment]
    from ray._private import ray_constants, services
    from ray._private.node import Node
    from ray._raylet import DASHBOARD_AGENT_LISTEN_PORT_NAME, persist_port  # type: ignore[attr-defined]
    from ray.scripts.scripts import start

    def left_out(_: Node, **__: Any) -> None:
        """Start nothing."""

    kill_all = Node.kill_all_processes

    def kill_all_and_agents(node: Node, **options: Any) -> None:
        kill_all(node, **options)
        end_session()

    start_raylet = Node.start_raylet

    def start_raylet_at_once(node: Node, *args: Any, **options: Any) -> None:
        # The raylet waits for its agent to write down a port that both were given, and ends if that takes 15 s.
        port = node._ray_params.dashboard_agent_listen_port  # noqa: SLF001
        persist_port(node.get_session_dir_path(), node.node_id, DASHBOARD_AGENT_LISTEN_PORT_NAME, port)
        start_raylet(node, *args, **options)

    Node.start_raylet = start_raylet_at_once
    services.get_node = patient(services.get_node)
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


def patient(find: Callable[[str, str], Any]) -> Callable[[str, str], Any]:
    """Make a look for a node one that waits until it is there."""

    def find_in_time(gcs_address: str, node_id: str) -> Any:
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return find(gcs_address, node_id)
            except RuntimeError:
                if not has_raylet():
                    sys.exit("The raylet ended while the node was started.")
                if time.monotonic() > deadline_s:
                    raise
            time.sleep(LOOK_S)

    return find_in_time


def has_raylet() -> bool:
    """Say whether this node's raylet is still at work."""
    mine = psutil.Process().children()
    return any(each.name() == "raylet" and each.status() != psutil.STATUS_ZOMBIE for each in mine)


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
