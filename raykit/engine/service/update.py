"""A service's versions as its host goes from one to the next."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from raykit.engine.versions import Versions
from raykit.spec import ServiceSpec, StageSpec


class Updates:
    """The version that answers, and the one that is asked for: it is tried, and then taken or refused."""

    def __init__(self, folder: Path) -> None:
        self._versions = Versions(folder)
        self._spec = cache(self._versions.spec)
        self.current = self._versions.current
        self.asked: int | None = None
        self.look()

    @property
    def spec(self) -> ServiceSpec:
        """What is wanted of the service now."""
        return self._spec(self.current)  # type: ignore[return-value]

    def stage(self, version: int) -> StageSpec:
        """Give the stage of a version."""
        return self._spec(version).stage  # type: ignore[union-attr]

    def payload(self, version: int) -> str:
        """Give where the code of a version lies in the run's folder."""
        return self._versions.place(version, "payload")

    def look(self) -> None:
        """See which version was asked for last; those before it will not be tried any more."""
        asked = self._versions.asked
        self.asked = asked[-1] if asked else None
        for version in asked[:-1]:
            self._versions.drop(version)

    def take(self, version: int) -> None:
        """Have a version as the current one."""
        self._versions.take(version)
        self.current, self.asked = version, None

    def refuse(self) -> None:
        """Forget the version that was asked for."""
        if self.asked is not None:
            self._versions.drop(self.asked)
        self.asked = None
