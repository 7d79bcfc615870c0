"""How long one decision of ``raykit.policy.sharing`` takes with 10,000 slots and 1,000 claimants.

Three pools: all slots free, all as it should be, and a burst in which a tenth of the claimants asks for five times more.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import replace

from raykit.decisions import Grant
from raykit.policy.sharing import Claim, Lease, Pool, decide

NUM_SLOTS, NUM_CLAIMANTS, REPEATS = 10_000, 1_000, 50


def main() -> None:
    """Print median and worst of each pool."""
    source = random.Random(7)
    claims = tuple(
        Claim(
            claimant=f"claimant-{index}",
            floor=source.choice((0, 0, 2)) * gang,
            ceiling=source.randint(2, 10) * gang,
            gang_size=gang,
            priority=source.randint(0, 3),
            weight=source.choice((1.0, 2.0)),
        )
        for index in range(NUM_CLAIMANTS)
        for gang in (source.choice((1, 1, 2, 4)),)
    )
    free = Pool(slots=tuple(f"slot-{index}" for index in range(NUM_SLOTS)), claims=claims)
    grants = [each for each in decide(free, 0.0) if isinstance(each, Grant)]
    rest = replace(free, leases=tuple(Lease(slot=slot, claimant=each.claimant) for each in grants for slot in each.slots))
    bursting = tuple(replace(claim, priority=4, ceiling=5 * claim.ceiling) for claim in claims[: NUM_CLAIMANTS // 10])
    burst = replace(rest, claims=(*bursting, *claims[NUM_CLAIMANTS // 10 :]))
    for name, pool in (("free", free), ("at rest", rest), ("burst", burst)):
        times_ms = []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            decisions = decide(pool, 0.0)
            times_ms.append(1e3 * (time.perf_counter() - begin))
        print(f"{name}: {len(decisions)} decisions, median {statistics.median(times_ms):.1f} ms, worst {max(times_ms):.1f} ms")


if __name__ == "__main__":
    main()
