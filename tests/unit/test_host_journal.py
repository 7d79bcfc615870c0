"""What a host's journal does while its log cannot be written."""

import subprocess
import sys

ON_A_FULL_DISK = """
import os, resource, signal, sys
from pathlib import Path

from raykit.engine.journal import Journal
from raykit.events import RunEnded, RunStarted
from raykit.store.log import Log

log = Log(Path(sys.argv[1]))
log.append("run", [RunStarted()])
said, says = os.pipe()
sys.stderr = os.fdopen(says, "w", buffering=1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit is an error, as on a full disk
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1, most))
journal = Journal(log, "run")
journal.emit(RunEnded(state="done"))
print(os.fdopen(said).readline())
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
journal.close()
print([type(record.event).__name__ for record in log.read_all()])
"""


def test_what_cannot_be_written_waits_until_it_can(tmp_path):
    command = [sys.executable, "-c", ON_A_FULL_DISK, tmp_path / "log"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "log cannot be used" in done.stdout
    assert "['RunStarted', 'RunEnded']" in done.stdout
