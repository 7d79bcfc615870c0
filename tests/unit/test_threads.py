"""Threads of the numeric libraries in a process that holds so many CPUs."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

MODEL = min(Path(find_spec("rapidocr").origin).parent.rglob("*.onnx"), key=lambda file: file.stat().st_size)
CODE = f"""
import json, sys
{{before}}
from raykit.engine.threads import limit_threads
limit_threads(3.5)
limit_threads(3.5)
import onnxruntime, torch
limit_threads(3.5)
named = onnxruntime.SessionOptions()
named.intra_op_num_threads = 2
sessions = [
    onnxruntime.InferenceSession({str(MODEL)!r}, **given)
    for given in ({{{{}}}}, {{{{"sess_options": named}}}}, {{{{"providers": ["CPUExecutionProvider"]}}}})
]
threads = [session.get_session_options().intra_op_num_threads for session in sessions]
print(json.dumps([torch.get_num_threads(), threads, "cv2" in sys.modules]))
"""


@pytest.mark.parametrize("before", ["", "import onnxruntime"])
def test_torch_and_onnxruntime_get_as_many_threads_as_cpus_unless_the_user_names_a_number(before):
    done = subprocess.run([sys.executable, "-c", CODE.format(before=before)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [3, [3, 2, 3], False]


def test_threads_that_a_person_has_chosen_for_the_process_stay():
    before = "from raykit.wire.place import Place; Place(environment={'OMP_NUM_THREADS': '1'}).enter()"
    done = subprocess.run([sys.executable, "-c", CODE.format(before=before)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [1, [1, 2, 1], False]
