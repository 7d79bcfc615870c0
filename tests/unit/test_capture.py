import subprocess
import sys
import threading

import numpy as np
import pytest

from raykit.client import capture
from raykit.client.capture import capture_cell
from raykit.errors import CaptureError, CellError
from raykit.wire.payload import FunctionWork, Payload

TITLE = "Cell In[4]"


def test_only_the_names_that_a_cell_uses_travel():
    names = {"factor": 3, "unused": threading.Lock()}
    payload = capture_cell("result = [factor * n for n in range(3)]", names, title=TITLE)
    assert payload.open().run()["result"] == [0, 3, 6]


def test_names_that_a_cell_sets_anew_travel_and_one_that_only_may_be_read_is_left_out_where_it_does_not_pickle():
    names = {"count": 41, "data": [3, None], "lock": threading.Lock(), "flag": True}
    text = "count += 1\ndata = [d for d in data if d]\nif not flag:\n    lock = 1\nresult = count, data"
    assert capture_cell(text, names, title=TITLE).open().run()["result"] == (42, [3])
    with pytest.raises(CaptureError, match="'lock'"):
        capture_cell("lock = [lock]", names, title=TITLE)
    late = capture_cell("if not flag:\n    lock = 1\nlock.acquire()", names, title=TITLE)
    with pytest.raises(NameError) as caught:
        late.open().run()
    assert "The notebook's lock did not travel: 'lock' (_thread.lock) does not pickle" in late.traceback_of(caught.value)


def test_a_syntax_error_is_told_with_its_line_before_anything_starts():
    with pytest.raises(CellError, match=r"Cell In\[4\], line 2"):
        capture_cell("x = 1\ny = = 2", {}, title=TITLE)


@pytest.mark.parametrize("text", ["return 1", "x = 1\nbreak", "def f(a, a): pass"])
def test_what_only_the_compiler_refuses_is_told_before_anything_starts_too(text):
    with pytest.raises(CellError, match=r"Cell In\[4\], line \d"):
        capture_cell(text, {}, title=TITLE)


@pytest.mark.parametrize("text", ["!ls", "x = 1\n%time x"])
def test_a_line_that_only_ipython_knows_is_said_to_be_one(text):
    with pytest.raises(CellError, match="Lines that begin with ! or % are for a cell of the notebook's own"):
        capture_cell(text, {}, title=TITLE)


def test_a_cell_may_await_as_in_a_notebook_and_its_errors_have_no_frames_of_asyncio():
    payload = capture_cell("import asyncio\nx = await asyncio.sleep(0, 5)", {}, title=TITLE)
    assert payload.open().run()["x"] == 5
    broken = capture_cell("import asyncio\nawait asyncio.sleep(0)\n1 / 0", {}, title=TITLE)
    with pytest.raises(ZeroDivisionError) as caught:
        broken.open().run()
    frames = [line for line in broken.traceback_of(caught.value).splitlines() if line.startswith("  File")]
    assert [line.partition(",")[0] for line in frames] == [f'  File "{__file__}"', '  File "Cell In[4]"']


def test_a_coroutine_function_is_run_to_its_end():
    async def five():
        return 5

    assert FunctionWork(function=five).run() == {"result": 5}


def test_a_name_that_nobody_defines_is_named():
    with pytest.raises(CellError, match="'modle' is not defined"):
        capture_cell("modle.train()", {"model": 1}, title=TITLE)


def test_an_object_that_does_not_pickle_is_named_with_what_to_do():
    with pytest.raises(CaptureError, match=r"'lock' .*does not pickle") as caught:
        capture_cell("lock.acquire()", {"lock": threading.Lock(), "fine": 1}, title=TITLE)
    assert "__init__" in str(caught.value)


def test_an_array_over_100_mb_is_named_with_its_size():
    with pytest.raises(CaptureError, match=r"'big' .* 120 MB"):
        capture_cell("big.sum()", {"big": np.zeros(15_000_000)}, title=TITLE)


def test_a_large_value_without_a_size_of_its_own_is_refused_too(monkeypatch):
    monkeypatch.setattr(capture, "MAX_CAPTURE_BYTES", 10_000)
    with pytest.raises(CaptureError, match="'rows'"):
        capture_cell("len(rows)", {"rows": [b"x" * 1000] * 3 + [bytes([n] * 1000) for n in range(50)]}, title=TITLE)


def test_a_chosen_name_that_the_notebook_lacks_is_refused():
    with pytest.raises(CellError, match="-i nothing"):
        capture_cell("x = 1", {}, title=TITLE, inputs=("nothing",))


def test_a_cell_runs_in_a_process_that_has_no_notebook(tmp_path):
    payload = capture_cell("out = sum(values)", {"values": [1, 2]}, title=TITLE)
    (tmp_path / "payload").write_bytes(payload.to_bytes())
    code = "import sys; from raykit.wire.payload import Payload; p = Payload.from_bytes(open(sys.argv[1], 'rb').read()); "
    code += "print(p.open().run()['out'], 'IPython' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "payload"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "False"]


def test_a_module_beside_the_notebook_travels_by_value(tmp_path, monkeypatch):
    text = "from pathlib import Path\nHERE = Path(__file__).parent\ndef twice(x):\n    return 2 * x\n"
    (tmp_path / "mine_beside.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    payload = capture_cell("from mine_beside import HERE, twice\nout = twice(21), HERE", {}, title=TITLE)
    monkeypatch.delitem(sys.modules, "mine_beside", raising=False)
    (tmp_path / "mine_beside.py").unlink()
    sys.path_importer_cache.clear()
    before = list(sys.meta_path)
    try:
        assert Payload.from_bytes(payload.to_bytes()).open().run()["out"] == (42, tmp_path)
    finally:
        sys.meta_path[:] = before
        sys.modules.pop("mine_beside", None)


SCRIPT = """
from helper_beside import twice
from raykit.client.capture import pack
def work():
    return twice(21)
print(*pack(work, {"work": work}, {}).modules)
"""


@pytest.mark.parametrize("folder", ["beside", "elsewhere"])
def test_a_module_beside_a_script_travels_wherever_the_script_is_started(tmp_path, folder):
    for name in ("beside", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "beside" / "helper_beside.py").write_text("def twice(x):\n    return 2 * x\n")
    (tmp_path / "beside" / "script.py").write_text(SCRIPT)
    line = [sys.executable, tmp_path / "beside" / "script.py"]
    done = subprocess.run(line, cwd=tmp_path / folder, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["helper_beside"]


def test_a_traceback_begins_at_the_cell_and_shows_its_line():
    payload = capture_cell("def f(x):\n    return 1 / x\n\nf(0)", {}, title=TITLE)
    with pytest.raises(ZeroDivisionError) as caught:
        payload.open().run()
    text = payload.traceback_of(caught.value)
    assert 'File "Cell In[4]", line 4' in text
    assert "return 1 / x" in text
    assert "payload.py" not in text


def test_views_of_a_tensor_travel_as_their_own_numbers():
    import torch

    whole = torch.arange(600_000.0).reshape(20_000, 30)
    rows = [{"x": whole[row], "narrow": whole[row, :2].bfloat16()[:1]} for row in range(200)]
    payload = capture_cell("got = rows", {"rows": rows}, title=TITLE)
    assert len(payload.body) < 1_000_000
    got = payload.open().run()["got"]
    assert all(torch.equal(ours["x"], theirs["x"]) for ours, theirs in zip(got, rows, strict=True))
    assert got[0]["narrow"].dtype == torch.bfloat16
