"""A kernel as a Ray driver, for who wants to be one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from raykit.engine.setting import NAMESPACE


def connect(address: str, token_file: str) -> Any:
    """Connect this process to the head at ``address`` and give Ray's context.

    Must come before any other ``ray.init`` of this process. The variable about the reconnect time keeps Ray from
    ending the kernel a minute after a head's death.
    """
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

        return ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, ignore_reinit_error=True)
    finally:
        sys.path.remove(shim)
