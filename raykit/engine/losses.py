"""What the answer of an actor says of its end."""

from __future__ import annotations

import ray

from raykit.spec.training import LossCause

GONE = (ray.exceptions.RayActorError, ray.exceptions.ActorUnschedulableError)
"""What the answer of an actor raises that died, or was to be on a node that is lost."""

NODE_LOST = ("node has died", "node is dead")


def cause_of(error: Exception) -> tuple[str, LossCause]:
    """Give a cause for people, and its kind, of one of ``GONE``."""
    text = str(error)
    if "NODE_OUT_OF_MEMORY" in text:
        return "its node ran out of memory", "memory"
    if isinstance(error, ray.exceptions.ActorUnschedulableError) or any(said in text for said in NODE_LOST):
        return "its node was lost", "node"
    return "its process was killed, or crashed in native code", "died"
