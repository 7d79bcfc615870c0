"""A stage behind HTTP: its answers, its refusals, and what happens to requests when something dies."""

import gzip
import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import torch

import raykit as rk
from raykit.cluster.record import processes
from raykit.errors import InputError, OptionError, RequestError, RunError, RunFailedError, RunNameTakenError, UpdateRefusedError
from raykit.spec.json_text import PYTHON_JSON
from tests.ray import loops

pytestmark = pytest.mark.ray

SAVE_S = 0.02


@rk.stage(cpus=1, batch=4)
def double(batch):
    import time

    time.sleep(0.02)
    return {"y": 2 * batch["x"]}


@pytest.fixture
def serve(cluster, until):
    """Serve, and end what is served with the test."""
    served = []

    def up(work, **options):
        served.append(rk.serve(work, **options))
        return served[-1]

    yield up
    for each in served:
        each.stop()
    until(lambda: all(each.run.refresh().ended for each in served))


def ask_from_threads(service, *, num_threads=4, num_requests=40):
    """Ask from several threads, and give the threads with what went wrong in them."""
    wrong = []

    def ask():
        for number in range(num_requests):
            try:
                assert service({"x": number}) == {"y": 2 * number}
            except Exception as exc:
                wrong.append(exc)

    threads = [threading.Thread(target=ask) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    return threads, wrong


def done(threads):
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_rows_and_lists_of_rows_are_answered_and_what_is_wrong_is_said(serve):
    service = serve(double).wait()
    assert service({"x": 2}) == {"y": 4}
    assert service([{"x": number} for number in range(10)]) == [{"y": 2 * number} for number in range(10)]
    with pytest.raises(RequestError, match="KeyError: 'x'"):
        service({"z": 1})
    known = {"Authorization": f"Bearer {service.token}"}
    assert httpx.get(service.url).status_code == httpx.post(service.url, json={"x": 1}).status_code == 401
    assert httpx.get(service.url, headers=known).json() == {"service": "double", "replicas": 1}
    for wrong in ("{", "7", "[]", "[7]"):
        answer = httpx.post(service.url, content=wrong, headers=known)
        assert answer.status_code == 400
        assert answer.json()["hint"].startswith("Send")
    assert oct(os.stat(f"{service.run.view.folder}/service.token").st_mode)[-2:] == "00"


def test_a_class_an_async_function_and_a_plain_one_are_served(serve):
    class Model:
        def __init__(self):
            import numpy as np

            self.weights = np.arange(3)

        def __call__(self, row):
            return {"scores": self.weights * row["x"], "first": self.weights[0]}

    assert serve(Model, replicas=1).wait()({"x": 2}) == {"scores": [0, 2, 4], "first": 0}

    @rk.stage(cpus=0, concurrency=8)
    async def wait(row):
        import asyncio

        await asyncio.sleep(0.2)
        return row["x"]

    service = serve(wait).wait()
    begun_s = time.monotonic()
    assert service([{"x": number} for number in range(8)]) == list(range(8))
    assert time.monotonic() - begun_s < 8 * 0.2  # they wait together


def test_the_requests_of_a_replica_that_dies_are_answered_by_another(serve, until):
    service = serve(double, replicas=2).wait()
    threads, wrong = ask_from_threads(service)
    service.run.drill("kill-worker")
    done(threads)
    assert wrong == []
    until(lambda: len(service.run.refresh().cards) == 2)
    lost, verdict = service.run.view.cards
    assert lost.title.endswith("was lost")
    assert verdict.good
    assert service.run.view.stages[0].rows_out <= 160


def test_an_ingress_that_dies_is_back_at_its_address_and_so_is_a_host_while_requests_go_on(serve, until):
    service = serve(double).wait()
    url = service.url
    service.run.drill("kill-host")
    threads, wrong = ask_from_threads(service, num_threads=2)
    done(threads)
    assert wrong == []
    until(lambda: service.run.refresh().host_attempts == 2 and service.run.view.stages[0].rows_out == 80)
    (ingress,) = (each for each in processes("shared") if each.name() == "ray::Ingress")
    ingress.kill()
    assert service({"x": 4}) == {"y": 8}
    assert service.run.refresh().service.url == url
    until(lambda: service.run.refresh().stages[0].rows_out == 81)
    assert len([replica for replica in service.run.view.stages[0].replicas if not replica.gone]) == 1


def test_a_request_that_kills_its_replicas_is_answered_with_an_error_and_the_others_are_not(serve):
    @rk.stage(cpus=0, batch=4)
    def fragile(batch):
        import os
        import time

        if 13 in batch["x"]:
            os._exit(1)
        time.sleep(0.01)
        return batch

    service = serve(fragile).wait()
    answers = {}

    def ask(number):
        try:
            answers[number] = service({"x": number})
        except RequestError as exc:
            answers[number] = exc.problem

    threads = [threading.Thread(target=ask, args=(number,)) for number in (11, 12, 13, 14, 15)]
    for thread in threads:
        thread.start()
    done(threads)
    assert answers.pop(13) == "3 replicas died while they answered this request"
    assert answers == {number: {"x": number} for number in (11, 12, 14, 15)}


def test_a_service_of_none_to_two_replicas_starts_with_its_first_request_and_grows(serve, until):
    @rk.stage(cpus=1)
    def slow(row):
        import time

        time.sleep(0.1)
        return {"y": 2 * row["x"]}

    service = serve(slow, replicas=(0, 2), slo_s=0.1).wait()
    assert service.run.view.stages[0].replicas == ()
    assert service({"x": 1}) == {"y": 2}
    threads, wrong = ask_from_threads(service, num_threads=12, num_requests=10)
    until(lambda: service.run.refresh().stages[0].num_replicas == 2)
    done(threads)
    assert wrong == []


def posted(service, content, *, url=None, **headers):
    """Post a body as it is, and return status and JSON of the answer."""
    headers = {"Authorization": f"Bearer {service.token}"} | {name.replace("_", "-"): value for name, value in headers.items()}
    answer = httpx.post(url or service.url, content=content, headers=headers, timeout=60, trust_env=False)
    assert answer.headers["content-type"].startswith("application/json")
    return answer.status_code, strictly(answer.text)


def strictly(text):
    def refuse(word):
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def answered_raw(service, chunks):
    """Send a chunked body as it is, and give the answer's JSON."""
    address = urlsplit(service.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as wire:
        head = f"POST / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {service.token}\r\nTransfer-Encoding: chunked\r\n\r\n"
        wire.sendall(head.encode() + chunks)
        answer = b"".join(iter(lambda: wire.recv(4096), b""))
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def in_parts(size):
    """Give a body of ``size`` bytes whose length no header tells."""
    yield b'{"x": "'
    for _ in range(size // 2**20):
        yield b"x" * 2**20
    yield b'"}'


def test_an_odd_request_is_refused_in_words_and_costs_no_replica(serve):
    @rk.stage(cpus=0)
    def size(row):
        return {"n": len(row["x"])}

    service = serve(size).wait()
    pids = [replica.pid for replica in service.run.refresh().stages[0].replicas]
    for body, words in (
        (b"", "body is empty"),
        (b'{"x": "\xff"}', "is not text"),
        (b'{"x": NaN}', "has NaN, which is not JSON"),
        (b'{"x": "a", "x": "b"}', "has the key 'x' twice"),
        (b'{"x": ' + b"[" * 100_000, "nested too deeply"),
        (b'["a"]', "Item 0 of the list is text, not an object"),
        (b'{"x": "a"}, 7', "not JSON: Extra data"),
        (b"null", "The request is null, not an object"),
    ):
        status, said = posted(service, body)
        assert (status, words in said["error"], said["hint"][:4] in ("Send", "Nest")) == (400, True, True), said
    deep = b'{"x": ' + b"[" * 900 + b"]" * 900 + b"}"
    assert posted(service, deep)[0] in (200, 400)  # how deep is too deep differs between versions of Python
    assert posted(service, b"--b\r\nContent", Content_Type="multipart/form-data; boundary=b")[0] == 400
    for encoding in ("gzip", "deflate"):
        status, said = posted(service, b"no such", Content_Encoding=encoding)
        assert (status, "cannot be read" in said["error"], "Content-Encoding" in said["hint"]) == (400, True, True)
    assert "cannot be read: " in answered_raw(service, b"4\r\nHello\r\n0\r\n\r\n")["error"]
    assert posted(service, b'{"x": "ab"}', url=service.url + "nowhere")[0] == 404
    answer = httpx.put(service.url, headers={"Authorization": f"Bearer {service.token}"})
    assert (answer.status_code, sorted(answer.json()), answer.headers["allow"]) == (405, ["error", "hint"], "GET,HEAD,POST")
    too_large = "larger than 64 MiB, the most that a service takes"
    for body in (b'{"x": "%s"}' % (b"x" * 2**26), in_parts(2**26)):
        status, said = posted(service, body)
        assert (status, too_large in said["error"]) == (413, True)
    with pytest.raises(RequestError, match=too_large):
        service({"x": "x" * 2**26})
    assert posted(service, b"[" + b"{}," * 10_000 + b"{}]")[0] == 413
    for body, headers in (
        (in_parts(2**20), {}),
        (gzip.compress(b"".join(in_parts(2**20))), {"Content_Encoding": "gzip"}),
        (b"".join(in_parts(2**20)), {"Content_Type": "text/plain"}),
    ):
        assert posted(service, body, **headers) == (200, {"n": 2**20})
    assert [replica.pid for replica in service.run.refresh().stages[0].replicas] == pids
    assert service.run.view.cards == ()


def test_an_odd_answer_is_json_or_an_error_in_words_and_costs_no_replica(serve):
    class Odd:
        def __call__(self, row):
            import asyncio
            import sys

            if row["say"] == "exit":
                sys.exit(3)
            kinds = {
                "interrupt": KeyboardInterrupt,
                "stop": StopIteration,
                "leave": GeneratorExit,
                "cancel": asyncio.CancelledError,
            }
            if row["say"] in kinds:
                raise kinds[row["say"]]
            if row["say"] == "raise":
                raise ValueError(row["x"])
            if row["say"] == "key":
                return {1: row["x"]}
            return {"x": row["x"], "nan": float("nan"), "inf": [float("-inf")]}

    service = serve(Odd).wait()
    pids = [replica.pid for replica in service.run.refresh().stages[0].replicas]
    assert posted(service, b'{"say": "", "x": "\\ud800"}') == (200, {"x": "\ud800", "nan": None, "inf": [None]})
    made = service({"say": "", "x": [float("nan"), 2**70, 0.1]})
    assert str(made) == "{'x': [nan, 1180591620717411303424, 0.1], 'nan': nan, 'inf': [-inf]}"
    for say, words in (
        ("exit", r"SystemExit: 3 \(.*, line \d+: sys.exit\(3\)\)"),
        ("interrupt", "KeyboardInterrupt"),
        ("stop", "StopIteration"),
        ("leave", "GeneratorExit"),
        ("cancel", "CancelledError"),
        ("key", r"TypeError: the answer has the key 1 of type int"),
    ):
        with pytest.raises(RequestError, match=words):
            service({"say": say, "x": 0})
        status, said = posted(service, json.dumps({"say": say, "x": 0}))
        assert (status, said["hint"]) == (500, "The replica's log has the traceback.")
    for text in ("\ud800", "\0\x1b\udcff", "a" * 100_000):
        assert posted(service, json.dumps({"say": "raise", "x": text}))[1]["error"].startswith(f"ValueError: {text[:1000]}")
    with pytest.raises(RequestError, match="Item 1 of the list: SystemExit: 3"):
        service([{"say": "", "x": 0}, {"say": "exit"}])
    assert [replica.pid for replica in service.run.refresh().stages[0].replicas] == pids
    assert service.run.view.cards == ()


def test_a_class_that_exits_while_it_is_built_is_told_with_its_lines(serve):
    class Exits:
        def __init__(self):
            import sys

            sys.exit("no \ud800 weights")

        def __call__(self, row):
            return row

    with pytest.raises(RunFailedError, match=r"SystemExit: no .* weights"):
        serve(Exits).wait()


def test_one_bad_request_of_a_batch_is_answered_alone(serve):
    @rk.stage(cpus=0, batch=8)
    def parse(batch):
        import argparse

        parser = argparse.ArgumentParser()
        parser.add_argument("--id", type=int)
        return {"id": [parser.parse_args(line.split()).id for line in batch["line"]], "echo": batch["echo"]}

    service = serve(parse).wait()
    ids = [13835058055282163713, 5, 9007199254740993, 7]
    echoes = [13835058055282163713, 0.5, True, None]
    rows = [{"line": f"--id {number}", "echo": echo} for number, echo in zip(ids, echoes, strict=True)]
    alone = [service(row) for row in rows]
    assert alone == [{"id": number, "echo": echo} for number, echo in zip(ids, echoes, strict=True)]
    assert list(map(repr, service(rows))) == list(map(repr, alone))
    with ThreadPoolExecutor(8) as pool:
        bad = [{"line": "--id x\ud800", "echo": 0}, {"line": "--what", "echo": 0}, {"echo": 0}]
        made = list(pool.map(lambda row: posted(service, json.dumps(row)), [*rows, *bad] * 4))
    assert [made[place] for place in range(len(made)) if place % 7 < 4] == [(200, each) for each in alone] * 4
    assert [status for place, (status, _) in enumerate(made) if place % 7 >= 4] == [500] * 12
    assert made[4][1]["error"].startswith("SystemExit: 2 (")
    assert made[6][1]["error"] == "KeyError: 'line'"
    assert service.run.refresh().cards == ()


def test_requests_whose_client_has_gone_are_dropped(serve, until, tmp_path):
    go = tmp_path / "go"

    @rk.stage(cpus=0)
    class Slow:
        def __init__(self):
            self.calls = []

        def __call__(self, row):
            import time

            self.calls.append(row["n"])
            while not go.exists():
                time.sleep(0.02)
            return {"calls": self.calls}

    service = serve(Slow).wait()
    door, record = service.run.cluster.door.service_url(service.name), service.run.cluster.record
    token = Path(record.token_file).read_text()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(service({"n": 0})))
    thread.start()
    until(lambda: service.run.refresh().service.num_open == 1)
    with pytest.raises(TimeoutError, match=r"has not answered within 0.3 s.*\n.*timeout_s=0.6"):
        service({"n": 1}, timeout_s=0.3)
    for number in range(2, 6):
        for url, known in ((service.url, service.token), (door, token)):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url, json={"n": number}, headers={"Authorization": f"Bearer {known}"}, timeout=0.2, trust_env=False)
    until(lambda: service.run.refresh().service.num_open == 1)
    go.touch()
    done([thread])
    assert answers == [{"calls": [0]}]
    asked = httpx.post(
        door, content='{"n": NaN}', headers={"Authorization": f"Bearer {token}", "Content-Type": PYTHON_JSON}, trust_env=False
    )
    assert asked.text == '{"calls": [0, NaN]}'


def test_a_request_may_have_arrays_and_what_json_has_no_word_for_is_refused_here(serve):
    def shape(row):
        return {"sum": sum(row["x"][1])}

    service = serve(shape).wait()
    assert service({"x": np.ones((2, 3))}) == service({"x": torch.ones(2, 3)}) == {"sum": 3.0}
    with pytest.raises(InputError, match=r"The request has a value of type complex at \['x'\], for which JSON has no form"):
        service({"x": 1j})


def test_a_class_that_cannot_be_built_is_told_with_its_lines(serve):
    class Broken:
        def __init__(self):
            raise ValueError("no weights here")

        def __call__(self, row):
            return row

    with pytest.raises(RunFailedError, match="no weights here"):
        serve(Broken).wait()


def test_who_waits_for_a_service_that_takes_long_to_build_may_stop_waiting_and_it_comes(serve, tmp_path):
    class Large:
        def __init__(self):
            while not (tmp_path / "weights").exists():
                time.sleep(0.05)

        def __call__(self, row):
            return row

    service = serve(Large)
    with pytest.raises(TimeoutError, match=r"Large is \w+ after 0.5 s of waiting, and goes on"):
        service.wait(timeout_s=0.5)
    (tmp_path / "weights").touch()
    assert service.wait(timeout_s=60)({"x": 1}) == {"x": 1}


def test_a_replica_that_cannot_be_built_later_is_tried_again_while_the_others_answer(serve, until, tmp_path):
    class Picky:
        def __init__(self):
            if (tmp_path / "broken").exists():
                raise ValueError("no weights now")

        def __call__(self, row):
            return row

    service = serve(Picky, replicas=(1, 1)).wait()
    (tmp_path / "broken").touch()
    service.run.drill("kill-worker")
    until(lambda: any("ValueError: no weights now" in str(card.facts) for card in service.run.refresh().cards))
    (tmp_path / "broken").unlink()
    assert service({"x": 1}) == {"x": 1}


def test_a_host_that_is_killed_while_a_replica_is_built_takes_it_up(serve, until, tmp_path):
    class Slow:
        def __init__(self):
            import os
            import time

            (tmp_path / str(os.getpid())).touch()
            while not (tmp_path / "go").exists():
                time.sleep(0.05)

        def __call__(self, row):
            return row

    service = serve(Slow)
    until(lambda: list(tmp_path.iterdir()))
    service.run.drill("kill-host")
    until(lambda: service.run.refresh().host_attempts == 2)
    (tmp_path / "go").touch()
    assert service.wait()({"x": 1}) == {"x": 1}
    assert len(list(tmp_path.iterdir())) == 2  # one replica, and the word to go


def test_who_asks_a_service_whose_class_cannot_be_built_is_told_why_and_does_not_wait_for_nothing(serve):
    class Broken:
        def __init__(self):
            raise ValueError("no weights here")

        def __call__(self, row):
            return row

    service = serve(Broken, name="hopeless", replicas=(0, 1)).wait()
    with pytest.raises(RunFailedError, match="no weights here"):
        service({"x": 1})


def test_what_was_taken_is_answered_before_the_end(serve, until, tmp_path):
    may_answer = tmp_path / "may answer"

    @rk.stage(cpus=0)
    def slow(row):
        import time

        while not may_answer.exists():
            time.sleep(SAVE_S)
        return row

    service = serve(slow).wait()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(service({"x": 1})))
    thread.start()
    while httpx.get(service.url, headers={"Authorization": f"Bearer {service.token}"}).status_code != 200:
        time.sleep(SAVE_S)
    until(lambda: service.run.refresh().service.num_open)
    service.stop()
    until(lambda: service.run.refresh().state == "stopping")
    may_answer.touch()
    done([thread])
    assert answers == [{"x": 1}]


