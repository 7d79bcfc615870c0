"""What processes and those that they started use, by psutil: followed by their ids, not looked for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import psutil

LIST_S = 5.0  # between looks at who has started whom, which read a file of each process of the machine


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeUse:
    """What a process and its descendants use; None is unknown. ``num_cpus`` is a mean over the last ``LIST_S``."""

    pids: frozenset[int] = frozenset()
    num_cpus: float | None = None
    memory_bytes: int | None = None


@dataclass(slots=True)
class _Tree:
    processes: dict[int, psutil.Process]
    spent: deque[tuple[float, float]] = field(default_factory=deque)


class Processes:
    """The processes that are followed, by the id of the first of each tree."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._trees: dict[int, _Tree] = {}
        self._listed_s = 0.0

    def look(self, roots: Iterable[int]) -> dict[int, TreeUse]:
        """Give what each tree uses. One that is hidden or gone is unknown."""
        now_s, roots = self._clock(), set(roots)
        is_news = bool(roots - self._trees.keys())
        self._trees = {root: self._trees.get(root) or _Tree({}) for root in roots}
        if self._trees and (is_news or now_s - self._listed_s >= LIST_S):
            self._listed_s = now_s
            self._list()
        return {root: _use(root, tree, now_s) for root, tree in self._trees.items()}

    def _list(self) -> None:
        """See who has started whom since the last time."""
        children: dict[int, list[psutil.Process]] = {}
        for process in psutil.process_iter(["ppid"]):
            children.setdefault(process.info["ppid"], []).append(process)
        for root, tree in self._trees.items():
            found, waiting = dict(_alive(root, tree)), [root]
            while waiting:
                for child in children.get(waiting.pop(), ()):
                    found[child.pid] = tree.processes.get(child.pid, child)
                    waiting.append(child.pid)
            tree.processes = found


def _alive(root: int, tree: _Tree) -> dict[int, psutil.Process]:
    """Give the first process of a tree while it is the one that was followed: its id may be another's by now."""
    try:
        process = tree.processes.get(root) or psutil.Process(root)
        return {root: process} if process.is_running() else {}
    except psutil.Error:
        return {}


def _use(root: int, tree: _Tree, now_s: float) -> TreeUse:
    spent_s, memory_bytes = 0.0, 0
    for pid, process in list(tree.processes.items()):
        try:
            # What its ended children have spent counts in: so the sum does not fall when one of those here ends.
            spent_s += sum(process.cpu_times()[:4])
            memory_bytes += process.memory_info().rss
        except psutil.NoSuchProcess:
            del tree.processes[pid]
        except psutil.AccessDenied:
            return TreeUse(pids=frozenset(tree.processes))
    if root not in tree.processes:
        return TreeUse()
    tree.spent.append((now_s, spent_s))
    while len(tree.spent) > 2 and now_s - tree.spent[0][0] > LIST_S:  # noqa: PLR2004  (a difference takes two)
        tree.spent.popleft()
    begun_s, spent_before_s = tree.spent[0]
    num_cpus = max(0.0, spent_s - spent_before_s) / (now_s - begun_s) if now_s > begun_s else None
    return TreeUse(pids=frozenset(tree.processes), num_cpus=num_cpus, memory_bytes=memory_bytes)
