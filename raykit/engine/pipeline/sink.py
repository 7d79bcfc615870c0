"""Where a pipeline's rows go: Parquet parts in a draft folder, which appear in their place when all are written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Self

PART_BYTES = 128_000_000


class PartWriter:
    """Writes tables of one schema into parts of about ``PART_BYTES`` (counted before compression)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None
        self._num_parts = 0
        self._bytes_in_part = 0

    def write(self, table: Any) -> None:
        """Append the rows of a ``pyarrow.Table``; a new schema or a full part begins the next part."""
        import pyarrow.parquet

        if table.num_rows == 0:
            return
        if self._writer is not None and (self._writer.schema != table.schema or self._bytes_in_part > PART_BYTES):
            self._close_part()
        if self._writer is None:
            path = self._folder / f"part-{self._num_parts:05d}.parquet"
            self._writer = pyarrow.parquet.ParquetWriter(path, table.schema)
            self._num_parts += 1
        self._writer.write_table(table)
        self._bytes_in_part += table.nbytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_part()

    def _close_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._bytes_in_part = None, 0


def publish(draft: Path, target: str, *, prefix: str) -> None:
    """Move the parts of ``draft`` to ``target``, a folder or any URL that fsspec knows; other files there stay."""
    if "://" in target:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(target)
        filesystem.makedirs(path, exist_ok=True)
        for part in sorted(draft.iterdir()):
            filesystem.put_file(str(part), f"{path}/{prefix}{part.name}")
        shutil.rmtree(draft)
        return
    folder = Path(target)
    if not prefix:
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    for part in sorted(draft.iterdir()):
        shutil.move(part, folder / f"{prefix}{part.name}")
    draft.rmdir()
