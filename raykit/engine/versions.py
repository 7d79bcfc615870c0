"""The versions of a service: what it was started with, and what it was updated to; each a spec and a payload.

The first is what every run has, ``spec.json`` and ``payload``; a later one has a folder of that name in ``versions``, and is
asked for until it is the current one, or is refused. Hub and host read the same files: the hub adds, the host decides.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from raykit.codec import decode, encode
from raykit.spec import RunSpec

CURRENT = "current"


@dataclass(frozen=True, slots=True)
class Versions:
    """Those in a run's folder; a run that is no service has one."""

    folder: Path

    @property
    def current(self) -> int:
        """The version that answers, or was the last to."""
        file = self._later / CURRENT
        return int(file.read_text()) if file.exists() else 1

    @property
    def newest(self) -> int:
        """The version that was asked for last, and was not refused."""
        return max([self.current, *self._numbers()])

    def spec(self, number: int) -> RunSpec:
        """Read the spec of a version.

        Raises:
            FileNotFoundError: the folder is gone.
        """
        spec: RunSpec = decode(RunSpec, json.loads((self.folder / self.place(number, "spec.json")).read_text()))
        return spec

    def place(self, number: int, name: str) -> str:
        """Give where in the run's folder the spec or the payload of a version lies."""
        return name if number == 1 else f"versions/{number}/{name}"

    def add(self, number: int, spec: RunSpec, payload: bytes) -> None:
        """Write a version down, whole or not at all."""
        draft = self._later / f"{number}.new"
        draft.mkdir(mode=0o700, parents=True)
        (draft / "spec.json").write_text(json.dumps(encode(spec)))
        (draft / "payload").write_bytes(payload)
        draft.rename(self._later / str(number))

    def take(self, number: int) -> None:
        """Have a version as the current one."""
        draft = self._later / f"{CURRENT}.new"
        draft.write_text(str(number))
        draft.replace(self._later / CURRENT)

    def drop_asked(self, *, but: int | None = None) -> None:
        """Forget all that were asked for, but one."""
        for number in self._numbers():
            if number > self.current and number != but:
                shutil.rmtree(self._later / str(number))

    def _numbers(self) -> list[int]:
        return [int(each.name) for each in self._later.glob("*") if each.name.isdecimal()]

    @property
    def _later(self) -> Path:
        return self.folder / "versions"
