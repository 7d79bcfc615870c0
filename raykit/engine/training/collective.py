"""A world of ranks: its process group, and gradients reduced bucket by bucket while backward still runs.

The group is made by itself rather than as torch's global default, so that a survivor leaves a broken one behind and
forms the next in the same process. What ranks say to each other goes by gloo, on the CPU; so do their tensors, unless they
lie on GPUs: those go by NCCL, which was not tried on one yet.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from raykit.engine.training import sockets
from raykit.engine.training.rendezvous import FORM_TIMEOUT, MEET_S, WAIT_LOOK, BrokenWorldError, Number, join_store
from raykit.engine.training.shards import local_of, with_local
from raykit.engine.training.world import Address
from raykit.errors import InputError

OPERATION_TIMEOUT = timedelta(minutes=30)  # a dead peer closes its sockets; a slow one is waited for
EXCHANGED_BYTES = 2**16  # so much at most a rank is given where all tell all
BUCKET_BYTES = 25 * 2**20  # as DDP's default
FIRST_BUCKET_BYTES = 2**20  # as DDP: the first reduction starts early


@dataclass(frozen=True, slots=True, kw_only=True)
class OnItsWay:
    """A sum, or one rank's tensor; of a small sum, what each rank ``told``, to be added up ``into`` it."""

    work: Any
    told: torch.Tensor | None = None
    into: torch.Tensor | None = None

    def add_up(self) -> None:
        if self.told is not None and self.into is not None:
            self.into.copy_(self.told.sum(0))


class Group:
    """The ranks of one generation."""

    def __init__(
        self,
        *,
        store: Address,
        host: str,
        prefix: str,
        rank: int,
        world_size: int,
        device: torch.device,
        outdated: Callable[[], bool],
        given_up: Callable[[], bool],
    ) -> None:
        """Meet the others; blocking until all have come.

        Args:
            store: the rendezvous store, which one of the ranks serves.
            host: the address of this node at which the others reach it.
            prefix: of this generation's keys in it.
            rank: this one's place.
            world_size: how many have to come.
            device: where the tensors lie.
            outdated: says while they meet that this world will not be: some already know of a newer one.
            given_up: says later that somebody will never answer: waits end, and what they waited for is left behind.

        Raises:
            BrokenWorldError: somebody will not come.
        """
        self.rank, self.world_size, self.device = rank, world_size, device
        self._given_up, self._is_broken, self._num_numbers = given_up, False, 0
        try:
            self._keys = keys = dist.PrefixStore(prefix, join_store(store, outdated))
            gloo_device, mine = sockets.open_device(host)
            keys.set(f"device {rank}", f"{mine[0]} {mine[1]}")
            keys.add("arrived", 1)
            while keys.add("arrived", 0) < world_size:
                if outdated():
                    raise BrokenWorldError("a newer world was published")
                time.sleep(MEET_S)
            self._devices = _devices(keys, world_size)
            self._gloo = _gloo(keys, rank, world_size, gloo_device)
            self._nccl = _nccl(keys, rank, world_size) if device.type == "cuda" else None
        except RuntimeError as exc:
            raise BrokenWorldError(str(exc)) from exc

    def reduce(self, tensor: torch.Tensor) -> OnItsWay:
        """Start summing a tensor over the ranks, in place; give what to wait for.

        gloo's all-reduce goes around a ring twice, hop by hop. What is small each rank tells all others at once, and each adds
        it up in the order of ranks (``benchmarks/small_sums.py``).

        Raises:
            BrokenWorldError: a peer is gone.
        """
        if tensor.device.type == "cpu" and tensor.numel() * tensor.element_size() * self.world_size <= EXCHANGED_BYTES:
            return self._exchange(tensor)
        options = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.SUM
        options.timeout = OPERATION_TIMEOUT
        try:
            return OnItsWay(work=self._backend_of(tensor).allreduce([tensor], options))
        except RuntimeError as exc:
            raise self._broken(str(exc)) from exc

    def gather(self, values: list[int]) -> list[list[int]]:
        """Give every rank's integers, by rank; blocking."""
        told = self._exchange(torch.tensor(values, dtype=torch.int64))
        self._wait(told.work)
        assert told.told is not None
        table: list[list[int]] = told.told.tolist()
        return table

    def number(self) -> Number:
        """Give a number that all ranks share: of each the first that it asks for is the same, and so on."""
        self._num_numbers += 1
        return Number(self._keys, f"number {self._num_numbers}", self._given_up)

    def _exchange(self, tensor: torch.Tensor) -> OnItsWay:
        """Start telling all ranks what this one has, and to be told."""
        ours = tensor.reshape(-1).view(torch.uint8).repeat(self.world_size)
        theirs = torch.empty_like(ours)
        try:
            work = self._gloo.alltoall_base(theirs, ours, [], [], dist.AllToAllOptions())
        except RuntimeError as exc:
            raise self._broken(str(exc)) from exc
        return OnItsWay(work=work, told=theirs.view(tensor.dtype).view(self.world_size, *tensor.shape), into=tensor)

    def broadcast(self, data: bytes | None, *, root: int) -> bytes:
        """Give one rank's bytes, which are not empty, to all; blocking."""
        size = self.gather([len(data or b"")])[root][0]
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(size, dtype=torch.uint8)
        self.wait(self.broadcast_tensor(buffer, root=root))
        return bytes(buffer.numpy())

    def broadcast_tensor(self, tensor: torch.Tensor, *, root: int) -> OnItsWay:
        """Start giving one rank's tensor to all, in place; give what to wait for.

        Raises:
            BrokenWorldError: a peer is gone.
        """
        options = dist.BroadcastOptions()
        options.rootRank = root
        options.timeout = OPERATION_TIMEOUT
        try:
            return OnItsWay(work=self._backend_of(tensor).broadcast([tensor], options))
        except RuntimeError as exc:
            raise self._broken(str(exc)) from exc

    def wait(self, awaited: OnItsWay) -> None:
        """Wait until it is here.

        Raises:
            BrokenWorldError: a peer is gone, or will never answer.
        """
        self._wait(awaited.work)
        awaited.add_up()

    def _wait(self, work: Any) -> None:
        while True:
            try:
                work.wait(WAIT_LOOK)
            except RuntimeError as exc:
                if not work.is_completed():  # only this look is over
                    if self._given_up():
                        raise self._broken("the world was given up") from exc
                    continue
                if not work.is_success():
                    raise self._broken(str(exc)) from exc
            return

    def close(self, *, for_all: bool = False) -> None:
        """Leave the world. A broken one's sockets are cut: peers that wait for this rank see it now, not at a timeout.

        Args:
            for_all: so are those of a world that shall be nobody's.
        """
        backends = [each for each in (self._gloo, self._nccl) if each is not None]
        self._gloo = self._nccl = None
        for backend in backends:
            with suppress(RuntimeError):
                backend.abort()
        if self._is_broken or for_all:
            sockets.cut(self._devices)
        # The destructor waits for the group's threads, which were woken just now.
        threading.Thread(target=backends.clear, name="raykit-leave", daemon=True).start()

    def _broken(self, reason: str) -> BrokenWorldError:
        self._is_broken = True
        return BrokenWorldError(reason)

    def _backend_of(self, tensor: torch.Tensor) -> Any:
        return self._nccl if tensor.device.type == "cuda" else self._gloo


