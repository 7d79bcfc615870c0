"""What cluster is wanted."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, Literal

from raykit.errors import OptionError
from raykit.spec.options import amount, check_range, count, hourly, memory, one_or_range, option, pairs, percent, seconds, words

SMALL_CPUS = 2
LEAST_OBJECT_STORE_BYTES = 75_000_000  # Ray takes no less
SMALL_OBJECT_STORE_BYTES = 80_000_000
LEAST_SAMPLE_S = 0.2

THIS_MACHINE = "here"  # among --hosts
Place = Literal["local", "ssh", "aws", "gcp", "sky", "k8s", "fake"]
PLACES: dict[str, str] = {
    "local": "this machine",
    "ssh": "machines that ssh reaches",
    "aws": "Amazon's cloud",
    "gcp": "Google's cloud",
    "sky": "any cloud, by SkyPilot",
    "k8s": "Kubernetes, by KubeRay",
    "fake": "nowhere: a stand-in that runs nothing",
}
HERE, SSH, KUBE, SKY, LAUNCHED = ("local", "fake"), ("ssh", "fake"), ("k8s", "fake"), ("sky", "fake"), ("aws", "gcp", "fake")
DATED = ("aws", "gcp", "k8s", "fake")  # they tell since when a cluster is suspended
OWN, SPOT, SIZED = ("local", "ssh", "aws", "gcp", "fake"), ("aws", "gcp", "sky", "fake"), ("sky", "k8s", "fake")
REACHED, RENTED = ("ssh", "aws", "gcp", "sky", "fake"), ("aws", "gcp", "sky", "k8s", "fake")
CHOICES = {
    "aws": {"machine": "m6i.xlarge", "region": "us-west-2"},
    "gcp": {"machine": "n2-standard-4", "region": "us-central1-a"},
}
"""What a place takes where nothing is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGpus:
    """The GPUs of each node: how many, and of which type; an empty type takes any."""

    kind: str = ""
    count: int = 1

    def __str__(self) -> str:
        return f"{self.kind}:{self.count}" if self.kind else str(self.count)


def node_gpus(text: str) -> NodeGpus:
    """Read ``4``, ``A100`` or ``A100:4``."""
    if text.isdigit():
        return NodeGpus(count=int(text))
    kind, colon, number = text.partition(":")
    if not kind:
        raise ValueError(f"{text!r} names no GPU type: write A100:4, or 4 for any type")
    return NodeGpus(kind=kind, count=count(number) if colon else 1)


