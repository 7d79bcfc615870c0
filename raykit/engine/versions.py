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
    def asked(self) -> list[int]:
        """The versions that were asked for since, the last one last."""
        numbers = sorted(int(each.name) for each in self._later.glob("*") if each.name.isdecimal())
        return [number for number in numbers if number > self.current]

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

    def drop(self, number: int) -> None:
        """Forget a version that was asked for."""
        shutil.rmtree(self._later / str(number))

    @property
    def _later(self) -> Path:
        return self.folder / "versions"
