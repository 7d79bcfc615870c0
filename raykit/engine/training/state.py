"""All of a training loop that has a state: model, optimizers, schedulers, scaler, and where it stands.

A state is nested dicts, lists and tensors. To travel or to be written it is taken apart, into its tensors by dotted names
and the structure that is left.
"""

from __future__ import annotations

import copy
import inspect
import pickle
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from raykit.engine.training.collective import Group, OnItsWay
from raykit.engine.training.shards import lay_out_model, lay_out_optimizer, parts_of
from raykit.errors import InputError

State = dict[str, Any]
Tensors = dict[str, torch.Tensor]

IN_FLIGHT = 8
PARCEL_BYTES = 2**20  # smaller tensors travel put together, so that each costs no round trip; larger ones uncopied


@dataclass(frozen=True, slots=True, kw_only=True)
class Stateful:
    """The objects whose state a joiner takes over and a checkpoint keeps."""

    model: torch.nn.Module
    optimizers: list[Any]
    schedulers: list[Any]
    scaler: Any
    extras: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check that the optimizers step what is the model's, by gradients alone, and that all else has a state.

        Raises:
            InputError: there is more, which nobody would reduce; a ``step`` needs an argument; something has no state.
        """
        for each in self.optimizers:
            # The class's own: a scheduler has put another in the object's place, whose signature is wrong.
            step = partial(type(each).step, each)
            _check_step(
                each,
                step,
                "Take an optimizer that steps by gradients alone, such as Adam: one that calls a closure as often as it likes "
                "would see the loss of each rank's rows only.",
            )
        for each in (*self.schedulers, *self.extras):
            if not (callable(getattr(each, "state_dict", None)) and callable(getattr(each, "load_state_dict", None))):
                raise InputError(
                    f"A {type(each).__name__} was given to rk.elastic, and has no state_dict and load_state_dict.",
                    "Give it both: by them a rank that joins learns what the others have.",
                )
        self.check_owned()

    def check_owned(self) -> None:
        """Raise InputError if an optimizer steps a tensor that is no parameter of the model: nobody would reduce its gradient."""
        known = {id(each) for each in self.model.parameters()}
        stepped = [each for optimizer in self.optimizers for group in optimizer.param_groups for each in group["params"]]
        if foreign := sum(id(each) not in known for each in stepped):
            raise InputError(
                f"The optimizer steps {foreign} of {len(stepped)} tensors that are no parameters of the model: "
                "the ranks would drift apart.",
                "Give rk.elastic a model that holds them all, as torch.nn.ModuleList([model, head]).",
            )

    def state(self) -> State:
        """Give the state as it is, sharing memory with what it describes."""
        return {
            "model": self.model.state_dict(),
            "buffers": [name for name, _ in self.model.named_buffers()],
            "optimizers": [each.state_dict() for each in self.optimizers],
            "schedulers": [each.state_dict() for each in self.schedulers],
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "extras": [each.state_dict() for each in self.extras],
        }

    def adopt(self, state: State) -> None:
        """Take over a state, of whole tensors or of this rank's parts."""
        self.adopt_model(state)
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(lay_out_optimizer(kept, optimizer))
        for scheduler, kept in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(kept)
        for extra, kept in zip(self.extras, state.get("extras", []), strict=True):
            extra.load_state_dict(kept)
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])

    def adopt_model(self, state: State) -> None:
        """Take over the model of a state alone."""
        self._make_buffers(state)
        self.model.load_state_dict(lay_out_model(state["model"], self.model))

    def _make_buffers(self, state: State) -> None:
        """Make the buffers that a module makes in its first forward pass, which this rank may not have run yet."""
        mine = dict(self.model.named_buffers())
        device = next((each.device for each in self.model.parameters()), None)
        for name in state.get("buffers", ()):
            if name in state["model"] and name not in mine:
                owner, _, key = name.rpartition(".")
                self.model.get_submodule(owner).register_buffer(key, torch.empty_like(state["model"][name], device=device))


@dataclass(frozen=True, slots=True)
class _TensorAt:
    """Stands in a structure for the tensor of that name."""

    name: str