def test_a_service_takes_a_slot_from_training_of_a_lower_priority_which_has_it_again(serve, until):
    low = rk.train(loops.linear, 10_000, 0.02, workers=(1, 2), spares=0, name="background", priority="low")
    until(lambda: low.refresh().world_size == 2)
    service = serve(double, name="urgent").wait()
    assert service({"x": 3}) == {"y": 6}
    assert low.refresh().world_size == 1
    service.stop()
    until(lambda: low.refresh().world_size == 2)
    low.stop()
    until(lambda: low.refresh().ended)


def test_a_service_is_updated_while_requests_go_on_and_none_fails(serve, until):
    service = serve(double, name="changing", replicas=(2, 2)).wait()
    answers, over = [], threading.Event()

    def ask():
        while not over.is_set():
            try:
                answers.append(service({"x": 1})["y"])
            except Exception as exc:
                answers.append(exc)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(answers) > 20)

    @rk.stage(cpus=1)
    def triple(row):
        return {"y": 3 * row["x"]}

    updated = serve(triple, name="changing", replicas=(2, 2), slo_s=0.5)
    assert updated.name == service.name
    assert updated.is_update
    asked = len(answers)
    updated.wait()
    before = len(answers)
    until(lambda: len(answers) > before + 20)
    over.set()
    done(threads)
    assert set(answers) == {2, 3}
    assert answers[asked] == 2, "the old version answers until there is a new one"
    assert set(answers[before + len(threads) :]) == {3}
    view = service.run.refresh()
    assert (view.service.version, view.service.slo_s, view.service.num_failed) == (2, 0.5, 0)
    until(lambda: service.run.refresh().stages[0].num_replicas == 2)
    assert sum(not each.gone for each in service.run.view.stages[0].replicas) == 2