def _chosen(name: str) -> str:
    """Tell of an option what each place takes for it."""
    return " (" + ", ".join(f"{place}: {chosen[name]}" for place, chosen in CHOICES.items()) + ")"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """A cluster: where it is, its slots, its nodes, and what runs beside it.

    ``None`` leaves the choice to the place. ``profile="small"`` is for machines of 2 GB: two CPUs, a small
    object store, and training without a warm spare unless it asks for one.
    """

    name: str = option("NAME", default="local", help="how the cluster is called", read=str)
    place: Literal["local", "ssh", "aws", "gcp", "sky", "k8s", "fake"] = option(
        "--on", default="local", help=f"where it is: {', '.join(PLACES)}", read=str, metavar="PLACE"
    )
    num_cpus: float | None = option("--cpus", default=None, help="CPU slots of each node", read=amount, metavar="N")
    num_gpus: float | None = option("--gpus", default=None, help="GPUs of each node", read=amount, metavar="N", places=OWN)
    num_simulated_gpus: int = option(
        "--simulate-gpus", default=0, help="slots that stand for GPUs and are none", read=count, metavar="N", places=OWN
    )
    num_nodes: int | tuple[int, int] | None = option(
        "--nodes",
        default=None,
        help="Ray nodes: one if not given, or all of --hosts; on Kubernetes 0:8 lets workers come and go as runs need them",
        read=one_or_range,
        metavar="N",
    )
    dashboard: bool = option("--dashboard", default=False, help="start Ray's dashboard too (300 MB more)", places=HERE)
    object_store_bytes: int | None = option(
        "--object-store", default=None, help="size of the object store of each node", read=memory, metavar="200M"
    )
    sample_s: float = option(
        "--sample-every", default=1.0, help="how often to look at what runs use, 0 for never", read=seconds, metavar="1s"
    )
    profile: Literal["standard", "small"] = option(
        "--profile", default="standard", help="standard, or small for machines of 2 GB", read=str, places=HERE
    )
    hosts: tuple[str, ...] = option(
        "--hosts",
        default=(),
        help="the machines, the head first; 'here' is this one",
        read=words,
        metavar="USER@HOST,..",
        places=SSH,
    )
    key: str = option("--key", default="", help="file of the private key; ssh's own if not given", read=str, places=SSH)
    ssh_config: str = option("--ssh-config", default="", help="file; ssh's own if not given", read=str, places=REACHED)
    python: str = option("--python", default="", help="the machines' Python (python3)", read=str, metavar="PATH", places=REACHED)
    machine: str = option(
        "--machine", default="", help=f"type of the machines{_chosen('machine')}", read=str, metavar="g5.xlarge", places=LAUNCHED
    )
    region: str = option(
        "--region", default="", help=f"where they are; of Google's cloud a zone{_chosen('region')}", read=str, places=LAUNCHED
    )
    user: str = option("--user", default="ubuntu", help="who logs in to them", read=str, places=LAUNCHED)
    spot: bool = option("--spot", default=False, help="cheaper machines that may be taken away", places=SPOT)
    infra: str = option(
        "--infra",
        default="",
        help="SkyPilot's cloud/region/zone; the cheapest if not given",
        read=str,
        metavar="aws/us-west-2",
        places=SKY,
    )
    gpus_per_node: NodeGpus | None = option(  # noqa: RUF009  (it makes a field)
        "--gpus-per-node", default=None, help="GPUs of each worker, with their type", read=node_gpus, metavar="A100:4", places=SIZED
    )
    memory_bytes: int | None = option(
        "--memory", default=None, help="memory of each worker", read=memory, metavar="16G", places=SIZED
    )
    image: str = option(
        "--image", default="", help="image with Ray, torch and this Python; of a cloud its machines' image", read=str, places=RENTED
    )
    namespace: str = option("--namespace", default="", help="the context's own if not given", read=str, places=KUBE)
    context: str = option("--context", default="", help="of the kubeconfig; its current one if not given", read=str, places=KUBE)
    kubeconfig: str = option("--kubeconfig", default="", help="file; kubectl's own if not given", read=str, places=KUBE)
    queue: str = option("--queue", default="", help="a LocalQueue of Kueue that admits it", read=str, places=KUBE)
    tolerations: tuple[str, ...] = option(
        "--tolerate", default=(), help="taints that its pods bear", read=words, metavar="KEY=VALUE:EFFECT,..", places=KUBE
    )
    node_selector: tuple[tuple[str, str], ...] = option(
        "--node-selector",
        default=(),
        help="labels of the nodes that workers go to",
        read=pairs,
        metavar="KEY=VALUE,..",
        places=KUBE,
    )
    together: str = option(
        "--together", default="", help="keep workers in one domain, as topology.kubernetes.io/zone", read=str, places=KUBE
    )
    service_account: str = option("--service-account", default="", help="of its pods", read=str, places=KUBE)
    labels: tuple[tuple[str, str], ...] = option(
        "--labels", default=(), help="of all that is made for it", read=pairs, metavar="KEY=VALUE,..", places=KUBE
    )
    volumes: tuple[tuple[str, str], ...] = option(
        "--volumes", default=(), help="volume claims and where they are mounted", read=pairs, metavar="CLAIM=/PATH,..", places=KUBE
    )
    idle_s: float | None = option(
        "--idle", default=None, help="suspend it when nothing has run for so long", read=seconds, metavar="20m", places=RENTED
    )
    idle_gpu_utilization: float | None = option(
        "--idle-gpus",
        default=None,
        help="with --idle: GPUs that are used less are idle, whoever holds them",
        read=percent,
        metavar="5%",
        places=RENTED,
    )
    price_per_node_h: float | None = option(
        "--price",
        default=None,
        help="what a worker (of a cloud a machine) costs an hour, where you know it",
        read=amount,
        metavar="4.10",
        places=RENTED,
    )
    max_cost_per_h: float | None = option(
        "--max-cost", default=None, help="never have more workers than this pays for", read=hourly, metavar="30/h", places=RENTED
    )
    budget: float | None = option(
        "--budget",
        default=None,
        help="suspend it when it has cost so much since it came up",
        read=amount,
        metavar="200",
        places=RENTED,
    )
    delete_after_s: float | None = option(
        "--delete-after",
        default=None,
        help="have %ray clusters end it when it has been suspended for so long",
        read=seconds,
        metavar="7d",
        places=DATED,
    )

    @property
    def nodes(self) -> int | tuple[int, int]:
        """How many nodes it has, or the least and the most."""
        return max(1, len(self.hosts)) if self.num_nodes is None else self.num_nodes

    def chosen(self, name: str) -> Any:
        """Give an option's value, or what stands for it where nothing was said."""
        if name == "num_nodes":
            return self.nodes
        said = getattr(self, name)
        return said or CHOICES.get(self.place, {}).get(name, said)

    @property
    def guards(self) -> dict[str, float | None]:
        """What the hub's guard has to keep, by the names of its setting; empty where nobody asked for one."""
        if self.idle_s is None and self.budget is None:
            return {}
        names = ("idle_s", "idle_gpu_utilization", "budget")
        return {name: getattr(self, name) for name in names} | {"price_per_node_h": self.price_per_node_h or 0.0}

    @property
    def min_nodes(self) -> int:
        return self.nodes if isinstance(self.nodes, int) else self.nodes[0]

    @property
    def max_nodes(self) -> int:
        return self.nodes if isinstance(self.nodes, int) else self.nodes[1]

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            known = "; ".join(f"{name} ({what})" for name, what in PLACES.items())
            raise OptionError(f"There is no place {self.place!r}.", f"There are: {known}.")
        self._refuse_unknown_here()
        self._check_name()
        self._check_nodes()
        if self.num_gpus and self.num_simulated_gpus:
            raise OptionError("--gpus and --simulate-gpus were both given.", "Give one of them: slots are real or simulated.")
        if self.profile not in ("standard", "small"):
            raise OptionError(f"--profile is {self.profile!r}.", "There are two: standard and small.")
        if 0 < self.sample_s < LEAST_SAMPLE_S:
            raise OptionError(
                f"--sample-every is {self.sample_s:g} s.", "GPUs tell nothing new that often: give 0.2s or more, or 0."
            )
        if self.object_store_bytes is not None and self.object_store_bytes < LEAST_OBJECT_STORE_BYTES:
            raise OptionError(f"--object-store is {self.object_store_bytes} bytes.", "Ray wants at least 75M.")
        if self.gpus_per_node is not None and self.gpus_per_node.count < 1:
            raise OptionError(f"--gpus-per-node is {self.gpus_per_node}.", "Leave it out for nodes without GPUs.")
        if self.place == "sky" and self.gpus_per_node is not None and not self.gpus_per_node.kind:
            raise OptionError(f"--gpus-per-node {self.gpus_per_node} names no type, and SkyPilot wants one.", "Write A100:4.")
        if self.queue and self.min_nodes != self.max_nodes:
            raise OptionError(
                f"--queue {self.queue} and --nodes {self.min_nodes}:{self.max_nodes} were both given: Kueue admits a cluster whole, "
                "and Ray's autoscaler would change it afterwards.",
                f"Give one number of nodes, as --nodes {self.max_nodes}, or no queue.",
            )
        if self.place == "gcp" and not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", zone := self.chosen("region")):
            raise OptionError(f"--region {zone} is no zone of Google's cloud.", "Write one, as us-central1-a.")
        self._check_idleness()
        self._check_cost()

    def _check_idleness(self) -> None:
        if self.idle_s is not None and self.idle_s <= 0:
            raise OptionError("--idle is 0.", "Give a time, as --idle 20m, or leave it out: it is never suspended then.")
        if self.delete_after_s is not None and self.delete_after_s <= 0:
            raise OptionError("--delete-after is 0.", "Give a time, as --delete-after 7d, or end it yourself: %ray down NAME")
        if self.idle_gpu_utilization is not None and self.idle_s is None:
            raise OptionError("--idle-gpus was given, and not for how long.", "Give a time with it, as --idle 20m.")

    def _refuse_unknown_here(self) -> None:
        for each in fields(self):
            places = each.metadata["places"]
            if places and self.place not in places and getattr(self, each.name) != each.default:
                flag = each.metadata["option"][0][0]
                raise OptionError(f"{flag} means nothing for --on {self.place}.", f"It is for: {', '.join(places)}.")

    def _check_name(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", self.name):
            raise OptionError(f"{self.name!r} cannot name a cluster.", "Use up to 40 letters, digits, - and _.")
        if self.place in ("k8s", "gcp") and not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", self.name):
            where = "on Kubernetes" if self.place == "k8s" else f"in {PLACES[self.place]}"
            raise OptionError(f"{self.name!r} cannot name a cluster {where}.", "Use small letters, digits and -, a letter first.")

    def _check_nodes(self) -> None:
        if self.place not in ("k8s", "fake") and self.min_nodes != self.max_nodes:
            raise OptionError(
                f"--nodes {self.min_nodes}:{self.max_nodes}: nodes of {PLACES[self.place]} do not come and go by themselves.",
                f"Give one number, as --nodes {self.max_nodes}, and change it with %ray scale.",
            )
        if self.place == "ssh":
            self._check_hosts()
        check_range("--nodes", self.min_nodes, self.max_nodes, least=0 if self.place == "k8s" else 1)
        if self.max_nodes < 1:
            raise OptionError("--nodes is 0.", "Give at least one, or 0:1 for one that comes when it is needed.")

    def _check_hosts(self) -> None:
        if not self.hosts:
            raise OptionError("--on ssh was given, and no machines.", "Name them, the head first: --hosts alice@gpu1,alice@gpu2")
        if twice := sorted({host for host in self.hosts if self.hosts.count(host) > 1}):
            raise OptionError(f"--hosts names {', '.join(twice)} twice.", "A machine is one node: name each once.")
        if options := [host for host in self.hosts if host.startswith("-")]:
            raise OptionError(f"--hosts names {options[0]}, which ssh would take for an option.", "Name machines.")
        if self.max_nodes > len(self.hosts):
            raise OptionError(
                f"{self.max_nodes} nodes were asked, and --hosts names {len(self.hosts)}.",
                "A machine is one node: name more of them.",
            )

    def _check_cost(self) -> None:
        for flag, limit in (("--max-cost", self.max_cost_per_h), ("--budget", self.budget)):
            if limit is not None and not self.price_per_node_h:
                raise OptionError(f"{flag} was given, and what a node costs is not known here.", "Say it: --price 4.10")
        if self.budget is not None and self.budget <= 0:
            raise OptionError("--budget is 0.", "Give what it may cost, as --budget 200, or leave it out.")
        if self.max_cost_per_h is None or self.price_per_node_h is None:
            return
        if (most := self.max_nodes * self.price_per_node_h) > self.max_cost_per_h:
            raise OptionError(
                f"{self.max_nodes} nodes cost {most:.2f} an hour, more than --max-cost {self.max_cost_per_h:g}/h.",
                f"It pays for {self.max_cost_per_h // self.price_per_node_h:.0f} nodes.",
            )


def shown(value: Any) -> str:
    """Give an option's value as it would be typed."""
    if isinstance(value, tuple):
        numbers = all(isinstance(part, int) for part in value)
        return (
            ":".join(map(str, value))
            if numbers
            else ",".join("=".join(part) if isinstance(part, tuple) else part for part in value)
        )
    return f"{value:g}" if isinstance(value, float) else str(value)
