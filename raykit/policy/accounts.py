"""Where the time of runs went, from their views alone."""

from __future__ import annotations

from dataclasses import dataclass

from raykit.views import RunView


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One run's time. Slot hours are logical: held, not used. ``busy_share`` is None where nothing counts it."""

    run: str
    kind: str
    state: str
    starting_s: float | None
    running_s: float | None
    cpu_slot_s: float
    gpu_slot_s: float
    busy_share: float | None
    num_cards: int


def account(view: RunView, now_unix_s: float) -> Account:
    """Sum one run up: of a run that goes on, until now."""
    end = view.ended_at_unix_s or now_unix_s
    begun, accepted = view.started_at_unix_s, view.accepted_at_unix_s
    cpu_slot_s, gpu_slot_s = view.slot_s(end)
    busy_s = sum(stage.busy_s for stage in view.stages)
    counted_s = busy_s + sum(stage.starved_s + stage.blocked_s for stage in view.stages)
    return Account(
        run=view.name,
        kind=view.run_kind,
        state=view.state,
        starting_s=begun - accepted if begun is not None and accepted is not None else None,
        running_s=end - begun if begun is not None else None,
        cpu_slot_s=cpu_slot_s,
        gpu_slot_s=gpu_slot_s,
        busy_share=busy_s / counted_s if counted_s else None,
        num_cards=len(view.cards),
    )
