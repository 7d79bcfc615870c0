"""A kernel as a Ray driver, for who wants to be one."""

from __future__ import annotations

import atexit
import os
import socket
import sys
from pathlib import Path
from typing import Any

from raykit.engine.setting import NAMESPACE
from raykit.errors import ClusterError


def connect(address: str, token_file: str) -> Any:
    """Connect this process to the head at ``address`` and give Ray's context.

    The variable about the reconnect time keeps Ray from ending the kernel a minute after a head's death.

    Raises:
        ClusterError: this process is a driver of another cluster.
    """
    _refuse_another(address)
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": token_file,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "86400",
    }
    shim = str(Path(__file__).parents[1] / "cluster" / "shim")
    sys.path.insert(0, shim)
    try:
        import ray

        if not ray.is_initialized():
            _read_environment_again()
        context = ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, ignore_reinit_error=True)
    finally:
        sys.path.remove(shim)
    atexit.register(_leave, address)
    return context


def _refuse_another(address: str) -> None:
    """Raise where this process is a driver of another cluster: Ray would stay with that one, and say nothing."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and ray.get_runtime_context().gcs_address != address:
        raise ClusterError(
            f"This process is connected to Ray at {ray.get_runtime_context().gcs_address} already.",
            "Leave that one first: ray.shutdown()",
        )


def _read_environment_again() -> None:
    """Have Ray read what it has read at its import, if that came before; it looks for the head at another address else."""
    import ray
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False
    ray._raylet.Config.initialize("")  # noqa: SLF001
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()  # noqa: SLF001


def disconnect(address: str) -> None:
    """Let go of the head at ``address``, if this process is a driver of it: one that dies would hold the driver for a day."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and ray.get_runtime_context().gcs_address == address:
        ray.shutdown()


def _leave(address: str) -> None:
    """At exit: when the head is dead, Ray's own farewell would wait for it as long as the reconnect time says."""
    import ray

    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        atexit.unregister(ray.shutdown)
