"""What a service answers, whatever the user's code does with a request."""

import argparse
import asyncio
import json
import pickle
import sys
from contextlib import closing

import pytest

from raykit.engine.service.handler import Handler
from raykit.wire.payload import Payload, SourceText

PAYLOAD = Payload(body=b"")


def answers(call, rows, *, batch_size=None, payload=PAYLOAD):
    with closing(Handler(call, batch_size, payload)) as handler:
        return handler.answers([pickle.dumps(row) for row in rows])


def values(call, rows, **options):
    return [json.loads(answer.json) if not answer.error else answer.error for answer in answers(call, rows, **options)]


def forms(raised):
    """Give handlers that double x, and raise for 13, in all forms: (call, batch size)."""

    def row(row):
        if row["x"] == 13:
            raise raised
        return 2 * row["x"]

    def batch(batch):
        return [row({"x": int(x)}) for x in batch["x"]]

    async def wait(each):
        await asyncio.sleep(0)
        return row(each)

    async def wait_batch(each):
        await asyncio.sleep(0)
        return batch(each)

    return {"row": (row, None), "batch": (batch, 8), "async": (wait, None), "async batch": (wait_batch, 8)}


@pytest.mark.parametrize("form", ["row", "batch", "async", "async batch"])
@pytest.mark.parametrize(
    "raised",
    [
        ValueError("no"),
        StopIteration("no"),
        SystemExit("no"),
        KeyboardInterrupt("no"),
        GeneratorExit("no"),
        asyncio.CancelledError("no"),
    ],
    ids=lambda raised: type(raised).__name__,
)
def test_whatever_is_raised_for_a_request_is_its_answer_alone(raised, form):
    call, batch_size = forms(raised)[form]
    made = values(call, [{"x": x} for x in (11, 12, 13, 14, 15)], batch_size=batch_size)
    error = made.pop(2)
    assert made == [22, 24, 28, 30]
    assert type(raised).__name__ in error
    assert ("test_service_handler.py" in error) == (not isinstance(raised, Exception))


def test_an_exit_is_named_with_the_users_line():
    text = "import argparse\ndef parse(row):\n    parser = argparse.ArgumentParser()\n    return parser.parse_args(row['line'].split())\n"
    names = {}
    exec(compile(text, "<cell 7>", "exec"), names)
    payload = Payload(body=b"", texts={"<cell 7>": SourceText(title="cell `parse`", text=text)})
    (answer,) = answers(names["parse"], [{"line": "--what"}], payload=payload)
    assert answer.error == "SystemExit: 2 (cell `parse`, line 4: return parser.parse_args(row['line'].split()))"

    def parse(row):
        argparse.ArgumentParser().parse_args(row["line"].split())

    (answer,) = answers(parse, [{"line": "--what"}])  # of a script, whose text does not travel
    line = parse.__code__.co_firstlineno + 1
    assert answer.error == f'SystemExit: 2 ({__file__}, line {line}: argparse.ArgumentParser().parse_args(row["line"].split()))'


def test_a_task_of_the_handler_that_exits_or_is_cancelled_costs_no_other_request():
    async def leave():
        sys.exit(3)

    async def handle(row):
        if row["x"] == 1:
            await asyncio.create_task(leave())
        if row["x"] == 2:
            for task in asyncio.all_tasks():
                task.cancel()
        return row["x"]

    zero, one = values(handle, [{"x": 0}, {"x": 1}])
    assert zero == 0
    assert one.startswith("SystemExit: 3 (")
    zero, two, three = values(handle, [{"x": 0}, {"x": 2}, {"x": 3}])
    assert zero == 0
    assert two.startswith("CancelledError (")  # it has cancelled itself, too
    assert three.startswith("CancelledError (")


def test_what_a_generator_yields_is_the_answer_as_a_list():
    def plain(row):
        yield row["x"]
        yield [row["x"]]

    async def wait(row):
        await asyncio.sleep(0)
        yield row["x"]
        yield [row["x"]]

    assert values(plain, [{"x": 1}]) == values(wait, [{"x": 1}]) == [[1, [1]]]


def test_a_signal_of_ray_ends_the_process():
    def handle(row):
        leaving = SystemExit(1)
        leaving.ray_terminate_msg = "The process receives a SIGTERM."
        raise leaving

    for batch_size in (None, 4):
        with pytest.raises(SystemExit):
            answers(handle, [{"x": 1}, {"x": 2}], batch_size=batch_size)


def test_requests_of_unlike_names_do_not_change_each_other():
    def handle(batch):
        return {name: [f"{value} of {type(value).__name__}" for value in column.tolist()] for name, column in batch.items()}

    rows = [{"x": 1}, {"x": 2, "y": 3}, {}, {"x": 4}, {"y": 5, "x": 6}]
    alone = [answers(handle, [row], batch_size=8)[0] for row in rows]
    assert answers(handle, rows, batch_size=8) == alone
    assert json.loads(alone[4].json) == {"y": "5 of int", "x": "6 of int"}
    assert alone[2].error == "ValueError: an empty dict was returned for 1 requests: return a column with a value for each request"


def test_the_halves_of_a_failed_batch_have_their_rows_as_they_came():
    def handle(batch):
        for each in batch["x"]:
            each.append(0)
        if any(9 in each for each in batch["x"]):
            raise ValueError("nine")
        return {"n": [len(each) for each in batch["x"]]}

    made = values(handle, [{"x": [1]}, {"x": [9]}, {"x": [1, 2]}, {"x": []}], batch_size=4)
    assert made == [{"n": 2}, "ValueError: nine", {"n": 3}, {"n": 1}]


def test_an_answer_without_a_form_in_json_costs_no_other_request():
    assert values(
        lambda batch: [{1} if x == 2 else x for x in batch["x"].tolist()], [{"x": x} for x in (1, 2, 3)], batch_size=4
    ) == [
        1,
        "TypeError: the answer is a value of type set, for which JSON has no form: use sorted(value) or list(value)",
        3,
    ]


def test_an_error_may_have_a_text_of_any_characters(capsys):
    class MuteError(Exception):
        def __str__(self):
            raise ValueError("nothing to say")

    raised = {
        "surrogate": ValueError("x\ud800y"),
        "long": ValueError("a" * 10**6),
        "mute": MuteError(),
        "binary": ValueError("\0\x1b\xff"),
    }

    def handle(row):
        raise raised[row["which"]]

    said = dict(zip(raised, answers(handle, [{"which": which} for which in raised]), strict=True))
    assert said["surrogate"].error == "ValueError: x\ud800y"
    assert said["long"].error == f"ValueError: {'a' * 1988}... (1,000,012 characters)"
    assert said["mute"].error == "MuteError: <exception str() failed>"
    assert said["binary"].error == "ValueError: \0\x1b\xff"
    logged = capsys.readouterr().out
    assert "x\\ud800y" in logged
    assert len(logged) < 250_000


def test_a_traceback_that_cannot_be_logged_is_told_in_the_answer(monkeypatch, tmp_path):
    file = (tmp_path / "log").open("w")
    file.close()
    monkeypatch.setattr(sys, "stdout", file)
    (answer,) = answers(lambda row: row["x"], [{}])
    monkeypatch.undo()
    assert answer.error == "KeyError: 'x' (its traceback could not be logged: ValueError: I/O operation on closed file.)"
