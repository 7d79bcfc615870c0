"""What is found on the machines of a cluster before anything is started there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from raykit.cluster.base import versions_here
from raykit.cluster.processes import Ports
from raykit.cluster.ssh.machine import Machine, ask_all
from raykit.errors import ClusterError

NEEDED = {
    "ray": "'ray[default,data]==2.60.*'",
    "torch": "torch",
    "cloudpickle": "cloudpickle",
    "httpx": "httpx",
    "platformdirs": "platformdirs",
    "psutil": "psutil",
    "pydantic": "pydantic",
    "pynvml": "nvidia-ml-py",
    "wrapt": "wrapt",
}
"""What raykit's own code imports on a machine, by the package that brings it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What was found on a machine: the address by which the others reach it, its CPUs, free ports, where things go."""

    machine: Machine
    address: str
    num_cpus: int
    ports: Ports
    folder: str
    temp: str


def sites_of(asked: Sequence[Machine]) -> list[Site]:
    """See what machines have; they reach each other at the addresses at which ssh reached them.

    Raises:
        ClusterError: one lacks something, or has it in another version.
    """
    found = ask_all(asked, lambda machine: machine.ask("look", modules=list(NEEDED), num_ports=len(fields(Ports))))
    for machine, look in zip(asked, found, strict=True):
        _refuse_lack(machine, look)
    # This machine has the address from which the others were asked.
    here = next((look["asker"] for look in found if look["asker"]), "127.0.0.1")
    return [
        Site(
            machine=machine,
            address=look["address"] or here,
            num_cpus=look["num_cpus"],
            ports=Ports(**dict(zip((each.name for each in fields(Ports)), look["ports"], strict=True))),
            folder=folder_of("").replace("~", look["home"], 1),
            temp=look["temp"],
        )
        for machine, look in zip(asked, found, strict=True)
    ]


def folder_of(name: str) -> str:
    return f"~/.raykit/clusters/{name}"


def _refuse_lack(machine: Machine, look: dict[str, Any]) -> None:
    here = versions_here()
    python, ray = here["python_version"], here["ray_version"]
    if look["system"] != "linux":
        raise ClusterError(f"{machine.host} runs {look['system']}; raykit starts nodes on Linux.", "Name another machine.")
    if look["python"] != python:
        raise ClusterError(
            f"{machine.host} has Python {look['python']} ({machine.python}); this kernel is Python {python}, "
            "whose pickled code it cannot read.",
            f"Name a Python {python} of the machines: --python PATH",
        )
    if look["missing"]:
        packages = " ".join(NEEDED[name] for name in look["missing"])
        raise ClusterError(
            f"{machine.host} lacks {', '.join(look['missing'])}.", f"Install there: {machine.python} -m pip install {packages}"
        )
    if look["ray"] != ray:
        raise ClusterError(
            f"{machine.host} has Ray {look['ray']}; here is Ray {ray}, and nodes of two versions do not join.",
            f"Install there: {machine.python} -m pip install 'ray[default,data]=={ray}'",
        )
