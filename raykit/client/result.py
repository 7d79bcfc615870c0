"""What a pipeline wrote, read from its Parquet parts: it outlives the run, the cluster and the kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raykit.client.near import NearFiles
from raykit.client.parts import UnlikePartsError, read, unified
from raykit.client.quarantine import Quarantine
from raykit.errors import RunError, RunNotFoundError
from raykit.views import RunView

HEAD_ROWS = 5


class Result:
    """The rows of a finished pipeline."""

    def __init__(self, view: RunView, near: NearFiles) -> None:
        self.run = view.name
        self._view, self._near = view, near
        self.path = next((output.file for output in view.outputs), "")

    def dataset(self) -> Any:
        """Give the parts as a ``pyarrow.dataset.Dataset``; nothing is read yet.

        Raises:
            RunNotFoundError: the run has written nothing, or its folder is gone.
            RunError: the parts have a column of types that do not go together; ``to_pandas`` reads them.
        """
        try:
            return unified(self._found())
        except UnlikePartsError as exc:
            raise RunError(
                f"The parts of {self.run} have no schema in common: {exc}.", "Read them as they are: result.to_pandas()"
            ) from exc

    def _found(self) -> Any:
        import pyarrow.dataset

        path = self._near.path(self.path) if self.path else ""
        if not path or ("://" not in path and not Path(path).is_dir()):
            raise RunNotFoundError(f"The run {self.run} has no rows at {self.path or 'any path'}.", "Run it to its end first.")
        return pyarrow.dataset.dataset(path, format="parquet")

    def to_pandas(self) -> Any:
        """Read all rows into a pandas table: tensors are arrays, and objects that Arrow does not know are themselves."""
        return read(self._found())

    def count(self) -> int:
        """Give the number of rows."""
        return int(self._found().count_rows())

    @property
    def quarantine(self) -> Quarantine:
        """The rows that were put aside: a table, and ``retry()``."""
        return Quarantine(self._view, self._near)

    def head(self, rows: int = HEAD_ROWS) -> Any:
        """Read the first rows into a pandas table."""
        return read(self._found(), rows=rows)

    def __len__(self) -> int:
        return self.count()

    def __repr__(self) -> str:
        return f"{self.count()} rows of {self.run} in {self.path}\n{self.head()}"

    def _repr_html_(self) -> str:
        import html

        return f"<p>{self.count()} rows of {html.escape(self.run)} in {html.escape(self.path)}</p>{self.head()._repr_html_()}"
