"""A Jupyter-native toolkit for Ray: clusters, elastic training and multi-stage pipelines from notebook cells.

Names are imported when they are first used: ``import raykit`` brings in neither ray nor torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if sys.version_info < (3, 11) or sys.version_info >= (3, 14):
    raise ImportError(f"raykit works with Python 3.11 to 3.13; this is {sys.version.split()[0]}.")

if TYPE_CHECKING:
    from raykit.client.pipeline import Pipeline, stage
    from raykit.client.result import Result
    from raykit.client.run import Run, run, train
    from raykit.client.service import Service, serve, service
    from raykit.client.session import (
        clusters,
        connect,
        doctor,
        down,
        plan,
        resume,
        runs,
        scale,
        status,
        stop,
        suspend,
        up,
        use,
        watch,
    )
    from raykit.client.sources import files
    from raykit.engine.device import device
    from raykit.engine.training.elastic import elastic
    from raykit.errors import (
        CapacityError,
        CaptureError,
        CellError,
        ClusterDiffersError,
        ClusterError,
        ClusterLostError,
        InputError,
        MissingPackageError,
        NoClusterError,
        OptionError,
        RaykitError,
        RequestError,
        RunError,
        RunFailedError,
        RunLostError,
        RunNameTakenError,
        RunNotFoundError,
        RunStoppedError,
        SourceError,
        UpdateRefusedError,
        WaitTimeoutError,
    )
    from raykit.jupyter.picker import ClusterPicker

__version__ = "0.1.0"

_HOMES = {
    "raykit.client.pipeline": ("Pipeline", "stage"),
    "raykit.client.result": ("Result",),
    "raykit.client.run": ("Run", "run", "train"),
    "raykit.client.service": ("Service", "serve", "service"),
    "raykit.client.session": (
        *("clusters", "connect", "doctor", "down", "plan", "resume", "runs", "scale", "status", "stop", "suspend"),
        *("up", "use", "watch"),
    ),
    "raykit.client.sources": ("files",),
    "raykit.engine.device": ("device",),
    "raykit.engine.training.elastic": ("elastic",),
    "raykit.errors": (
        *("RaykitError", "InputError", "OptionError", "CellError", "CaptureError", "SourceError", "MissingPackageError"),
        *("ClusterError", "NoClusterError", "ClusterLostError", "ClusterDiffersError", "CapacityError"),
        *("RunError", "RunNotFoundError", "RunNameTakenError", "RunFailedError", "UpdateRefusedError", "RunStoppedError"),
        *("RequestError", "WaitTimeoutError", "RunLostError"),
    ),
    "raykit.jupyter.picker": ("ClusterPicker",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CapacityError",
    "CaptureError",
    "CellError",
    "ClusterDiffersError",
    "ClusterError",
    "ClusterLostError",
    "ClusterPicker",
    "InputError",
    "MissingPackageError",
    "NoClusterError",
    "OptionError",
    "Pipeline",
    "RaykitError",
    "RequestError",
    "Result",
    "Run",
    "RunError",
    "RunFailedError",
    "RunLostError",
    "RunNameTakenError",
    "RunNotFoundError",
    "RunStoppedError",
    "Service",
    "SourceError",
    "UpdateRefusedError",
    "WaitTimeoutError",
    "clusters",
    "connect",
    "device",
    "doctor",
    "down",
    "elastic",
    "files",
    "plan",
    "resume",
    "run",
    "runs",
    "scale",
    "serve",
    "service",
    "stage",
    "status",
    "stop",
    "suspend",
    "train",
    "up",
    "use",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'raykit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def load_ipython_extension(shell: Any) -> None:
    """Answer ``%load_ext raykit``."""
    from raykit.jupyter.magics import register

    register(shell)
