"""What the widget of a run is told, and what its clicks do: without a page, by the messages of its comm."""

import math
from dataclasses import replace

import pytest

from raykit.client.observed import Journal, ObservedRun
from raykit.commands import Apply, Drill, Resize, Stop
from raykit.errors import RunError
from raykit.events import LinesPrinted, Record, RunEnded
from raykit.jupyter.buttons import carry_out
from raykit.jupyter.display import WIDGET_S, _Printer, _Widget
from raykit.jupyter.widget import RunWidget
from raykit.views import RunView, fold
from raykit.views.examples import examples, pipeline

MAX_BYTES_S = 64_000
MAX_MESSAGES_S = 12


@pytest.fixture
def door():
    """Give a run whose commands are kept, and the commands."""

    class Kept(Journal):
        def command(self, command):
            commands.append(command)

    commands = []
    return ObservedRun("digits#2", Kept("digits#2")), commands


def test_twenty_stages_are_told_in_few_small_messages(sent):
    seconds = 10
    views = [pipeline(num_stages=20, seconds=120 + second) for second in range(seconds)]
    widget = RunWidget(views[0])
    sent.clear()
    for tick in range(round(seconds / WIDGET_S)):
        widget.show(views[int(tick * WIDGET_S)], at_s=tick * WIDGET_S)
    assert all(f'"stage {place}"' in "".join(sent) for place in range(5, 21))
    assert len(sent) <= MAX_MESSAGES_S * seconds
    assert sum(map(len, sent)) <= MAX_BYTES_S * seconds


def test_a_view_that_did_not_change_is_not_told_again(sent):
    view = pipeline()
    widget = RunWidget(view)
    widget.show(view, at_s=0)
    sent.clear()
    widget.show(view, at_s=0.2)
    assert sent == []


def test_the_end_of_a_run_is_told_whole_at_once(sent):
    begun, done = examples()["recovering"], examples()["done"]
    widget = RunWidget(begun)
    widget.show(begun, at_s=0)
    sent.clear()
    widget.show(done, at_s=0.1)
    (message,) = sent
    assert "rank 2 was lost" in message
    assert widget.past["to_s"] == pytest.approx(done.elapsed_s)


@pytest.mark.parametrize(
    ("message", "command"),
    [
        ({"command": "stop"}, Stop(run="digits#2")),
        ({"command": "apply"}, Apply(run="digits#2")),
        ({"command": "resize", "workers": "1:3"}, Resize(run="digits#2", workers=(1, 3))),
        ({"command": "drill", "action": "hang"}, Drill(run="digits#2", action="hang")),
    ],
)
def test_a_click_asks_what_the_magic_of_its_name_asks(door, message, command):
    run, commands = door
    carry_out(run, message)
    assert commands == [command]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"command": "resize", "workers": "3:1"}, "goes from more to less"),
        ({"command": "resize", "workers": "two"}, "is not a whole number"),
        ({"command": "resize", "workers": "0"}, "MIN:MAX"),
        ({"command": "drill", "action": "flood"}, "There is no drill 'flood'"),
        ({"command": "launch"}, "another version"),
    ],
)
def test_a_click_that_cannot_be_is_answered_with_a_sentence_and_asks_nothing(door, message, words):
    run, commands = door
    assert words in carry_out(run, message)
    assert commands == []


def test_a_click_that_the_run_refuses_shows_its_reason():
    run = ObservedRun("Dataset", Journal("Dataset"))
    with pytest.raises(RunError):
        run.stop()
    assert "takes no commands" in carry_out(run, {"command": "stop"})


@pytest.mark.parametrize(("state", "shown"), [("done", False), ("failed", True), ("stopped", True), ("lost", True)])
def test_a_quick_task_shows_no_view_unless_something_went_wrong(sent, door, capsys, state, shown):
    run, _ = door
    run.view = replace(examples()[state], run_kind="task", num_lines=0)
    face = _Widget(run, quiet_s=math.inf)
    face.show(run.view)
    face.finish(run.view)
    assert bool(sent) == bool(capsys.readouterr().out) == shown


def test_lines_are_printed_once_and_the_one_that_is_written_over_and_over(capsys):
    printer, view, number = _Printer(), RunView(name="talks"), 0

    def shown(*lines, open_lines=(), dropped=0):
        nonlocal view, number
        number += 1
        event = LinesPrinted(source="cell", lines=lines, num_dropped=dropped, open_lines=open_lines)
        view = fold(view, Record(number=number, at_unix_s=0, run="talks", event=event))
        printer.show(view)
        return capsys.readouterr().out

    assert shown("one", "two") == "one\ntwo\n"
    assert shown("three", dropped=5) == "three\n... 5 lines more: %ray logs talks\n"
    assert shown(open_lines=("10%", "20%")) == "10%   20%"
    assert shown(open_lines=("100%",)) == "\r100%     "
    assert shown("100%", "done") == "\r100%\ndone\n"
    assert shown("four") == "four\n"


def test_a_quick_task_with_a_card_that_is_not_good_shows_its_view(sent, door):
    run, _ = door
    run.view = fold(pipeline(), Record(number=10**6, at_unix_s=0, run="labels", event=RunEnded(state="done")))
    run.view = replace(run.view, run_kind="task", num_lines=0)
    _Widget(run, quiet_s=math.inf).finish(run.view)
    assert sent


@pytest.mark.parametrize("begun", [pipeline(), examples()["recovering"]], ids=["pipeline", "training"])
def test_a_quick_pipeline_or_training_shows_its_view(sent, door, begun):
    run, _ = door
    face = _Widget(run, quiet_s=math.inf)  # before a word was heard of the run, as in a cell
    run.view = fold(begun, Record(number=10**6, at_unix_s=0, run=begun.name, event=RunEnded(state="done")))
    face.finish(run.view)
    assert sent