def _devices(store: Any, world_size: int) -> set[sockets.Address]:
    """Give where the devices of all ranks listen."""
    told = (store.get(f"device {rank}").decode().split() for rank in range(world_size))
    return {(host, int(port)) for host, port in told}


def _gloo(store: Any, rank: int, world_size: int, device: Any) -> Any:
    options = dist.ProcessGroupGloo._Options()  # noqa: SLF001
    options._devices = [device]  # noqa: SLF001
    options._timeout = FORM_TIMEOUT  # noqa: SLF001
    group = dist.ProcessGroupGloo(store, rank, world_size, options)
    group._set_default_timeout(OPERATION_TIMEOUT)  # an exchange takes no timeout of its own  # noqa: SLF001
    return group


def _nccl(store: Any, rank: int, world_size: int) -> Any:
    return dist.ProcessGroupNCCL(dist.PrefixStore("nccl", store), rank, world_size, dist.ProcessGroupNCCL.Options())


class Reducer:
    """Sums weighted gradients over the ranks, in buckets whose layout is a function of the model alone.

    A newcomer therefore has the survivors' layout; DDP rebuilds its buckets after the first step and would not.
    A step may have several backward passes. What earlier ones left in ``parameter.grad`` is equal on all ranks, so that its
    weighted mean is the same again, and each pass is reduced with all that is there.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], *, sparse: Collection[torch.Tensor] = ()) -> None:
        """Look at parameters from now on; the gradients of ``sparse`` ones name the rows that they are of."""
        self.num_parameters = len(parameters)
        self._buckets = _bucketed(parameters, {id(each) for each in sparse})
        self._group: Group | None = None
        self._weight = 0.0
        self._works: list[Any] = []
        self._beside: Any = None
        self._ready: list[int] = []
        self._error: BrokenWorldError | None = None
        self._torn = self._in_parts = self._is_stale = False
        self._overlaps = True
        self.enabled = True
        self.has_arrived = False
        """Whether backward has given a gradient since this was set to False."""
        self._hooks = [
            _hook_behind(parameter, self._hook(place))
            for place, bucket in enumerate(self._buckets)
            for parameter in bucket.parameters
        ]

    def begin(self, group: Group, weight: float, *, in_parts: bool = False) -> None:
        """Be ready for backward passes whose gradients count ``weight`` rows, or for several that are added up first."""
        if self._torn:
            for bucket in self._buckets:
                bucket.renew()
        self._group, self._weight, self._torn = group, weight, False
        self._in_parts = in_parts
        self.enabled = not in_parts
        self._await_gradients()

    def detach(self) -> None:
        """Look at no parameter any more: another reducer takes its place."""
        for each in self._hooks:
            each.remove()

    def set_weight(self, weight: float) -> None:
        """Count the step's gradients as so many rows; before backward."""
        self._weight = weight

    def add(self, weight: float) -> None:
        """Accumulate this pass's gradients with the given weight and clear ``parameter.grad``.

        Later changes to ``.grad`` do not affect the sum.
        """
        for bucket in self._buckets:
            bucket.add(weight)

    def clear(self) -> None:
        """Have added up nothing."""
        for bucket in self._buckets:
            bucket.flat.zero_()

    def finish(self, group: Group, signs: torch.Tensor) -> None:
        """Start what backward did not reach, and wait for all.

        Args:
            group: of all ranks.
            signs: summed over it, in place, while the last buckets still travel. Its first number is set here: on how many
                ranks a gradient came after its bucket had been sent, which is then sent once more.

        Raises:
            BrokenWorldError: a peer is gone. The gradients are then void.
        """
        signs[0] = float(self._is_stale)
        self._send_and_wait(group, signs)
        if signs[0] > 0:
            self._overlaps = False
            self._await_gradients()
            self._send_and_wait(group, torch.zeros(1))
        self._torn = False
        self._await_gradients()

    def let_go(self) -> None:
        """Give up what is in flight: a work that is held keeps the group's sockets open, and peers would wait on."""
        self._works, self._beside, self._group = [], None, None

    def write_back(self, total_weight: float) -> None:
        """Make the gradients means over ``total_weight`` rows; a parameter that no rank has used has none, as without ranks."""
        for bucket in self._buckets:
            bucket.write_back(1.0 / total_weight, counts_here=self._in_parts or self._weight != 0)

    def _send_and_wait(self, group: Group, signs: torch.Tensor) -> None:
        while len(self._works) < len(self._buckets) and self._error is None:
            self._launch()
        if self._error is not None:
            raise self._error
        assert self._group is not None
        self._beside = group.reduce(signs)
        for work in self._works:
            self._group.wait(work)
        group.wait(self._beside)

    def _await_gradients(self) -> None:
        self._error, self._is_stale = None, False
        self._works, self._ready = [], [len(bucket.parameters) for bucket in self._buckets]

    def _hook(self, place: int) -> Callable[..., None]:
        def arrived(*_: Any) -> None:
            self.has_arrived = True
            if not self.enabled or self._group is None:
                return
            self._is_stale = self._is_stale or place < len(self._works)
            self._ready[place] -= 1
            # All ranks must launch in one order: a bucket that is ready early waits for those before it.
            while self._overlaps and self._error is None and len(self._works) < len(self._buckets):
                if self._ready[len(self._works)] > 0:
                    return
                self._launch()

        return arrived

    def _launch(self) -> None:
        bucket = self._buckets[len(self._works)]
        if not self._in_parts:
            bucket.clear_and_add(self._weight)
        assert self._group is not None
        self._torn = True
        try:
            self._works.append(self._group.reduce(bucket.flat))
        except BrokenWorldError as exc:
            self._error = exc


