"""Who makes clusters where."""

from __future__ import annotations

from raykit.cluster.base import Provider
from raykit.cluster.fake import Fake
from raykit.cluster.kuberay.provider import KubeRay
from raykit.cluster.local import Local
from raykit.cluster.rented.launched import Aws, Gcp
from raykit.cluster.rented.provider import OnRented
from raykit.cluster.rented.sky import SkyPilot
from raykit.cluster.ssh.provider import Ssh
from raykit.spec.cluster import Place

_PROVIDERS: dict[Place, Provider] = {
    "local": Local(),
    "ssh": Ssh(),
    "aws": OnRented(Aws),
    "gcp": OnRented(Gcp),
    "sky": OnRented(SkyPilot),
    "k8s": KubeRay(),
    "fake": Fake(),
}


def provider(place: Place) -> Provider:
    """Give the provider of a place; nothing of it is asked or imported yet."""
    return _PROVIDERS[place]
