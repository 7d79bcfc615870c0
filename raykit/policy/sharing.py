"""Who holds which slot, a GPU or a fraction of one: high priorities first, equals by weight and in turns."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import groupby

from raykit.decisions import Force, Grant, Reclaim

TURN_S = 60.0  # a holder keeps its place among equals until it has had this much more, per weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a claimant wants: ``floor`` slots whatever others want, ``ceiling`` at most, both in whole gangs.

    ``served_slot_s`` is what it has had so far. One that comes anew begins with the least that its equals have had.
    """

    claimant: str
    ceiling: int
    floor: int = 0
    gang_size: int = 1
    priority: int = 0
    weight: float = 1.0
    served_slot_s: float = 0.0
    grace_s: float = 5.0

    def __post_init__(self) -> None:
        if self.gang_size < 1 or self.weight <= 0 or not 0 <= self.floor <= self.ceiling:
            raise ValueError(f"no claim can be so: {self}")
        if self.floor % self.gang_size or self.ceiling % self.gang_size:
            raise ValueError(f"floor and ceiling of {self.claimant} are not whole gangs of {self.gang_size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A slot in a claimant's hands; with ``return_by_s`` it is asked back."""

    slot: str
    claimant: str
    return_by_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What is true: all slots, the leases on them, the claims."""

    slots: tuple[str, ...]
    leases: tuple[Lease, ...] = ()
    claims: tuple[Claim, ...] = field(default=())


def decide(pool: Pool, now_s: float) -> list[Grant | Reclaim | Force]:
    """Say which slots to take by force, to ask back and to give; nothing, when all is as it should be."""
    kept: dict[str, list[str]] = defaultdict(list)
    for lease in pool.leases:
        if lease.return_by_s is None:
            kept[lease.claimant].append(lease.slot)
    claims = sorted(pool.claims, key=lambda claim: _turn(claim, is_holder=claim.claimant in kept))
    shares = _shares(claims, len(pool.slots))
    decisions: list[Grant | Reclaim | Force] = [
        Force(claimant=lease.claimant, slot=lease.slot)
        for lease in pool.leases
        if lease.return_by_s is not None and lease.return_by_s <= now_s
    ]
    grace_s = {claim.claimant: claim.grace_s for claim in claims}
    for claimant, slots in kept.items():
        if excess := tuple(slots[shares.get(claimant, 0) :]):
            return_by_s = now_s + grace_s.get(claimant, 0.0)
            decisions.append(Reclaim(claimant=claimant, slots=excess, return_by_s=return_by_s))
    return decisions + _grants(pool, claims, shares, {claimant: len(slots) for claimant, slots in kept.items()})


def _turn(claim: Claim, *, is_holder: bool) -> tuple[int, int, bool, str]:
    turns = int(claim.served_slot_s / claim.weight / TURN_S)
    return -claim.priority, turns, not is_holder, claim.claimant


def _shares(claims: list[Claim], num_slots: int) -> dict[str, int]:
    """Give floors first, then each priority's equals their weighted share, whole gangs, in the order of turns."""
    left = num_slots
    shares: dict[str, int] = {}
    for claim in claims:
        shares[claim.claimant] = min(claim.floor, left // claim.gang_size * claim.gang_size)
        left -= shares[claim.claimant]
    for _, level in groupby(claims, key=lambda claim: claim.priority):
        equals = list(level)
        per_weight = _water_level(equals, left + sum(shares[claim.claimant] for claim in equals))
        # Who is first takes a gang at least, though its share be less; who then gets nothing is first at a later turn.
        for least in (per_weight, float("inf")):
            for claim in equals:
                fair = max(min(claim.ceiling, claim.weight * least), claim.gang_size)
                wanted = min(claim.ceiling, int(fair + 1e-9)) - shares[claim.claimant]
                more = max(0, min(wanted, left)) // claim.gang_size * claim.gang_size
                shares[claim.claimant] += more
                left -= more
    return shares


def _water_level(equals: list[Claim], num_slots: int) -> float:
    """Return the slots per weight at which equals use all slots, each no more than its ceiling."""
    left, weight = float(num_slots), sum(claim.weight for claim in equals)
    for claim in sorted(equals, key=lambda claim: claim.ceiling / claim.weight):
        if claim.ceiling / claim.weight >= left / weight:
            return left / weight
        left, weight = left - claim.ceiling, weight - claim.weight
    return float("inf")


def _grants(pool: Pool, claims: list[Claim], shares: dict[str, int], num_kept: dict[str, int]) -> list[Grant]:
    leased = {lease.slot for lease in pool.leases}
    free = [slot for slot in pool.slots if slot not in leased]
    begin = 0
    grants: list[Grant] = []
    for claim in claims:
        kept = num_kept.get(claim.claimant, 0)  # may be less than a gang, where a slot was lost
        missing = max(0, shares[claim.claimant] - kept)
        at_hand = kept + min(missing, max(0, len(free) - begin))
        ready = max(0, at_hand // claim.gang_size * claim.gang_size - kept)
        if ready:
            grants.append(Grant(claimant=claim.claimant, slots=tuple(free[begin : begin + ready])))
        begin += missing  # what is short of a gang waits for what is asked back
    return grants
