"""Lightning's ``Trainer``, elastically: its loop stays its own, and its passes are redone below it when a rank is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from raykit.engine.training.batches import Plan
from raykit.engine.training.framework_units import FrameworkUnits
from raykit.engine.training.loop_state import LoopState, Surroundings
from raykit.engine.training.rows import Sampled
from raykit.engine.training.state import Stateful
from raykit.errors import InputError

MANY_EPOCHS = 10**6  # of a trainer that ends by steps or by a callback


def elastic_trainer(trainer: Any, surroundings: Surroundings, made: Callable[[LoopState], None]) -> None:
    """Make a Trainer's ``fit`` elastic.

    Args:
        trainer: a ``Trainer`` of ``lightning`` or ``pytorch_lightning``.
        surroundings: of the run.
        made: called with the state of the loop, once the trainer has model and optimizer.

    Raises:
        InputError: it distributes the work itself.
    """
    if trainer.world_size > 1:
        raise InputError(
            f"The Trainer distributes the work over {trainer.world_size} processes itself, and raykit does.",
            "Leave strategy and num_nodes out, and give it devices=1.",
        )
    _Elastic(trainer, surroundings, made).attach()


class _Elastic:
    """What an elastic Trainer does otherwise."""

    def __init__(self, trainer: Any, surroundings: Surroundings, made: Callable[[LoopState], None]) -> None:
        self._trainer, self._surroundings, self._made = trainer, surroundings, made
        self._units: FrameworkUnits | None = None
        self._place = 0  # in the epoch that is to be run, of a rank that joins in the middle of it

    def attach(self) -> None:
        fit, epoch = self._trainer.fit_loop, self._trainer.fit_loop.epoch_loop
        optimization = epoch.automatic_optimization
        fit.setup_data = partial(self._setup_data, fit.setup_data)
        fit.on_run_start = partial(self._on_run_start, fit.on_run_start)
        fit.on_run_end = partial(self._on_run_end, fit.on_run_end)
        epoch.reset = partial(self._reset, epoch.reset)
        optimization._make_closure = partial(self._make_closure, optimization._make_closure)  # noqa: SLF001
        strategy = self._trainer.strategy
        is_first = property(lambda _: self._surroundings.member.rank == 0)
        kind = type(strategy)
        strategy.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, "is_global_zero": is_first})

    def _setup_data(self, original: Callable[[], None]) -> None:
        fit = self._trainer.fit_loop
        known = fit._combined_loader  # noqa: SLF001
        original()
        loaders = fit._combined_loader  # noqa: SLF001
        if loaders is None or loaders is known:
            return
        if len(loaders.flattened) != 1 or getattr(loaders.flattened[0], "batch_sampler", None) is None:
            raise InputError("The Trainer was given several loaders, or data without a length.", "Give it one DataLoader.")
        if not self._trainer.lightning_module.automatic_optimization:
            raise InputError(
                "The module optimizes by hand, and a step that a loss broke cannot be made again below it.",
                "Write the loop yourself, with rk.elastic(model=..., optimizer=...) and job.batches(loader).",
            )
        if self._units is not None:
            raise InputError("The Trainer asks for its data again in each epoch.", "Leave reload_dataloaders_every_n_epochs out.")
        self._loader = loaders.flattened[0]
        loaders.flattened = [_Loader(self._loader, self)]
        iter(fit._data_fetcher)  # noqa: SLF001

    def _on_run_start(self, original: Callable[[], None]) -> None:
        """Make the loop's state, be in a world, and begin where it is."""
        trainer = self._trainer
        strategy = trainer.strategy
        cared_for = Stateful(
            model=trainer.lightning_module,
            optimizers=list(trainer.optimizers),
            schedulers=[each.scheduler for each in strategy.lr_scheduler_configs],
            scaler=getattr(strategy.precision_plugin, "scaler", None),
        )
        loop = LoopState(self._surroundings, cared_for)
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else MANY_EPOCHS
        source = Sampled(self._loader, epochs, 0, 0)
        batch_size = self._loader.batch_size or len(source.batch(0) or [0])
        self._units = FrameworkUnits(loop, Plan(source=source, batch_size=batch_size, epochs=epochs, what="DataLoader"))
        self.loop, self.length = loop, len(self._loader)
        self._made(loop)
        self._units.enter()
        self._go_to(self._units.position)
        original()

    def _on_run_end(self, original: Callable[[], None]) -> None:
        assert self._units is not None
        self._units.end()
        original()

    def _go_to(self, position: int) -> None:
        """Count the epochs, batches and steps before a position as done."""
        trainer = self._trainer
        fit, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
        epoch, self._place = divmod(position, self.length)
        if not position:
            return
        for progress in (fit.epoch_progress.total, fit.epoch_progress.current):
            progress.ready = progress.started = progress.processed = progress.completed = epoch
        accumulated = trainer.accumulate_grad_batches
        num_steps = epoch * -(-self.length // accumulated) + self._place // accumulated
        steps = epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
        steps.ready = steps.completed = epoch_loop._batches_that_stepped = num_steps  # noqa: SLF001

    def _reset(self, original: Callable[[], None]) -> None:
        original()
        place, self._place = self._place, 0
        if place:
            progress = self._trainer.fit_loop.epoch_loop.batch_progress.current
            progress.ready = progress.started = progress.processed = progress.completed = place

    def _make_closure(self, original: Callable[..., Any], kwargs: Any, optimizer: Any, batch_idx: int) -> Any:
        """Return a closure whose pass is made again, on the batch as it is divided then, where a peer is lost."""
        assert self._units is not None
        first = original(kwargs, optimizer, batch_idx)

        def run(batch: Any) -> Any:
            if "batch" in kwargs:
                kwargs["batch"] = batch
            return type(first).closure(original(kwargs, optimizer, batch_idx))

        first.closure = partial(self._units.run, len(self._units.batches) - 1, run)
        return first

    def batches(self) -> Iterator[Any]:
        """Give out this rank's parts of the batches that are left of an epoch."""
        units, loop = self._units, self.loop
        assert units is not None
        units.end()
        end = (units.position // self.length + 1) * self.length
        while True:
            if units.is_closed:
                units.end()
                if units.position >= end:
                    return
                batch = next(iter(units.begin(1)), None)
            else:
                batch = units.add() if units.position + len(units.batches) < end else None
            if batch is None:
                break
            yield batch
        units.end()
        if loop.stopping:
            self._trainer.should_stop = True


class _Loader:
    """Looks like the Trainer's DataLoader."""

    def __init__(self, loader: Any, elastic: _Elastic) -> None:
        self._loader, self._elastic = loader, elastic
        self.dataset, self.batch_size, self.sampler = loader.dataset, loader.batch_size, loader.sampler

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return self._elastic.batches()
