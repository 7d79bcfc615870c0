"""The rows that a pipeline put aside: with the stage, the error and the traceback, to look at and to try again."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raykit.client.near import NearFiles
from raykit.errors import InputError
from raykit.views import RunView
from raykit.wire import buffers
from raykit.wire.classes import keep_classes_one
from raykit.wire.payload import Payload

if TYPE_CHECKING:
    from raykit.client.run import Run


class Quarantine:
    """Read from the run's folder: it outlives the run, the cluster and the kernel."""

    def __init__(self, view: RunView, near: NearFiles) -> None:
        self._run, self._folder, self._near = view.name, Path(view.folder), near

    def to_pandas(self) -> Any:
        """Give a table of ``stage``, ``error``, ``traceback`` and ``row`` (as the stage was given it)."""
        import pandas as pd

        folder = Path(self._near.path(str(self._folder / "quarantine")))
        parts = [pd.read_parquet(file) for file in sorted(folder.glob("*.parquet"))]
        table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["stage", "error", "traceback", "row"])
        keep_classes_one()
        return table.assign(row=[pickle.loads(row) for row in table["row"]])  # noqa: S301  (our own run's)

    def retry(self, *, stage: str = "", name: str = "") -> Run:
        """Run the rows again in the run's cluster, from the stage that put them aside to the last, with the code as it was.

        Args:
            stage: whose rows, where several put some aside.
            name: of the new run; ``RUN-retry`` if not given.

        Raises:
            InputError: there are no such rows, or several stages have some.
        """
        from raykit.client.pipeline import Pipeline, stage_name

        table = self.to_pandas()
        found = sorted(set(table["stage"]))
        if not found:
            raise InputError(f"The run {self._run} has put no row aside.", "There is nothing to do again.")
        if (not stage and len(found) > 1) or (stage and stage not in found):
            raise InputError(f"Rows of {self._run} were put aside by {', '.join(found)}.", f"Say which: retry(stage={found[0]!r})")
        stage = stage or found[0]
        payload = Path(self._near.path(str(self._folder / "payload"))).read_bytes()
        stages: list[Any] = Payload.from_bytes(payload, read=self._buffer).open()
        names = [stage_name(each) for each in stages]
        again = Pipeline(stages[names.index(stage) :])
        rows = list(table["row"][table["stage"] == stage])
        return again.run(rows, name=name or f"{self._run.partition('#')[0]}-retry", on=self._near.cluster)

    def _buffer(self, name: str) -> memoryview:
        return buffers.mapped(Path(self._near.path(str(self._folder / buffers.FOLDER / name))))

    def __len__(self) -> int:
        return len(self.to_pandas())

    def __repr__(self) -> str:
        table = self.to_pandas()
        return f"{len(table)} rows of {self._run} in quarantine\n{table[['stage', 'error', 'row']].head()}"

    def _repr_html_(self) -> str:
        import html

        table = self.to_pandas()
        head = table[["stage", "error", "row"]].head()._repr_html_()
        return f"<p>{len(table)} rows of {html.escape(self._run)} in quarantine</p>{head}"
