"""Which world of a training run stands, as its host hears it."""

import pytest

from raykit.engine.training.world import Generation
from raykit.engine.training.worlds import Worlds
from raykit.events import WorldFormed


@pytest.fixture
def worlds():
    """Give a run of two ranks that have met."""
    worlds = Worlds()
    worlds.ask(("w1", "w2"), urgent=False)
    worlds.hear(_met(1, "w1", "w2"), 0.0)
    return worlds


def _met(number, *workers):
    return WorldFormed(generation=number, workers=workers, step=number)


def test_a_world_that_met_when_the_next_was_asked_for_already_stands(worlds):
    worlds.ask(("w1",), urgent=False)
    worlds.ask(("w1", "w3"), urgent=False)
    worlds.hear(_met(2, "w1"), 1.0)
    assert worlds.standing_replicas == {"w1"}
    assert not worlds.is_formed


def test_word_of_an_earlier_world_that_comes_late_changes_nothing(worlds):
    worlds.ask(("w2",), urgent=False)
    worlds.ask(("w2", "w3"), urgent=False)
    worlds.hear(_met(3, "w2", "w3"), 1.0)
    worlds.hear(_met(2, "w2"), 1.1)  # told by another rank
    assert worlds.standing_replicas == {"w2", "w3"}
    assert worlds.is_formed


@pytest.mark.parametrize(("is_formed", "stands"), [(False, {"w1"}), (True, {"w1", "w2"})])
def test_the_next_host_does_not_take_who_was_only_asked_for_as_one_who_stands(is_formed, stands):
    worlds = Worlds()
    latest = Generation(number=2, workers=("w1", "w2"), store=("", 0), urgent=False)
    worlds.take_up(latest, is_formed=is_formed, stood=("w1",))
    assert worlds.asked == ("w1", "w2")
    assert worlds.standing_replicas == stands
    worlds.hear(_met(1, "w1"), 1.0)
    assert worlds.standing_replicas == stands
