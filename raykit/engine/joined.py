"""A further node on a machine of its own, that joins again when the head took it for dead; run as a program.

Ray does not take back a node that was cut off: its processes end when they learn of it, and a new node has to be started.
The options are those of :mod:`raykit.engine.node`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from types import FrameType

from raykit.engine.node import end_session

LEAST_S = 30.0  # one that ends sooner has hardly joined
TRIES = 3
AGAIN_S = 1.0
PATIENCE_S = 600.0  # so long a head that is not reached is tried again


def main(options: list[str]) -> int:
    """Keep a node running until it is told to end, and give its last status."""
    node: subprocess.Popen[bytes] | None = None
    is_told = False
    stood_s, num_tries = None, 0

    def end(_: int, __: FrameType | None) -> None:
        nonlocal is_told
        is_told = True
        if node is not None:
            node.terminate()

    signal.signal(signal.SIGTERM, end)
    while True:
        begun_s = time.monotonic()
        node = subprocess.Popen([sys.executable, "-m", "raykit.engine.node", *options])
        if is_told:  # while it was started
            node.terminate()
        status, ended_s = node.wait(), time.monotonic()
        end_session()
        num_tries += 1
        stood_s = ended_s if ended_s - begun_s > LEAST_S else stood_s
        if is_told or (num_tries == TRIES if stood_s is None else ended_s - stood_s > PATIENCE_S):
            return status
        sys.stderr.write(f"The node ended with status {status}. It is started again.\n")
        time.sleep(AGAIN_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
