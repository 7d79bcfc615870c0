"""Which replicas of a service take which slots, stepped by hand."""

import itertools

import pytest

from raykit.policy.staffing import Demand, Replica, staffing


class Service:
    """Replicas that do what is planned: what is begun in one step, a start or a leave, is done in the next."""

    def __init__(self, num_slots, **demand):
        self.slots, self.demand, self.replicas = list(range(num_slots)), demand, {}
        self.numbers = itertools.count(1)

    def step(self, **changes):
        self.demand |= changes
        demand = Demand(**self.demand)
        plan = staffing(list(self.replicas.values()), self.slots, demand)
        for each in list(self.replicas.values()):
            if each.is_leaving:
                self.change(each.name, is_leaving=False, slot=None)
            elif not each.is_built:
                self.change(each.name, is_built=True)
        for name in plan.leave:
            assert self.replicas[name].slot is not None
            self.change(name, **({"is_leaving": True} if self.replicas[name].is_built else {"slot": None}))
        for name, slot in plan.seat:
            assert not demand.bound
            assert self.replicas[name].slot is None
            self.change(name, slot=slot)
        for name in plan.end:
            del self.replicas[name]
        for slot, version in plan.start:
            name = f"work-{next(self.numbers)}"
            self.replicas[name] = Replica(name=name, version=version, slot=slot, is_built=False)
        held = [each.slot for each in self.replicas.values() if each.slot is not None]
        assert len(held) == len(set(held)), "two replicas in one slot"
        assert set(held) <= set(self.slots)
        return plan

    def change(self, name, **what):
        self.replicas[name] = Replica(
            **{field: getattr(self.replicas[name], field) for field in Replica.__dataclass_fields__} | what
        )

    def settle(self, **changes):
        """Step until nothing is left to do; give how many of each version are at work after each step."""
        history = []
        for _ in range(60):
            was_quiet = all(each.is_built and not each.is_leaving for each in self.replicas.values())
            plan = self.step(**changes)
            history.append(self.at_work)
            if was_quiet and not (plan.leave or plan.seat or plan.end or plan.start):
                return history
        raise AssertionError(f"it does not come to rest: {self.replicas}")

    @property
    def at_work(self):
        return tuple(sorted(each.version for each in self.replicas.values() if each.is_at_work and not each.is_leaving))

    @property
    def warm(self):
        return tuple(sorted(each.version for each in self.replicas.values() if each.is_built and each.slot is None))


@pytest.mark.parametrize("bound", [False, True])
def test_slots_that_are_there_are_filled_and_no_more(bound):
    service = Service(2, wanted=3, most=4, num_warm=0, bound=bound)
    service.settle()
    assert service.at_work == (1, 1)
    service.slots.append(2)
    service.settle()
    assert service.at_work == (1, 1, 1)
    service.settle(wanted=1)
    assert service.at_work == (1,)
    assert service.warm == ()


def test_who_leaves_its_slot_is_warm_as_far_as_that_is_wanted_and_takes_the_next_slot():
    service = Service(3, wanted=3, most=4, num_warm=1)
    service.settle()
    assert (service.at_work, service.warm) == ((1, 1, 1), (1,))
    service.settle(wanted=0)
    assert (service.at_work, service.warm) == ((), (1,))
    (warm,) = service.replicas
    plan = service.step(wanted=1)
    assert plan.seat == [(warm, 0)]
    assert service.at_work == (1,)


def test_one_that_is_built_for_a_slot_that_is_not_needed_any_more_gets_warm():
    service = Service(1, wanted=1, most=2, num_warm=1)
    service.step()
    ((name, built),) = service.replicas.items()
    assert not built.is_built
    service.settle(wanted=0)
    assert service.warm == (1,)
    assert name in service.replicas


def test_warm_ones_are_built_one_at_a_time():
    service = Service(1, wanted=1, most=4, num_warm=3)
    for _ in range(10):
        service.step()
        assert sum(not each.is_built for each in service.replicas.values()) <= 1
    assert (service.at_work, service.warm) == ((1,), (1, 1, 1))


@pytest.mark.parametrize(("num_slots", "num_warm"), [(1, 0), (3, 0), (3, 2)])
def test_a_new_version_takes_over_one_by_one_and_the_old_one_stays_until_its_successor_is_built(num_slots, num_warm):
    service = Service(num_slots, wanted=num_slots, most=num_slots + num_warm, num_warm=num_warm)
    service.settle()
    tried = service.settle(asked=2)
    assert set(tried) == {(1,) * num_slots}, "the one that is tried takes nobody's place"
    changed = service.settle(current=2, asked=None)
    assert min(map(len, changed)) >= num_slots - 1
    assert service.at_work == (2,) * num_slots
    assert service.warm == (2,) * num_warm


def test_a_version_that_is_refused_leaves_nothing():
    service = Service(2, wanted=2, most=3, num_warm=1)
    service.settle()
    service.settle(asked=2)
    service.settle(asked=None)
    assert (service.at_work, service.warm) == ((1, 1), (1,))


def test_where_replicas_are_bound_to_their_slots_one_at_a_time_makes_room_for_its_successor():
    service = Service(3, wanted=3, most=3, num_warm=0, bound=True)
    service.settle()
    tried = service.settle(asked=2)
    assert min(map(len, tried)) == 2
    assert service.at_work == (1, 1, 2), "the first of the new ones is built where one has left"
    changed = service.settle(current=2, asked=None)
    assert min(map(len, changed)) == 2
    assert service.at_work == (2, 2, 2)


def test_where_replicas_are_bound_the_old_version_has_its_slot_again_when_the_new_one_is_refused():
    service = Service(1, wanted=1, most=1, num_warm=0, bound=True)
    service.settle()
    service.settle(asked=2)
    assert service.at_work == (2,)
    service.settle(asked=None)
    assert service.at_work == (1,)


def test_a_third_version_takes_over_before_the_second_has():
    service = Service(2, wanted=2, most=2, num_warm=0)
    service.settle()
    service.settle(asked=2)
    service.step(current=2, asked=None)
    service.step(asked=3)
    service.settle(current=3, asked=None)
    assert service.at_work == (3, 3)
    assert {each.version for each in service.replicas.values()} == {3}


def test_fewer_than_there_are_may_be_the_most():
    service = Service(3, wanted=3, most=3, num_warm=0)
    service.settle()
    service.settle(asked=2)
    service.settle(current=2, asked=None, most=1, wanted=1)
    assert service.at_work == (2,)
    assert service.warm == ()
