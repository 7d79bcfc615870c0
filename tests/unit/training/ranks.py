"""Ranks that train, each in a thread of this process, over real stores and real gloo."""

from __future__ import annotations

import queue
import threading

from raykit.engine.training.checkpoint import Checkpoints
from raykit.engine.training.job import Job
from raykit.engine.training.loop_state import LoopState, Surroundings
from raykit.engine.training.state import Stateful
from raykit.spec.training import interval
from tests.unit.training.idioms import EPOCHS, loader

WITHIN_S = 30
DIES_AT = 4


class Elastic:
    """Gives out the batches of an idiom to a rank."""

    def __init__(self, world, name, folder, dies=None):
        self._member, self._folder = world.members[name], folder / name
        self._dies, self._num_left = dies, DIES_AT
        self.reporter = Reporter()

    def _come_nearer(self, *_):
        """Die, as seen from the other ranks, at the n-th call."""
        self._num_left -= 1
        if not self._num_left:
            self._member.broke("killed")
            raise DiedError

    def _given(self, batches):
        for batch in batches:
            if self._dies == "before forward":
                self._come_nearer()
            yield batch

    def job(self, model, optimizer, **options):
        def several(given):
            return given if isinstance(given, list) else [] if given is None else [given]

        if self._dies == "in backward":
            next(each for each in model.parameters() if each.requires_grad).register_hook(self._come_nearer)
        surroundings = Surroundings(
            member=self._member,
            checkpoints=Checkpoints(str(self._folder), kept=1, told=lambda _: None),
            checkpoint_every=interval("60s"),
            reporter=self.reporter,
            group_size=1,
            stored_dataset=lambda *_: "",
        )
        cared_for = Stateful(
            model=model,
            optimizers=several(optimizer),
            schedulers=several(options.get("scheduler")),
            scaler=options.get("scaler"),
            extras=several(options.get("extra_state")),
        )
        job = Job(LoopState(surroundings, cared_for))
        self.weigh = job.weight
        return job

    def __call__(self, model, optimizer, *, data=None, **options):
        return self._given(self.job(model, optimizer, **options).batches(data or loader(), epochs=EPOCHS))

    def each_epoch(self, model, optimizer, **options):
        job = self.job(model, optimizer, **options)
        return lambda: self._given(job.batches(loader()))


class DiedError(Exception):
    """A rank has died, as the others see it."""


class Reporter:
    """Keeps what a rank reports."""

    def __init__(self):
        self.events = []

    def emit(self, *events):
        self.events.extend(events)

    def sample(self, _, event):
        self.events.append(event)


def run_on(world, functions, folder, **dies):
    """Run each rank's loop in a thread; return what they return, and raise what they raise, unless they have died."""
    ended = queue.SimpleQueue()

    def of_rank(name):
        try:
            ended.put((name, functions[name](Elastic(world, name, folder, dies.get(name)))))
        except BaseException as exc:
            ended.put((name, exc))

    for name in functions:
        threading.Thread(target=of_rank, args=(name,), daemon=True).start()
    results = {}
    for _ in functions:
        name, results[name] = ended.get(timeout=WITHIN_S)
        if isinstance(results[name], BaseException) and not isinstance(results[name], DiedError):
            raise results[name]
    return dict(sorted(results.items()))
