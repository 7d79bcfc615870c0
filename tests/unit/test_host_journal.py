"""What a host's journal does while its log cannot be written."""

import subprocess
import sys

ON_A_FULL_DISK = """
import resource, sys, threading
from pathlib import Path

from raykit.engine.journal import Journal
from raykit.events import RunEnded, RunStarted
from raykit.store.log import Log

tries = threading.Semaphore(0)

class Counted(Log):
    def append(self, run, events):
        tries.release()
        return super().append(run, events)

log = Counted(Path(sys.argv[1]))
log.append("run", [RunStarted()])
sys.stderr = open("/dev/full", "w", buffering=1)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1, most))  # a write beyond it is an error, as on a full disk
journal = Journal(log, "run")
journal.emit(RunEnded(state="done"))
for _ in range(3):
    assert tries.acquire(timeout=30)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
journal.close()
sys.stderr = sys.__stderr__
print([type(record.event).__name__ for record in log.read_all()])
"""


def test_what_cannot_be_written_waits_until_it_can_also_where_nobody_can_be_told(tmp_path):
    command = [sys.executable, "-c", ON_A_FULL_DISK, tmp_path / "log"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['RunStarted', 'RunEnded']"
