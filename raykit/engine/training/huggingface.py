"""Hugging Face's ``Trainer``, elastically: its loop stays its own, and its passes are redone below it when a rank is lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raykit.engine.training.batches import Plan
from raykit.engine.training.framework_units import FrameworkUnits
from raykit.engine.training.loop_state import LoopState, Surroundings
from raykit.engine.training.rows import Sampled
from raykit.engine.training.state import Stateful
from raykit.errors import InputError


def elastic_trainer(trainer: Any, surroundings: Surroundings, made: Any) -> None:
    """Make a Trainer's ``train`` elastic.

    Args:
        trainer: a ``transformers.Trainer``; gets a subclass of its class.
        surroundings: of the run.
        made: called with the state of the loop, once the trainer has made model and optimizer.

    Raises:
        InputError: it distributes the work itself, or packs its data so that it cannot be divided.
    """
    args = trainer.args
    if args.deepspeed or getattr(args, "fsdp", None) or args.world_size > 1:
        raise InputError(
            "The Trainer distributes the work itself (DeepSpeed, FSDP or several processes), and raykit does.",
            "Leave deepspeed and fsdp out of TrainingArguments.",
        )
    if args.auto_find_batch_size:
        raise InputError("auto_find_batch_size would find another size on each rank.", "Give per_device_train_batch_size.")
    kind = type(trainer)
    trainer.__class__ = type(kind.__name__, (_Elastic, kind), {"__module__": kind.__module__})
    trainer._raykit_units = None  # noqa: SLF001
    trainer._raykit = (surroundings, made)  # noqa: SLF001


class _Loader:
    """Looks like the Trainer's DataLoader, and gives out this rank's parts of an epoch's batches, unit by unit."""

    def __init__(self, loader: Any, batch_size: int) -> None:
        self.loader, self.dataset, self.batch_size = loader, loader.dataset, batch_size
        self.units: FrameworkUnits | None = None
        self.unit_size = 1

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        assert self.units is not None
        units, length = self.units, len(self)
        end = (units.position // length + 1) * length  # of the epoch
        while units.position < end and (batches := units.begin(min(self.unit_size, end - units.position))):
            yield from batches
            units.end()


class _Elastic:
    """What an elastic Trainer does otherwise."""

    def get_train_dataloader(self: Any) -> Any:
        loader = super().get_train_dataloader()  # type: ignore[misc]
        if not hasattr(loader, "batch_sampler") or loader.batch_sampler is None or not hasattr(loader.dataset, "__len__"):
            raise InputError(
                "The Trainer's data is an iterable, whose epochs have no known length.", "Give it a dataset that has a length."
            )
        self._raykit_loader = _Loader(loader, self._train_batch_size)
        return self._raykit_loader

    def _prepare_for_training(self: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)  # type: ignore[misc]
        surroundings, made = self._raykit
        loader = self._raykit_loader
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # without the wrapper of Accelerate
        scheduler = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        scaler = getattr(self.accelerator, "scaler", None)
        cared_for = Stateful(model=self.model, optimizers=[optimizer], schedulers=[scheduler], scaler=scaler)
        loop = LoopState(surroundings, cared_for)
        epochs = int(-(-self.args.num_train_epochs // 1)) if self.args.max_steps <= 0 else 10**6
        source = Sampled(loader.loader, epochs, self.args.seed, 0)
        plan = Plan(source=source, batch_size=loader.batch_size, epochs=epochs, what="Trainer's dataset")
        loader.units = self._raykit_units = FrameworkUnits(loop, plan)
        loader.unit_size = self.args.gradient_accumulation_steps
        made(loop)
        self._raykit_loop = loop
        return prepared[0], loader

    def _run_epoch(self: Any, *, epoch: int, steps_in_epoch: int, num_update_steps_per_epoch: int, **rest: Any) -> None:
        """Run what is left of an epoch: a rank that joins begins where the others are."""
        units = self._raykit_units
        if not units.enter():
            self.control.should_training_stop = True
            return
        present, place = divmod(units.position, steps_in_epoch)
        if epoch < present:
            return
        done = place // self.args.gradient_accumulation_steps
        self.state.global_step = epoch * num_update_steps_per_epoch + done
        self._globalstep_last_logged = min(self._globalstep_last_logged, self.state.global_step)
        super()._run_epoch(  # type: ignore[misc]
            epoch=epoch,
            steps_in_epoch=steps_in_epoch - place,
            num_update_steps_per_epoch=num_update_steps_per_epoch - done,
            **rest,
        )
        if self._raykit_loop.stopping:
            self.control.should_training_stop = True

    def get_batch_samples(self: Any, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        samples = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        self._raykit_number = 0
        return samples

    def training_step(self: Any, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:  # noqa: ARG002
        units, loop = self._raykit_units, self._raykit_loop
        step = super().training_step  # type: ignore[misc]

        def run(batch: Any) -> Any:
            num_items = num_items_in_batch
            if num_items is not None:  # the loss is a mean over them, of the whole unit
                num_items = self._get_num_items_in_batch(units.batches, self.args.device)
                loop.unit.weigh(float(num_items))
            return step(model, batch, num_items)

        number, self._raykit_number = self._raykit_number, self._raykit_number + 1
        loss = units.run(number, run)
        self._raykit_loss = float(loss) + (self._raykit_loss if number else 0.0)
        loop.show({"loss": self._raykit_loss})
        return loss

    def _finalize_training(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._raykit_units.end()
        return super()._finalize_training(*args, **kwargs)  # type: ignore[misc]

    def is_world_process_zero(self: Any) -> bool:
        return bool(self._raykit_units is None or self._raykit_loop.member.rank == 0)

    def _save_checkpoint(self: Any, *args: Any, **kwargs: Any) -> None:
        """Write the Trainer's own checkpoints from one rank: all have the same folder."""
        if self.is_world_process_zero():
            super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]
