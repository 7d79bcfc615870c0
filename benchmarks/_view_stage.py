"""A stage that does nothing, in a module of its own: it travels to the replicas without what measures them."""

from __future__ import annotations

import time

import raykit as rk

NUM_REPLICAS = 8


@rk.stage(cpus=0.1, replicas=NUM_REPLICAS)
def nap(row):
    time.sleep(0.5)
    return row
