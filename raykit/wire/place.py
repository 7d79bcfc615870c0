"""Where a notebook stands: the folder of its relative paths, the paths of its imports, and variables of the environment.

A run's process takes that place, so that ``open("config.txt")`` is the file that the notebook would open. Where the folder is
not on the process's machine, an error about a relative path says so.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

chosen: set[str] = set()
"""The variables of this process's environment that a person has chosen for it."""

MAX_NAMES = 2000  # of files that an error may name; a folder of more is listed in part


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A folder with its ``inode``, by which another machine's folder of that path is known to be another one.

    ``paths`` are those of ``sys.path`` that are the user's own. ``names`` are the files of the folder, where the run is on
    other machines.
    """

    folder: str = ""
    inode: int = 0
    paths: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)  # may have secrets

    @classmethod
    def of_this_process(cls, environment: Mapping[str, str], *, is_near: bool) -> Place:
        """Return the place of this process; ``is_near``: the run is on this machine."""
        try:
            folder = os.getcwd()
        except FileNotFoundError:  # it was removed
            return cls(environment=dict(environment))
        names = frozenset() if is_near else frozenset(_names_in(folder))
        own = tuple(os.path.abspath(path) for path in sys.path if _is_user_s(os.path.abspath(path)))
        return cls(folder=folder, inode=os.stat(folder).st_ino, paths=own, names=names, environment=dict(environment))

    @property
    def is_here(self) -> bool:
        """Whether this machine has the folder."""
        with suppress(OSError):
            return bool(self.folder) and os.stat(self.folder).st_ino == self.inode
        return False

    def enter(self, *, kept: Collection[str] = (), keeps_folder: bool = False) -> None:
        """Make this process stand where the notebook does, as far as its machine has the folder.

        Args:
            kept: variables of the environment that stay as they are.
            keeps_folder: whether the folder of this process stays as it is, since it was chosen for it.
        """
        os.environ.update({name: value for name, value in self.environment.items() if name not in kept})
        chosen.update(self.environment, kept)
        if keeps_folder or not self.is_here:
            return
        before = os.getcwd()
        os.chdir(self.folder)
        if before not in (self.folder, *self.paths, *os.environ.get("PYTHONPATH", "").split(os.pathsep)) and not _has_raykit(
            before
        ):
            sys.path[:] = [path for path in sys.path if path != before]  # Ray's workers import from where the cluster was started
        sys.path.extend(path for path in self.paths if path not in sys.path)

    def explain(self, error: BaseException) -> None:
        """Add a note to an error about a file that the notebook's folder may have, and this machine has not."""
        if not isinstance(error, FileNotFoundError) or not self.folder or self.is_here:
            return
        where = f"{os.getcwd()} of {socket.gethostname()}"
        for name in _paths_in(error):
            path = Path(os.path.relpath(name)) if Path(name).is_relative_to(os.getcwd()) else Path(name)  # some make it absolute
            if path.is_absolute() and not path.is_relative_to(self.folder):
                continue
            first = (path.relative_to(self.folder) if path.is_absolute() else path).parts[:1]
            has = f"{name} lies beside the notebook" if set(first) & self.names else f"{name} is a path of the notebook's machine"
            note = f"{has} (in {self.folder}), and this code ran in {where}. Write it to storage that all machines reach, or read it in the notebook: its value travels with the code."
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
            return


def absolute(path: str) -> str:
    """Return a path as any process of this machine reads it; URLs stay, and so does no path."""
    return path if not path or "://" in path else str(Path(path).expanduser().absolute())


def _names_in(folder: str) -> Iterator[str]:
    with suppress(OSError), os.scandir(folder) as entries:
        for _, entry in zip(range(MAX_NAMES), entries, strict=False):
            yield entry.name


def _is_user_s(path: str) -> bool:
    """Return whether a path of ``sys.path`` is none of Python's own."""
    parts = Path(path).parts
    installed = {"site-packages", "dist-packages"} & set(parts)
    return os.path.isdir(path) and not installed and not any(Path(path).is_relative_to(each) for each in _prefixes())


def _prefixes() -> set[str]:
    return {os.path.dirname(os.__file__), sys.prefix}


def _has_raykit(path: str) -> bool:
    return Path(__file__).is_relative_to(path)


def _paths_in(error: FileNotFoundError) -> list[str]:
    """Return the paths that an error names; those of Arrow stand in its text only."""
    if isinstance(error.filename, str | os.PathLike):
        return [os.fspath(error.filename)]
    return re.findall(r"'([^'\n]+)'", str(error)) or [str(error)]
