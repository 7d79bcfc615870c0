"""The folders that raykit owns, all of them closed to other users of the machine."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import platformdirs

from raykit.errors import ClusterError

MAX_RAY_TEMP_CHARS = 40  # Ray adds up to 66 characters for its sockets, whose paths may have 107


def data_home() -> Path:
    """Where clusters, runs and logs are remembered: ``RAYKIT_HOME``, or the user's data folder."""
    chosen = os.environ.get("RAYKIT_HOME")
    return private_folder(Path(chosen) if chosen else platformdirs.user_data_path("raykit"))


def clusters_home() -> Path:
    """One folder for each cluster that ever was."""
    return private_folder(data_home() / "clusters")


def new_ray_temp() -> Path:
    """Make a folder for Ray's sockets and sessions: short, and under one that is closed.

    Ray gives its own folders mode 0777; the closed one above keeps other users out.
    """
    base = Path(tempfile.gettempdir())
    if len(str(base)) > MAX_RAY_TEMP_CHARS - 22:
        base = Path("/tmp")  # noqa: S108  (the sockets' paths would grow too long; the folder below is closed)
    return Path(tempfile.mkdtemp(dir=private_folder(base / f"raykit-{os.getuid()}"), prefix=""))


def private_folder(path: Path) -> Path:
    """Make ``path`` with mode 0700, or take it as it is when it is ours.

    Raises:
        ClusterError: it belongs to another user, or cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as exc:
        raise ClusterError(f"The folder {path} cannot be used: {exc.strerror}.", "Set RAYKIT_HOME to a folder of yours.") from exc
    if found.st_uid != os.getuid():
        raise ClusterError(
            f"The folder {path} belongs to another user (id {found.st_uid}).",
            "Set RAYKIT_HOME (for clusters) or TMPDIR (for Ray's sockets) to a folder of yours.",
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(0o700)
    return path


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, from its first moment on."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
