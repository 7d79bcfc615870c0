"""Slots as two runs have them: what one gives back the other holds, and none is lost on the way."""

from __future__ import annotations

from functools import partial

import pytest

import raykit as rk

pytestmark = pytest.mark.ray

NUM_SLOTS = 2


@pytest.fixture(scope="module")
def three_cpus(raykit_home):
    """A cluster of two slots, and a CPU for the cell that takes the part of the hosts."""
    yield rk.up("slots", num_cpus=NUM_SLOTS + 1, object_store_bytes=100_000_000, profile="small")
    rk.down("slots")


@pytest.fixture
def on_node(three_cpus, tmp_path):
    """Run a function of a factory of slots, by the run's name, on the cluster's node."""
    rk.use("slots")

    def run(function):
        def body():
            from raykit.engine.run import RunContext
            from raykit.engine.setting import ClusterSetting
            from raykit.engine.slots import Slots
            from raykit.store.log import Log

            setting = ClusterSetting(name="slots", address="", port=0, token_file="", folder=str(tmp_path))
            log = Log(setting.log_path)

            def slots_of(name, already_held=()):
                def emit(*events, then=None):
                    number = log.append(name, events)
                    if then is not None:
                        then(number)

                context = RunContext(name=name, spec=None, cluster=setting, emit=emit, attempt=1, resumed=False, host=None)
                return Slots(context, num_cpus=1, num_gpus=0, already_held=frozenset(already_held))

            def until(condition):
                import time

                deadline_s = time.monotonic() + 30
                while not (value := condition()):
                    assert time.monotonic() < deadline_s
                    time.sleep(0.002)
                return value

            return function(slots_of, until, log)

        return rk.run(body).wait().result

    return run


def has(slots, num_slots):
    """Say whether a run holds so many slots, after a look."""
    slots.look()
    slots.give_back(used=frozenset())
    return len(slots.held) == num_slots


def test_a_place_that_ray_was_making_for_who_wants_it_no_more_is_not_lost(on_node):
    def change_minds(slots_of, until, _):
        import random
        import time

        from ray.util.placement_group import placement_group, remove_placement_group

        from raykit.engine import slots as module

        module.PATIENCE_S = 0.0  # Ray is asked at once, as it is after a while
        first, second = slots_of("first"), slots_of("second")
        for _ in range(300):
            first.want(NUM_SLOTS)
            until(lambda: all([has(first, NUM_SLOTS), has(second, 0)]))
            second.want(1)
            second.look()
            first.want(NUM_SLOTS - 1)
            first.give_back(used=frozenset())
            time.sleep(0.004)
            remove_placement_group(placement_group([{"nowhere": 1.0}]))  # now it looks
            time.sleep(random.random() * 0.004)
            second.want(0)
            second.give_back(used=frozenset())
            first.hurry()
        first.want(NUM_SLOTS)
        is_whole = until(lambda: all([has(first, NUM_SLOTS), has(second, 0)]))
        first.release()
        second.release()
        return is_whole

    assert on_node(change_minds)


def test_a_slot_that_is_handed_on_is_whose_the_log_says_also_for_hosts_that_come_back(on_node):
    def hand_on(slots_of, until, log):
        first, second = slots_of("first"), slots_of("second")
        first.want(NUM_SLOTS)
        until(lambda: has(first, NUM_SLOTS))
        second.want(1)
        first.want(NUM_SLOTS - 1)
        first.give_back(used=frozenset(), hand_on=second.take)
        told = [(record.run, type(record.event).__name__) for record in log.read_all()]
        again = []
        for name in ("first", "second"):
            slots = slots_of(name)
            slots.take_up()
            slots.want(1)
            slots.look()
            again.append(slots.held)
        held = first.held, second.held
        first.release()
        second.release()
        return held, told, again

    held, told, again = on_node(hand_on)
    assert [len(each) for each in held] == [1, 1]
    assert told[-2:] == [("first", "SlotsReleased"), ("second", "SlotsHeld")]
    assert again == list(held)


def test_a_slot_that_is_handed_on_to_who_died_goes_back(on_node):
    def hand_on_to_nobody(slots_of, until, _):
        first, second = slots_of("first"), slots_of("second")
        first.want(NUM_SLOTS)
        until(lambda: has(first, NUM_SLOTS))
        first.want(0)
        told = []
        first.give_back(used=frozenset(), hand_on=lambda *take: told.append(take))
        second.want(NUM_SLOTS)
        until(lambda: all([has(first, 0), has(second, NUM_SLOTS)]))
        second.take(*told[0])  # too late
        num_held = len(second.held)
        second.release()
        return len(told), num_held

    assert on_node(hand_on_to_nobody) == (NUM_SLOTS, NUM_SLOTS)


def test_a_slot_that_is_handed_on_as_the_lender_ends_is_the_borrower_s(on_node):
    def end_just_then(slots_of, until, _):
        import threading

        first, second = slots_of("first"), slots_of("second")
        first.want(NUM_SLOTS)
        until(lambda: has(first, NUM_SLOTS))
        first.want(NUM_SLOTS - 1)
        told = []
        first.give_back(used=frozenset(), hand_on=lambda *take: told.append(take))
        ending = threading.Thread(target=first.release)
        ending.start()
        until(lambda: not first.held)
        second.want(1)
        second.take(*told[0])
        ending.join()
        second.doubt()
        second.look()
        num_held = len(second.held)
        second.release()
        return num_held

    assert on_node(end_just_then) == 1


def test_a_host_that_comes_back_writes_down_what_it_gives_back_and_has_again(on_node):
    def come_back(slots_of, until, log):
        first = slots_of("first")
        first.want(1)
        until(lambda: has(first, 1))
        again = slots_of("first", already_held=("slot 1",))
        again.take_up()
        for num_slots in (1, 0, 1):
            again.want(num_slots)
            until(partial(has, again, num_slots))
        again.release()
        return [type(record.event).__name__ for record in log.read_all()]

    assert on_node(come_back) == ["SlotsHeld", "SlotsReleased", "SlotsHeld"]
