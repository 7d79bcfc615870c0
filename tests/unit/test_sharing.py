"""The policy of sharing, stepped by hand with random claims, holders that return late and holders that never do."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from raykit.decisions import Force, Grant, Reclaim
from raykit.policy.sharing import Claim, Lease, Pool, decide


def step(pool: Pool, now_s: float, *, returned: frozenset[str] = frozenset()) -> Pool:
    """Carry out what is decided: what is returned or taken by force is free at the step after."""
    leases = {lease.slot: lease for lease in pool.leases}
    for decision in decide(pool, now_s):
        match decision:
            case Grant():
                for slot in decision.slots:
                    assert slot not in leases, "a slot is leased twice"
                    leases[slot] = Lease(slot=slot, claimant=decision.claimant)
            case Reclaim():
                for slot in decision.slots:
                    leases[slot] = replace(leases[slot], return_by_s=decision.return_by_s)
            case Force():
                del leases[decision.slot]
    kept = tuple(each for each in leases.values() if each.return_by_s is None or each.slot not in returned)
    return replace(pool, leases=kept)


def held(pool: Pool) -> Counter[str]:
    return Counter(lease.claimant for lease in pool.leases if lease.return_by_s is None)


def slots(count: int) -> tuple[str, ...]:
    return tuple(f"slot-{index}" for index in range(count))


def random_claim(source: random.Random, name: str) -> Claim:
    gang = source.choice((1, 1, 2, 4))
    floor = source.randint(0, 1)
    return Claim(
        claimant=name,
        gang_size=gang,
        floor=floor * gang,
        ceiling=source.randint(floor, 6) * gang,
        priority=source.randint(0, 2),
        weight=source.choice((0.5, 1, 3)),
    )


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_claimed_the_pool_comes_to_rest_with_floors_and_priorities_kept_and_gangs_whole(seed: int) -> None:
    source = random.Random(seed)
    pool = Pool(slots=slots(32))
    for round_s in range(0, 500, 100):
        pool = replace(pool, claims=tuple(random_claim(source, f"c{index}") for index in range(5)))
        for second in range(20):
            back = frozenset(slot for slot in pool.slots if source.random() < 0.3)
            pool = step(pool, round_s + second, returned=back)
        assert decide(pool, round_s + 20) == []
        for claim in pool.claims:
            assert claim.floor <= held(pool)[claim.claimant] <= claim.ceiling
            assert held(pool)[claim.claimant] % claim.gang_size == 0
        free = len(pool.slots) - len(pool.leases)
        for claim in pool.claims:
            lower = [each for each in pool.claims if each.priority < claim.priority]
            takeable = free + sum(held(pool)[each.claimant] - each.floor for each in lower)
            assert held(pool)[claim.claimant] == claim.ceiling or takeable < claim.gang_size


def test_a_higher_priority_waits_for_no_longer_than_the_deadline_of_a_holder_that_returns_nothing() -> None:
    low = Claim(claimant="train", ceiling=4, grace_s=2)
    pool = step(Pool(slots=slots(4), claims=(low,)), 0)
    pool = replace(pool, claims=(low, Claim(claimant="serve", ceiling=3, priority=1)))
    for now_s in (1, 2, 3, 4):
        pool = step(pool, now_s)
    assert held(pool) == {"serve": 3, "train": 1}


def test_nobody_takes_what_a_waiting_gang_is_to_get() -> None:
    leases = tuple(Lease(slot=slot, claimant="gone", return_by_s=9) for slot in slots(4)[:2])
    gang = Claim(claimant="gang", ceiling=4, gang_size=4, priority=1)
    pool = Pool(slots=slots(4), leases=leases, claims=(gang, Claim(claimant="small", ceiling=2)))
    assert decide(pool, 0) == []


def test_equals_share_by_weight() -> None:
    claims = (Claim(claimant="one", ceiling=12), Claim(claimant="three", ceiling=12, weight=3))
    assert held(step(Pool(slots=slots(12), claims=claims), 0)) == {"one": 3, "three": 9}


def test_everyones_turn_comes_and_nobody_is_put_out_before_its_turn_is_over() -> None:
    served = dict.fromkeys("abcde", 0.0)
    pool, changes = Pool(slots=slots(2)), 0
    for now_s in range(1500):
        claims = tuple(Claim(claimant=name, ceiling=2, gang_size=2, served_slot_s=had) for name, had in served.items())
        before = held(pool)
        pool = step(replace(pool, claims=claims), now_s, returned=frozenset(pool.slots))
        changes += held(pool) != before
        for name, count in held(pool).items():
            served[name] += count
    assert max(served.values()) - min(served.values()) <= 2 * 62
    assert changes <= 2 * 1500 / 30 + 1


def test_a_claim_that_cuts_a_gang_is_refused() -> None:
    with pytest.raises(ValueError, match="whole gangs"):
        Claim(claimant="a", ceiling=3, gang_size=2)
