import io
import linecache
import pickle
import subprocess
import sys
import threading
import traceback
from dataclasses import replace

import numpy as np
import psutil
import pytest

from raykit.client.capture import capture_cell, pack
from raykit.errors import CaptureError, CellError
from raykit.wire import buffers
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


def test_a_pickle_that_this_machine_has_no_memory_for_names_the_value_and_both_sizes():
    free_bytes = psutil.virtual_memory().available
    huge = np.lib.stride_tricks.as_strided(np.zeros(1), (free_bytes // 4,), (0,))  # eight bytes that pickle as twice what is free
    with pytest.raises(
        CaptureError, match=r"'rows' \(list\) takes more than .* GB as a pickle, and .* GB of this machine's memory"
    ):
        capture_cell("len(rows)", {"fine": 1, "rows": [huge]}, title=TITLE)


def in_another_process(payload, tmp_path, code="out = made.run()['out']"):
    """Open a payload where nothing of this process is but its files, and return what ``out`` is there."""
    folder = tmp_path / "buffers"
    folder.mkdir(exist_ok=True)
    names = {part: tuple(buffers.new_name(view) for view in views) for part, views in payload.raw.items()}
    for part, views in payload.raw.items():
        for name, view in zip(names[part], views, strict=True):
            buffers.write(folder, name, view)
    (tmp_path / "payload").write_bytes(replace(payload, raw={}, large=names).to_bytes())
    program = f"""
import pickle, sys
from pathlib import Path
from raykit.wire import buffers
from raykit.wire.payload import Payload
read = lambda name: buffers.mapped(Path({str(folder)!r}) / name)
payload = Payload.from_bytes(Path({str(tmp_path / "payload")!r}).read_bytes(), read=read)
try:
    made = payload.open()
    {code}
except Exception as exc:
    out = payload.traceback_of(exc)
sys.stdout.buffer.write(pickle.dumps(out))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout)


def test_large_arrays_travel_beside_the_pickle_and_can_be_written_to(tmp_path):
    base = np.arange(1_000_000.0).reshape(1000, 1000)
    fixed = base.copy()
    fixed.flags.writeable = False
    base.tofile(tmp_path / "numbers")
    file = np.memmap(tmp_path / "numbers", dtype=float, mode="r", shape=(500, 2000))
    names = {
        "file": file,
        "whole": base,
        "part": base[:, :500],
        "turned": base.T,
        "fixed": fixed,
        "small": base[:2, :2],
        "again": base,
    }
    payload = capture_cell("out = [whole, part, turned, fixed, small, file, again]", names, title=TITLE)
    assert len(payload.body) < 100_000
    assert sum(len(view) for view in payload.raw[""]) == 36_000_000  # a part travels as its own bytes, and nothing twice
    look = """
    whole, part, turned, fixed, small, file, again = made.run()["out"]
    look = lambda x: (float(x.sum()), x.shape, x.flags.f_contiguous, x.flags.writeable, type(x))
    out = [look(each) for each in (whole, part, turned, fixed, small, file)]
    whole[0, 0] = 7.0
    out.append((whole is again, float(again[0, 0]), float(turned[0, 0])))"""
    *seen, last = in_another_process(payload, tmp_path, look)
    assert seen == [
        (float(each.sum()), each.shape, each.flags.f_contiguous, each is not fixed and each is not file, type(each))
        for each in (base, base[:, :500].copy(), base.T, fixed, base[:2, :2].copy(), file)
    ]
    assert last == (True, 7.0, 0.0)
    assert base[0, 0] == 0.0
    assert in_another_process(payload, tmp_path, "out = float(made.names['whole'][0, 0])") == 0.0


def test_large_tensors_of_any_kind_travel_beside_the_pickle(tmp_path):
    import torch

    whole = torch.arange(600_000.0)
    model = torch.nn.Linear(1000, 1000)
    kinds = {
        "plain": whole,
        "grad": whole.clone().requires_grad_(),
        "half": whole.bfloat16(),
        "whole_numbers": whole.to(torch.int32).reshape(600, 1000).T,
        "channels": torch.rand(4, 3, 200, 300).to(memory_format=torch.channels_last),
        "part": torch.arange(2_000_000.0).reshape(1000, 2000)[:, ::4],
        "conjugate": torch.complex(whole, whole).conj(),
        "expanded": torch.ones(1).expand(1_000_000),
        "parameter": model.weight,
    }
    payload = capture_cell("out = kinds", {"kinds": kinds}, title=TITLE)
    assert len(payload.raw[""]) == 7 + 1  # a conjugate is pickled as torch does, and the pickle with it is large
    look = "import io, torch; file = io.BytesIO(); torch.save([made.run()['out'], made.names['kinds']['plain'].add_(1)], file); "
    found, _ = torch.load(io.BytesIO(in_another_process(payload, tmp_path, look + "out = file.getvalue()")))
    for name, value in kinds.items():
        wanted = value + 1 if name == "plain" else value
        assert torch.equal(found[name], wanted), name
        assert (found[name].dtype, found[name].requires_grad) == (value.dtype, value.requires_grad)
        assert name in ("part", "conjugate", "expanded") or found[name].stride() == value.stride(), name
    assert type(found["parameter"]) is torch.nn.Parameter


def test_a_large_pickle_travels_as_a_buffer_too(tmp_path):
    payload = capture_cell("out = sum(map(len, rows))", {"rows": [str(n) * 20 for n in range(100_000)]}, title=TITLE)
    assert len(payload.body) == 0
    assert in_another_process(payload, tmp_path) == sum(len(str(n) * 20) for n in range(100_000))


def test_an_object_whose_module_is_missing_there_is_named_with_the_module(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "only_here_really.py").write_text("class Thing: pass\n")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    from only_here_really import Thing

    payload = capture_cell("out = fine, thing", {"fine": {"a": 1}, "thing": [Thing()], "x": 1}, title=TITLE)
    shown = in_another_process(payload, tmp_path)
    assert "name 'thing' needs module only_here_really, which is not installed on the cluster: No module named" in shown
    assert "Install only_here_really there" in shown
    sys.modules.pop("only_here_really")


def test_a_module_that_answers_nothing_keeps_no_cell_from_its_run(monkeypatch):
    class Odd:
        def __getattr__(self, name):
            raise RuntimeError(name)

    monkeypatch.setitem(sys.modules, "odd_module", Odd())
    assert pack(FunctionWork(function=len, args=("abc",)), {"len": len}, {}).open().run() == {"result": 3}


def test_a_payload_of_an_earlier_version_opens():
    old = Payload(body=pickle.dumps({"a": 1}))
    assert Payload.from_bytes(pickle.dumps(old)).open() == {"a": 1}


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


CHAINS = [
    "try:\n    {}['width']\nexcept KeyError as exc:\n    raise RuntimeError('broken') from exc",
    "try:\n    {}['width']\nexcept KeyError:\n    raise RuntimeError('broken')",
    "try:\n    {}['width']\nexcept KeyError:\n    raise RuntimeError('broken') from None",
    "e = ValueError('noted')\ne.add_note('see the manifest\\nof Tuesday')\nraise e",
    (
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    c = e\n"
        "e = ExceptionGroup('two failed', [OSError('shard 7'), ExceptionGroup('inner', [ValueError('shard 9'), c])])\n"
        "e.add_note('of Tuesday')\nraise e"
    ),
    "try:\n    1 / 0\nexcept ZeroDivisionError as c:\n    raise ExceptionGroup('two failed', [OSError('shard 7')]) from c",
    "raise ExceptionGroup('many', [ValueError(str(n)) for n in range(40)])",
    "compile('x = = 1', 'made up', 'exec')",
]


@pytest.mark.parametrize("text", CHAINS)
def test_causes_groups_and_notes_are_shown_as_python_shows_them(text):
    linecache.cache[TITLE] = (len(text), None, text.splitlines(keepends=True), TITLE)
    try:
        exec(compile(text, TITLE, "exec"), {})
    except Exception as exc:
        plain = [line for line in traceback.format_exception(exc) if "test_capture" not in line]
    payload = capture_cell(text, {}, title=TITLE)
    with pytest.raises(Exception) as caught:  # noqa: PT011  (of many kinds)
        payload.open().run()
    ours = [line for line in payload.traceback_of(caught.value).splitlines() if "test_capture" not in line]
    wanted = [line for each in plain for line in each.splitlines()]
    assert _without_marks(ours) == _without_marks(wanted)


def _without_marks(lines):
    """Leave out the marks under a line's part, and this file's frames: the tests' own differ."""
    return [
        line
        for line in lines
        if set(line.strip(" |")) - set("^~") and "exec(compile(text" not in line and "payload.open().run" not in line
    ]


def test_a_context_of_raykit_s_own_is_left_out_of_a_traceback():
    payload = capture_cell("x = 1", {}, title=TITLE)
    try:
        Payload.from_bytes(b"nothing")
    except Exception as exc:
        inner = exc
        inner.__traceback__ = inner.__traceback__.tb_next  # without this file's frame
    error = ValueError("the user's")
    error.__context__ = inner
    assert payload.traceback_of(error) == "ValueError: the user's\n"


def test_views_of_a_tensor_travel_as_their_own_numbers():
    import torch

    whole = torch.arange(600_000.0).reshape(20_000, 30)
    rows = [{"x": whole[row], "narrow": whole[row, :2].bfloat16()[:1]} for row in range(200)]
    payload = capture_cell("got = rows", {"rows": rows}, title=TITLE)
    assert len(payload.body) < 1_000_000
    got = payload.open().run()["got"]
    assert all(torch.equal(ours["x"], theirs["x"]) for ours, theirs in zip(got, rows, strict=True))
    assert got[0]["narrow"].dtype == torch.bfloat16
