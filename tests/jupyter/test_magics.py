"""The magics in real kernels: what a person types, and what becomes of it when a kernel dies."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

import raykit as rk

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("clusters_end_with_module")]

TIMEOUT_S = 120
UP = "import raykit as rk\n%load_ext raykit\n%ray up notebooks --cpus 2 --object-store 100M"


class Kernel:
    """A kernel of its own process, and its cells."""

    def __init__(self) -> None:
        self.manager, self.client = start_new_kernel(kernel_name="python3")

    def run(self, cell: str) -> str:
        """Run a cell and give all that it showed as text; an error's traceback too."""
        shown: list[str] = []

        def take(message: dict[str, Any]) -> None:
            content, kind = message["content"], message["msg_type"]
            if kind == "stream":
                shown.append(content["text"])
            elif kind in ("display_data", "execute_result", "update_display_data"):
                shown.append(content["data"].get("text/plain", ""))
            elif kind == "error":
                shown.append("\n".join(content["traceback"]))

        reply = self.client.execute_interactive(cell, timeout=TIMEOUT_S, output_hook=take)
        self.ok = reply["content"]["status"] == "ok"
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(shown))

    def until_shown(self, words: str) -> None:
        """Wait until a cell that runs has shown something with these words."""
        while words not in str(self.client.get_iopub_msg(timeout=TIMEOUT_S)["content"].get("data", "")):
            pass

    def kill(self) -> None:
        """SIGKILL, as when a machine runs out of memory."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel() -> Iterator[Callable[[], Kernel]]:
    """Make kernels that end with the test."""
    made: list[Kernel] = []

    def start() -> Kernel:
        made.append(Kernel())
        return made[-1]

    yield start
    for each in made:
        if each.manager.is_alive():
            each.kill()


TRAIN = """%%ray train survivor --workers 1:2 -o steps --detach
import time, torch
model = torch.nn.Linear(4, 1)
job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01))
for batch in job.batches({"x": torch.randn(640, 4)}, batch_size=32, epochs=20):
    loss = model(batch["x"]).pow(2).mean()
    loss.backward()
    time.sleep(0.01)
    job.commit(loss=loss)