def test_an_update_that_cannot_be_built_is_refused_with_its_lines_and_the_service_goes_on(serve):
    service = serve(double, name="careful").wait()

    @rk.stage(cpus=1)
    class Broken:
        def __init__(self):
            raise ValueError("no weights here")

        def __call__(self, row):
            return row

    @rk.stage(cpus=1)
    class Deadly:
        def __init__(self):
            import os

            os._exit(1)

        def __call__(self, row):
            return row

    for work, error in ((Broken, "ValueError: no weights here"), (Deadly, "3 replicas were lost while they were built")):
        with pytest.raises(UpdateRefusedError, match=f"careful is not updated, and goes on as it was: .*{error}"):
            serve(work, name="careful").wait()
        assert service({"x": 1}) == {"y": 2}
        assert "The update was refused" in [card.title for card in service.run.refresh().cards]
    updated = serve(rk.stage(cpus=1)(lambda row: {"y": 0}), name="careful").wait()
    assert updated({"x": 1}) == {"y": 0}


def test_a_host_that_is_killed_in_the_middle_of_an_update_brings_it_to_its_end(serve, until, tmp_path):
    service = serve(double, name="steady").wait()

    @rk.stage(cpus=1)
    class Slow:
        def __init__(self):
            import time

            (tmp_path / "built").touch()
            while not (tmp_path / "go").exists():
                time.sleep(0.05)

        def __call__(self, row):
            return {"y": 4 * row["x"]}

    updated = serve(Slow, name="steady")
    until((tmp_path / "built").exists)
    service.run.drill("kill-host")
    until(lambda: service.run.refresh().host_attempts == 2)
    assert service({"x": 1}) == {"y": 2}
    (tmp_path / "go").touch()
    assert updated.wait()({"x": 1}) == {"y": 4}


