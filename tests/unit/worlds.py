"""Worlds of members in threads of this process, over real stores and real gloo."""

import queue
import threading

import torch

from raykit.engine.training.member import Member
from raykit.engine.training.rendezvous import open_store
from raykit.engine.training.world import Generation

HOST = "127.0.0.1"


class NumberJob:
    """A model of one number; its value tells whose state it is."""

    num_parts_done = num_parts_held = 0
    stopping = False

    def __init__(self, value, step=0):
        self.value, self.step, self.prepared = torch.tensor([float(value)]), step, False

    @property
    def position(self):
        return self.step

    @property
    def next_position(self):
        return self.step + 1

    def roll_forward(self):
        self.step, self.prepared = self.step + 1, False

    def discard(self):
        self.prepared = False

    def state(self):
        return {"value": self.value, "step": self.step}

    def adopt(self, state):
        self.value, self.step = state["value"].clone(), state["step"]

    def adopt_kept(self):
        pass

    def before_leave(self):
        pass


class Observer:
    def __init__(self):
        self.formed, self.broken, self.aside = [], [], queue.SimpleQueue()
        self.tell_broken = lambda generation: None

    def is_ready(self):
        pass

    def has_formed(self, generation, step):
        self.formed.append((generation.number, step))

    def has_broken(self, generation, reason):
        self.broken.append(generation)
        self.tell_broken(generation)

    def stands_aside(self, generation):
        self.aside.put(generation)

    def has_left(self):
        pass


class World:
    """Members by name; each aligns in a thread."""

    def __init__(self, *names):
        self.observers = {name: Observer() for name in names}
        self.members = {name: Member(name, torch.device("cpu"), HOST, self.observers[name]) for name in names}
        self.jobs = {name: NumberJob(place) for place, name in enumerate(names)}
        self.newest = Generation(number=0, workers=(), store="", urgent=False)
        self.num_anew = 0
        self._publishing, self._is_over = threading.RLock(), False
        self._store, self.address = open_store(HOST)

    def publish(self, number, workers, to=None, *, urgent=True, group_size=1):
        generation = Generation(number=number, workers=workers, store=self.address, urgent=urgent, group_size=group_size)
        with self._publishing:
            self.newest = max(self.newest, generation, key=lambda each: each.number)
            for name in to or self.members:
                self.members[name].assign(generation)

    def end(self):
        """Publish a last world, of nobody: whoever waits for others waits no more."""
        with self._publishing:
            self.publish_next(())
            self._is_over = True

    def publish_next(self, workers, to=None, *, urgent=False):
        with self._publishing:
            if not self._is_over:
                self.publish(self.newest.number + 1, workers, to=to, urgent=urgent)

    def publish_anew(self, generation):
        """Publish a world that has failed once more, as a hub does, unless another one has followed it."""
        with self._publishing:
            if self.newest.number == generation and not self._is_over:
                self.num_anew += 1
                self.publish_next(self.newest.workers, urgent=self.newest.urgent)

    def has_met_newcomers(self, name):
        """Say whether a member has met those of the next world whom it has not; one that has failed is published anew."""
        member, newest = self.members[name], self.newest
        if name in newest.workers and member.may_enter_next and not member.newcomers_have_met:
            self.publish_anew(newest.number)
        return member.newcomers_have_met

    def align(self, *names, agreed=False):
        threads = [
            threading.Thread(target=self.members[name].align, args=(self.jobs[name],), kwargs={"agreed": agreed}, daemon=True)
            for name in names
        ]
        for thread in threads:
            thread.start()
        return threads

    def met(self, *names, agreed=False):
        joined(self.align(*names, agreed=agreed))

    def broke(self, *names):
        for name in names:
            self.members[name].broke("a peer is gone")

    def stands(self, *names):
        return [(self.jobs[name].step, float(self.jobs[name].value)) for name in names]


def joined(threads, *, within_s=20):
    for thread in threads:
        thread.join(within_s)
        assert not thread.is_alive(), "a member waits for ever"
