"""What happens to a service."""

from __future__ import annotations

from dataclasses import dataclass

from raykit.spec.priority import Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOpened:
    """Requests are taken at ``url`` (empty: through the cluster's door), and shall be answered within ``slo_s``."""

    url: str
    slo_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicasWanted:
    """Its requests need so many replicas."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateAsked:
    """Its code and options shall be those of a new version; the first one is 1."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceUpdated:
    """All requests go to replicas of a new version; no older one has any left."""

    version: int
    slo_s: float
    priority: Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRefused:
    """A new version could not be built: ``where`` and why. The one before goes on."""

    version: int
    where: str
    error: str
    traceback_text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestsSampled:
    """What its ingress sees: totals, what is open now, and how long answers of the newest seconds took (None: there were none).

    ``idle_s`` is the time since the last request came; None before the first, and in the log.
    """

    rate_s: float
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    num_waiting: int
    num_open: int
    num_done: int
    num_failed: int
    idle_s: float | None