def test_an_update_that_is_asked_for_while_another_is_tried_takes_its_place(serve, until, tmp_path):
    service = serve(double, name="hasty").wait()

    @rk.stage(cpus=1)
    class Never:
        def __init__(self):
            import time

            (tmp_path / "built").touch()
            while True:
                time.sleep(0.05)

        def __call__(self, row):
            return row

    first = serve(Never, name="hasty")
    until((tmp_path / "built").exists)
    serve(rk.stage(cpus=1)(lambda row: {"y": 0}), name="hasty").wait()
    assert first.wait()({"x": 1}) == {"y": 0}
    there = until(lambda: [each for each in service.run.refresh().stages[0].replicas if not each.gone])
    assert len(there) == 1


def test_what_an_update_cannot_change_is_refused_at_once(serve, until):
    service = serve(double, name="fixed").wait()
    with pytest.raises(RunError, match="A replica of fixed holds 1 CPUs and 0 GPUs, and cannot be updated to one that holds 2"):
        serve(rk.stage(cpus=2)(lambda row: row), name="fixed")
    assert service({"x": 1}) == {"y": 2}
    running = rk.train(loops.linear, 10_000, 0.02, workers=1, spares=0, name="taken")
    with pytest.raises(RunNameTakenError, match="%ray stop taken"):
        rk.serve(double, name="taken")
    running.stop()
    until(lambda: running.refresh().ended)


def test_a_service_that_was_ended_is_taken_up_again_in_its_newest_version(serve, until):
    service = serve(rk.stage(cpus=1)(lambda row: {"y": 0}), name="twice-asked").wait()
    serve(double, name="twice-asked").wait()
    service.stop()
    until(lambda: service.run.refresh().ended)
    resumed = rk.service(rk.resume("twice-asked").name).wait()
    assert resumed({"x": 5}) == {"y": 10}
    os.kill(next(replica.pid for replica in resumed.run.refresh().stages[0].replicas if not replica.gone), signal.SIGKILL)
    assert resumed({"x": 6}) == {"y": 12}
    resumed.stop()
    until(lambda: resumed.run.refresh().ended)


def test_options_that_cannot_be_are_refused_at_once(cluster):
    with pytest.raises(OptionError, match="as the most, as 0:4"):
        rk.serve(double, replicas=0)
    with pytest.raises(OptionError, match="above 0"):
        rk.serve(double, slo_s=0)
    with pytest.raises(OptionError, match="has timeout_s, which services do not know"):
        rk.serve(rk.stage(timeout_s=3)(lambda row: row))
    with pytest.raises(RunError, match="There is no run nobody"):
        rk.service("nobody")