steps = job.step"""


def test_a_run_survives_its_kernel_and_a_second_kernel_has_its_events_and_its_result(kernel):
    first = kernel()
    first.run(UP)
    assert "goes on by itself" in first.run(TRAIN)
    first.kill()
    second = kernel()
    second.run(UP)
    shown = second.run("%ray watch survivor")
    assert "survivor: training, done" in shown
    assert "400" in second.run("print(steps)")


ENDINGS = {
    "restarted": lambda manager: manager.restart_kernel(),
    "shut down": lambda manager: manager.shutdown_kernel(),
}


@pytest.mark.parametrize("end", ENDINGS.values(), ids=ENDINGS)
def test_a_run_goes_on_when_the_kernel_ends_whose_cell_waits_for_it(kernel, end):
    """Jupyter interrupts a kernel before it asks it to end."""
    first = kernel()
    first.run(UP)
    first.client.execute("%%ray run waits\nimport time\ntime.sleep(600)")
    first.until_shown("running")
    first.client.stop_channels()
    end(first.manager)
    second = kernel()
    second.run(UP)
    assert "running" in second.run("print(rk.watch('waits').view.state)")
    second.run("%ray stop waits")


BAD = [
    ("%%ray run\nx = = 1", "invalid syntax"),
    ("%%ray run\nprint(modle)", "'modle' is not defined"),
    ("import threading; lock = threading.Lock()", ""),
    ("%%ray run\nlock.acquire()", "'lock' (_thread.lock) does not pickle"),
    ("import numpy as np; big = np.zeros(15_000_000)", ""),
    ("%%ray run -o modle\nmodel = 1", "-o modle: the cell sets no such name.\nDid you mean model?"),
    ("%%ray train --workers 1 -o modle\nmodel = 1", "Did you mean model?"),
    ("%%ray pipeline --source big\nx = 1", "no stage"),
    ("%%ray pipeline --source big\nimport asyncio\nawait asyncio.sleep(0)", "Await in a cell before it"),
    ("%%ray pipeline --source nothing.csv\n@rk.stage()\ndef f(row):\n    return row", "Nothing is at nothing.csv"),
    ("empty = []", ""),
    ("%%ray pipeline --source empty\n@rk.stage()\ndef f(row):\n    return row", "source is empty"),
    ("%%ray run --cpus 64\n1", "has 2 CPUs"),
    ("%%ray run --gpus 1\n1", "0 GPUs"),
    ("%%ray train --workers 4:2\n1", "write 2:4"),
    ("%ray up --cpu 2", "Did you mean --cpus"),
    ("%ray ups", "Did you mean up"),
    ("%ray train x", "%%ray"),
    ("%ray watch nobody", "There is no run nobody"),
    ("%%ray serve\nx = 1", "defines 0 stages; one is served"),
    ("%%ray serve --replicas 0\n@rk.stage()\ndef f(row):\n    return row", "as 0:4"),
    ("%ray run x", "%%ray"),
]


def test_bad_input_is_a_short_error_that_says_what_to_do_and_leaves_nothing_running(kernel):
    mine = kernel()
    mine.run(UP)
    for cell, words in BAD:
        shown = mine.run(cell)
        assert words in shown, (cell, shown)
        assert mine.ok == (words == ""), cell
        assert "raykit/" not in shown, shown
    assert "running" not in mine.run("%ray runs")


def test_without_a_cluster_each_word_says_how_to_start_one(kernel, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYKIT_HOME", str(tmp_path / "empty"))
    mine = kernel()
    mine.run("import raykit as rk\n%load_ext raykit")
    for cell in ("%ray status", "%%ray run\n1", "%ray watch x", "%ray stop x"):
        assert "Start one: %ray up" in mine.run(cell)
        assert not mine.ok


SERVE = """%%ray serve greeter --replicas 1:2 --slo 200ms
@rk.stage(cpus=0.1)
def greet(row):
    return {"said": f"Hello, {row['name']}"}"""


def test_a_service_outlives_its_kernel_and_why_says_what_a_run_waits_for(kernel):
    first = kernel()
    first.run(UP)
    assert "Service greeter is running at http://127.0.0.1:" in first.run(SERVE)
    first.kill()
    second = kernel()
    second.run(UP)
    assert "Hello, you" in second.run("print(rk.service('greeter')({'name': 'you'}))")
    second.run("%%ray run --cpus 1 --detach\nimport time; time.sleep(60)")
    second.run("while not rk.watch('cell').view.held:\n    pass")
    second.run("%%ray run waiting --cpus 2 --detach\n1")
    shown = second.run("%ray why waiting")
    assert "waiting (normal priority) lacks 2 CPU slots" in shown
    assert re.search(r"greeter +service +high +0.1 CPU slots +when it ends", shown), shown
    assert "lacks nothing" in second.run("%ray why greeter")
    assert re.search(r"cell +task +normal +1 CPU slot", second.run("%ray leases"))
    second.run("%ray stop cell\n%ray stop waiting\n%ray stop greeter")


def test_an_error_of_the_cell_points_at_the_cell_s_own_line(kernel):
    mine = kernel()
    mine.run(UP)
    shown = mine.run("%%ray run\nx = 0\nprint('so far')\ny = 1 / x")
    assert not mine.ok
    assert re.search(r'File "Cell In\[\d+\]", line 4', shown), shown
    assert "y = 1 / x" in shown
    assert "so far" in shown


def test_no_magic_needs_ray_in_the_kernel(kernel):
    mine = kernel()
    mine.run(UP)
    mine.run("%%ray run -o answer\nanswer = 6 * 7")
    assert "42 False" in mine.run("import sys; print(answer, 'ray' in sys.modules)")


def test_a_cell_sets_names_anew_stands_in_its_folder_and_tells_of_an_edited_module(kernel, tmp_path):
    (tmp_path / "config.txt").write_text("of my notebook")
    (tmp_path / "helper_beside.py").write_text("RATE = 1\n")
    mine = kernel()
    mine.run(UP)
    mine.run(f"%cd {tmp_path}\nimport os, helper_beside\nos.environ['OWN'] = 'own'\ncount = 41")
    (tmp_path / "helper_beside.py").write_text("RATE = 2\n")
    shown = mine.run(
        "%%ray run -o count --env WORD=hi,OWN\ncount += helper_beside.RATE\ndisplay(count)\n"
        "print(open('config.txt').read(), os.environ['WORD'], os.environ['OWN'])"
    )
    assert "helper_beside.py was edited after this kernel imported it (RATE)" in shown
    assert "43\n" in shown
    assert "of my notebook hi own" in shown
    assert "43" in mine.run("print(count)")
    assert "the kernel has no such variable" in mine.run("%%ray run --env NOT_THERE\n1")


@pytest.mark.slow
def test_a_dead_head_is_told_and_a_new_cluster_takes_the_run_up_in_the_same_kernel(kernel):
    mine = kernel()
    mine.run("import raykit as rk\n%load_ext raykit\n%ray up mortal --cpus 2 --object-store 100M")
    mine.run(TRAIN.replace("survivor", "lost"))
    mine.run(
        "import os, signal, time\nrun = rk.watch('lost')\n"
        "while run.refresh(wait_s=1).step < 20: pass\n"
        "from raykit.cluster import record\n"
        "os.kill(record.find('mortal').head.pid, signal.SIGKILL)"
    )
    shown = mine.run("%ray watch lost")
    assert not mine.ok
    assert "The cluster mortal is gone: its head died" in shown
    assert "%ray up mortal" in shown
    assert "up anew" in mine.run("%ray up mortal --cpus 2 --object-store 100M")
    assert "lost: training, done" in mine.run("%ray resume lost")
    assert "400" in mine.run("print(steps)")


def test_an_interrupted_cell_stops_its_run_at_a_commit_says_how_to_resume_and_the_kernel_lives(kernel):
    mine = kernel()
    mine.run(UP)
    message = mine.client.execute(TRAIN.replace("survivor", "halted").replace(" --detach", ""))
    mine.until_shown("step ")
    mine.manager.interrupt_kernel()
    content = mine.client.get_shell_msg(timeout=TIMEOUT_S)
    assert content["parent_header"]["msg_id"] == message
    assert content["content"]["status"] == "error"
    assert "%ray resume halted" in "".join(content["content"]["traceback"])
    assert "halted: training, done" in mine.run("%ray resume halted")
    assert "400" in mine.run("print(steps)")


SLOW_TO_STOP = """%%ray train slow --workers 1 --spares 0
import pathlib, time, torch
model = torch.nn.Linear(4, 1)
job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01))
for batch in job.batches({{"x": torch.zeros(8, 4)}}, batch_size=4):
    pathlib.Path({begun!r}).touch()
    while not pathlib.Path({file!r}).exists():
        time.sleep(0.05)
    model(batch["x"]).sum().backward()
    job.commit()"""


def test_two_interrupts_stop_a_run_or_say_that_it_is_still_running(kernel, tmp_path, until):
    mine = kernel()
    mine.run(UP)
    rk.use("notebooks")
    mine.client.execute(TRAIN.replace("survivor", "twice").replace(" --detach", ""))
    mine.until_shown("step ")
    until(lambda: rk.watch("twice").view.step)
    for _ in range(2):
        mine.manager.interrupt_kernel()
        time.sleep(0.2)  # as a person presses a button
    content = mine.client.get_shell_msg(timeout=TIMEOUT_S)
    assert "%ray resume twice" in "".join(content["content"]["traceback"])
    state, step, saved = mine.run("view = rk.watch('twice').refresh()\nprint(view.state, view.step, view.checkpoint_step)").split()
    assert (state, saved) == ("stopped", step)
    mine.client.execute(SLOW_TO_STOP.format(begun=str(tmp_path / "begun"), file=str(tmp_path / "goes on")))
    until((tmp_path / "begun").exists)
    mine.manager.interrupt_kernel()
    until(lambda: rk.watch("slow").view.state == "stopping")
    mine.manager.interrupt_kernel()
    content = mine.client.get_shell_msg(timeout=TIMEOUT_S)
    assert "The run slow is still running at step 0. It was asked to end" in "".join(content["content"]["traceback"]), content
    (tmp_path / "goes on").touch()
    assert "RunStoppedError" in mine.run("rk.watch('slow').wait()")


def test_who_interrupts_a_watch_leaves_the_run_alone(kernel):
    mine = kernel()
    mine.run(UP)
    mine.run("%%ray run watched --detach\nimport time\ntime.sleep(600)")
    message = mine.client.execute("%ray watch watched")
    mine.until_shown("running")
    mine.manager.interrupt_kernel()
    content = mine.client.get_shell_msg(timeout=TIMEOUT_S)
    assert content["parent_header"]["msg_id"] == message
    assert "Stop it: %ray stop watched" in "".join(content["content"]["traceback"])
    assert "running" in mine.run("print(rk.watch('watched').view.state)")
    mine.run("%ray stop watched")


def test_a_killed_hub_is_back_and_the_run_did_not_notice(kernel):
    mine = kernel()
    mine.run(UP)
    mine.run(TRAIN.replace("survivor", "hubless"))
    mine.run("import os, signal\ncluster = rk.use('notebooks')\nos.kill(cluster.door.ping()['pid'], signal.SIGKILL)")
    shown = mine.run("%ray watch hubless")
    assert "hubless: training, done" in shown
    assert "was lost" not in shown


OBSERVED = """import ray, ray.data
ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir={folder!r}, object_store_memory=100_000_000)
ray.data.DataContext.get_current().enable_progress_bars = False
%load_ext raykit
%ray observe data"""


@pytest.mark.slow
def test_plain_ray_data_code_of_a_kernel_is_shown_until_it_is_observed_no_more(kernel):
    mine = kernel()
    assert "no Ray driver" in mine.run("%load_ext raykit\n%ray observe data")
    assert not mine.ok
    with tempfile.TemporaryDirectory(prefix="rk-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        assert "is shown from now on" in mine.run(OBSERVED.format(folder=folder))
        shown = mine.run("rows = ray.data.range(1000).map(lambda row: row).take_all()")
        assert mine.ok, shown
        assert "observed, done" in shown
        assert "rows out 1,000" in shown
        assert "rows in unknown" in shown
        shown = mine.run("ray.data.range(10).map(lambda row: row['nothing']).materialize()")
        assert not mine.ok
        assert "observed, failed" in shown
        assert "error in Ray Data: KeyError" in shown
        assert "observed no more" in mine.run("%ray observe off")
        assert "observed" not in mine.run("ray.data.range(10).map(lambda row: row).materialize()")
        assert "Nothing was observed" in mine.run("%ray observe off")
        assert "to observe" in mine.run("%ray observe train")
        mine.run("ray.shutdown()")