@dataclass(frozen=True, slots=True)
class Structure:
    """A state without its tensors: with its empty parts, and its keys of any type."""

    whole: Any

    def filled(self, tensors: Tensors) -> State:
        """Put the state together again."""
        state: State = _filled(self.whole, tensors)
        return state


def apart(state: State) -> tuple[Structure, Tensors]:
    """Take a state apart; the tensors are its own, all else is copied."""
    tensors: Tensors = {}
    return Structure({name: _apart(value, name, tensors) for name, value in state.items()}), tensors


def size_of(state: State) -> int:
    """Give how many bytes a state's tensors have."""
    return sum(each.numel() * each.element_size() for each in apart(state)[1].values())


def given(group: Group, state: State | None, *, root: int = 0) -> State:
    """Give the state of one of the group's ranks to all of it: this rank's parts; blocking.

    ``IN_FLIGHT`` tensors are on their way at once, since to wait for each would cost, for each, the time in which a busy
    machine wakes both; no more, because those that do not lie in one piece are copied.

    Raises:
        BrokenWorldError: a peer is gone.
    """
    tensors: Tensors = {}
    head: bytes | None = None
    if state is not None:
        structure, tensors = apart(parts_of(state))
        head = pickle.dumps((structure, {name: (each.shape, each.dtype, each.device.type) for name, each in tensors.items()}))
    structure, forms = pickle.loads(group.broadcast(head, root=root))  # noqa: S301  (came from a rank of this run)
    on_their_way = deque[OnItsWay]()
    for names in _parcels(forms):
        shapes = [forms[name][0] for name in names]
        _, dtype, kind = forms[names[0]]
        if state is not None:
            ours = [tensors[name].detach().reshape(-1) for name in names]
            flat = torch.cat(ours) if len(ours) > 1 else ours[0].contiguous()
        else:
            device = group.device if kind != "cpu" else torch.device("cpu")
            flat = torch.empty(sum(map(torch.Size.numel, shapes)), dtype=dtype, device=device)
            parts = flat.split([shape.numel() for shape in shapes])
            tensors |= {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        on_their_way.append(group.broadcast_tensor(flat, root=root))
        if len(on_their_way) > IN_FLIGHT:
            group.wait(on_their_way.popleft())
    while on_their_way:
        group.wait(on_their_way.popleft())
    filled: State = structure.filled(tensors)
    return filled


def check_steps_by_itself(scheduler: Any, step: Callable[..., Any]) -> None:
    """Raise InputError if ``job.commit`` cannot step a scheduler because its ``step`` needs an argument."""
    _check_step(
        scheduler,
        step,
        "Call optimizer.step() in the loop instead of job.commit(), and scheduler.step(...) with what it needs.",
    )


def _check_step(stepped: Any, step: Callable[..., Any], remedy: str) -> None:
    try:
        inspect.signature(step).bind()
    except TypeError as exc:
        raise InputError(f"job.commit cannot step a {type(stepped).__name__}: {exc}.", remedy) from None


def _parcels(forms: dict[str, Any]) -> Iterator[list[str]]:
    """Put tensors of one type together, in their order, up to ``PARCEL_BYTES``; a larger one stays alone."""
    parcel: list[str] = []
    filled, kind = 0, None
    for name, (shape, dtype, device) in forms.items():
        size = shape.numel() * dtype.itemsize
        if parcel and (filled + size > PARCEL_BYTES or (dtype, device) != kind):
            yield parcel
            parcel, filled = [], 0
        parcel.append(name)
        filled, kind = filled + size, (dtype, device)
    if parcel:
        yield parcel


def _apart(value: Any, name: str, tensors: Tensors) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return _TensorAt(name)
    if isinstance(value, dict):
        return {key: _apart(each, f"{name}.{key}", tensors) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_apart(each, f"{name}.{place}", tensors) for place, each in enumerate(value))
    return copy.deepcopy(value)


def _filled(structure: Any, tensors: Tensors) -> Any:
    if isinstance(structure, _TensorAt):
        return tensors[structure.name]
    if isinstance(structure, dict):
        return {key: _filled(each, tensors) for key, each in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)(_filled(each, tensors) for each in structure)
    return structure