def _hook_behind(parameter: torch.nn.Parameter, hook: Callable[..., None]) -> Any:
    """Call a hook when backward has accumulated into ``parameter.grad``, behind the hooks that a user has put there."""
    if isinstance(parameter, DTensor):  # FSDP sets the gradient itself, and calls hooks of this kind only
        return parameter.register_post_accumulate_grad_hook(hook)
    node = parameter.view_as(parameter).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    return _Kept(node, node.register_hook(hook))  # type: ignore[union-attr]


@dataclass(frozen=True, slots=True)
class _Kept:
    """A hook of a node of the graph, which lives as long as somebody holds it."""

    node: Any
    handle: Any

    def remove(self) -> None:
        self.handle.remove()


class _Bucket:
    """Gradients of some parameters next to each other, and of each parameter how often it was given one.

    Of a sparse gradient also how often each of its rows was given: an optimizer leaves the other rows alone.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], sparse: set[int]) -> None:
        self.parameters, self._sparse = parameters, sparse
        self.renew()

    def renew(self) -> None:
        """Take new memory: what a broken step left in flight may still write to the old."""
        mine = [local_of(each) for each in self.parameters]
        sizes = [each.numel() for each in mine]
        rows = [each.shape[0] if id(each) in self._sparse else 0 for each in self.parameters]
        # Filled, so that its pages are there before the step that needs them.
        self.flat = torch.empty(sum(sizes) + sum(rows) + len(sizes), dtype=mine[0].dtype, device=mine[0].device).zero_()
        *parts, self._times_given = self.flat.split([*sizes, *rows, len(sizes)])
        self._parts = [part.view_as(each) for part, each in zip(parts, mine, strict=False)]
        self._rows_given = parts[len(sizes) :]

    def clear_and_add(self, weight: float) -> None:
        """Copy the gradients, weighted; they stay where they are."""
        with torch.no_grad():
            self._times_given.zero_()
            self._count(weight)
            for part, rows, parameter in zip(self._parts, self._rows_given, self.parameters, strict=True):
                rows.zero_()
                if parameter.grad is None or weight == 0:
                    part.zero_()
                elif parameter.grad.is_sparse:
                    part.zero_()
                    _add_sparse(part, rows, parameter.grad, weight)
                else:
                    torch.mul(local_of(parameter.grad), weight, out=part)

    def add(self, weight: float) -> None:
        """Add the gradients, weighted, and clear ``parameter.grad``."""
        with torch.no_grad():
            self._count(weight)
            for part, rows, parameter in zip(self._parts, self._rows_given, self.parameters, strict=True):
                if parameter.grad is not None and weight != 0:
                    if parameter.grad.is_sparse:
                        _add_sparse(part, rows, parameter.grad, weight)
                    else:
                        part.add_(local_of(parameter.grad), alpha=weight)
                parameter.grad = None

    def write_back(self, scale: float, *, counts_here: bool) -> None:
        """Set the gradients to the sums times ``scale``; one that no rank was given that counts is None.

        Raises:
            InputError: a gradient is part of a graph.
        """
        times_given: list[float] = []
        with torch.no_grad():
            for place, (part, rows, parameter) in enumerate(zip(self._parts, self._rows_given, self.parameters, strict=True)):
                if parameter.grad is not None and parameter.grad.requires_grad:
                    raise InputError(
                        "backward was called with create_graph=True: what is reduced over the ranks is no part of a rank's graph.",
                        "Take torch.autograd.grad(loss, parameters, create_graph=True), and one backward of the whole loss.",
                    )
                if counts_here and parameter.grad is not None and not parameter.grad.is_sparse:
                    torch.mul(part, scale, out=local_of(parameter.grad))
                    continue
                is_dense = parameter.grad is not None and not parameter.grad.is_sparse
                parameter.grad = None
                times_given = times_given or self._times_given.tolist()
                if not times_given[place]:
                    continue
                if len(rows) and not is_dense:
                    given = rows.real.nonzero().flatten()
                    parameter.grad = torch.sparse_coo_tensor(
                        given[None], part[given] * scale, part.shape, is_coalesced=True, check_invariants=False
                    )
                else:
                    parameter.grad = with_local(parameter, part * scale)

    def _count(self, weight: float) -> None:
        given = [each.grad is not None and weight != 0 for each in self.parameters]
        if all(given):
            self._times_given.add_(1.0)
        elif any(given):
            self._times_given.add_(torch.tensor(given, dtype=self.flat.dtype, device=self.flat.device))


def _add_sparse(part: torch.Tensor, rows: torch.Tensor, gradient: torch.Tensor, weight: float) -> None:
    """Add a sparse gradient, weighted, and count the rows that it has."""
    gradient = gradient.coalesce()
    if len(rows):
        rows[gradient.indices()[0]] += 1
    part.add_(gradient, alpha=weight)


def _bucketed(parameters: list[torch.nn.Parameter], sparse: set[int]) -> list[_Bucket]:
    """Cut the parameters, last first as backward reaches them, by size, dtype and device."""
    buckets: list[list[torch.nn.Parameter]] = []
    size = limit = 0
    for parameter in reversed(parameters):
        same = buckets and (buckets[-1][0].dtype, buckets[-1][0].device) == (parameter.dtype, parameter.device)
        if not same or size >= limit:
            limit = FIRST_BUCKET_BYTES if not buckets else BUCKET_BYTES
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += local_of(parameter).numel() * parameter.element_size()
    return [_Bucket(bucket, sparse) for bucket in buckets]
