"""A replica of several ranks: they hold one model together, by FSDP or tensor parallel, for as long as all of them live.

To the user's code the replica is torch's default process group: ``fully_shard(model)`` and ``init_device_mesh`` work as
they are. What goes on between replicas is in groups of raykit's own.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from raykit.engine.training.collective import OPERATION_TIMEOUT
from raykit.engine.training.member import Member
from raykit.engine.training.rendezvous import join_store
from raykit.engine.training.world import Address

MEET_TIMEOUT = OPERATION_TIMEOUT  # the others may still import; if one dies the host ends the whole replica


def join_replica(leader: Address, place: int, group_size: int, member: Member) -> Any:
    """Meet the other ranks of the replica; blocking. Gives a process group of the same ranks, for checkpoints."""
    store = join_store(leader, outdated=lambda: False)
    store.set_timeout(MEET_TIMEOUT)
    backend = "cpu:gloo,cuda:nccl" if member.device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=dist.PrefixStore("replica", store), rank=place, world_size=group_size, timeout=OPERATION_TIMEOUT
    )
    return dist.new_group(backend="gloo")
