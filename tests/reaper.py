"""Wait for the end of the test session (the end of standard input), then take down its clusters and its home."""

from __future__ import annotations

import os
import shutil
import sys

if __name__ == "__main__":
    home = sys.argv[1]
    sys.stdin.buffer.read()
    os.environ["RAYKIT_HOME"] = home
    from raykit.cluster.home import clusters_home
    from raykit.cluster.local import Local

    for folder in clusters_home().iterdir():
        Local().down(folder.name)
    shutil.rmtree(home)
