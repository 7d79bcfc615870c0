"""From the loss of a worker to the next committed step: what the recovery card and a drill's verdict say."""

from __future__ import annotations

from dataclasses import dataclass, field

from raykit.events import DrillEnded, Event, Recovered, StepCommitted, WorldBroken, WorldFormed


@dataclass(slots=True, kw_only=True)
class Recovery:
    """One recovery; further losses before its end belong to it. Times are of one monotonic clock."""

    known_at_s: float
    world_before: tuple[str, ...]
    step_before: int
    cause: str = ""
    stack: str = ""
    drill: str = ""
    struck_at_s: float | None = None
    lost: list[str] = field(default_factory=list)
    broken: bool = False
    formed: WorldFormed | None = None

    def observe(self, event: Event, at_s: float) -> list[Event]:
        """Take an event of a worker in; give the card, once the first step of the new world is committed."""
        if isinstance(event, WorldBroken):
            self.broken = True
        elif isinstance(event, WorldFormed) and not set(event.workers) & set(self.lost):
            self.formed = event
        elif isinstance(event, StepCommitted) and self.formed is not None and event.step > self.formed.step:
            return self._ended(self.formed, at_s)
        return []

    def concluded(self, formed: WorldFormed) -> list[Event]:
        """Give the card of a loss after which the run ends: the last world has met, and its state is being saved."""
        return self._card(formed, None, f"the state as of step {formed.step} is saved, and the run ends")

    def _ended(self, formed: WorldFormed, at_s: float) -> list[Event]:
        recovered_after_s = at_s - self.known_at_s
        return self._card(formed, recovered_after_s, self._remedy(formed))

    def _card(self, formed: WorldFormed, recovered_after_s: float | None, remedy: str) -> list[Event]:
        steps_lost = max(0, self.step_before - formed.step)
        card = Recovered(
            what=self._what(),
            cause=self.cause,
            stack=self.stack,
            detected_after_s=None if self.struck_at_s is None else self.known_at_s - self.struck_at_s,
            recovered_after_s=recovered_after_s,
            world_before=len(self.world_before),
            world_after=len(formed.workers),
            step_before=formed.step,
            steps_lost=steps_lost,
            steps_redone=int(self.broken),
            remedy=remedy,
        )
        if not self.drill:
            return [card]
        went_on = (
            remedy
            if recovered_after_s is None
            else f"step {formed.step + 1} was committed {recovered_after_s:.2f} s after the loss was known"
        )
        verdict = f"{went_on}; {steps_lost} committed steps lost"
        return [card, DrillEnded(action=self.drill, passed=steps_lost == 0, verdict=verdict)]

    def _what(self) -> str:
        if not self.lost:
            return "The ranks lost touch with each other"
        lost = [worker for worker in self.world_before if worker in self.lost]
        if not lost:
            return f"{', '.join(self.lost)} was lost on its way into the world"
        places = ", ".join(f"rank {self.world_before.index(worker)}" for worker in lost)
        return f"{places} ({', '.join(lost)}) {'was' if len(lost) == 1 else 'were'} lost"

    def _remedy(self, formed: WorldFormed) -> str:
        workers = formed.workers
        survivors = [worker for worker in workers if worker in self.world_before]
        joined = [worker for worker in workers if worker not in self.world_before]
        if not survivors:
            whence = "from the last checkpoint" if formed.step else "from the first step: there was no checkpoint yet"
            return f"new workers ({', '.join(joined)}) went on {whence}"
        kept = (
            "1 survivor went on in its process" if len(survivors) == 1 else f"{len(survivors)} survivors went on in their processes"
        )
        return f"{kept}; spare {', '.join(joined)} took the place" if joined else f"{kept}, in a smaller world"
