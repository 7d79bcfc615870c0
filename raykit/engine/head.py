"""The head's files as a filesystem of fsspec: for workers on machines that do not share them."""

from __future__ import annotations

import os
from typing import Any

import fsspec
import ray
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from raykit.engine.folder import PROTOCOL
from raykit.engine.setting import NAMESPACE

FILES = "files"
ON_HEAD = {"node:__internal_head__": 0.001}
BLOCK_BYTES = 16_000_000
PASSED_ON = ("ls", "info", "mkdir", "makedirs", "rm", "rm_file", "mv", "cat_file")


@ray.remote(num_cpus=0, max_concurrency=8, max_restarts=-1, max_task_retries=-1)
class Files:
    """The files of the machine on which it runs."""

    def __init__(self) -> None:
        self._local = LocalFileSystem(auto_mkdir=True)

    def do(self, verb: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self._local, verb)(*arguments, **options)

    def write_at(self, path: str, place: int | None, data: bytes) -> None:
        """Write at a place, or at the end; a call that is made twice writes at a place once."""
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(path, "ab" if place is None else "r+b" if place else "wb") as file:
            if place:
                file.seek(place)
            file.write(data)


class HeadFileSystem(AbstractFileSystem):
    """What :class:`Files` does, asked from another machine of the cluster."""

    protocol = PROTOCOL
    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._files = Files.options(  # type: ignore[attr-defined]
            name=FILES, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, resources=ON_HEAD
        ).remote()

    def append(self, path: str, data: bytes) -> None:
        """Write at the end of a file."""
        self.write_at(path, None, data)

    def write_at(self, path: str, place: int | None, data: bytes) -> None:
        self._ask(self._files.write_at, path, place, data)

    def _open(self, path: str, mode: str = "rb", block_size: int | str | None = None, **options: Any) -> _HeadFile:  # noqa: ARG002
        return _HeadFile(self, path, mode, block_size=BLOCK_BYTES)

    @staticmethod
    def _ask(method: Any, *arguments: Any, **options: Any) -> Any:
        # By its future: a plain ray.get warns in the processes of async actors.
        return method.remote(*arguments, **options).future().result()


def _passed_on(verb: str) -> Any:
    def do(self: HeadFileSystem, *arguments: Any, **options: Any) -> Any:
        stripped = [self._strip_protocol(each) if isinstance(each, str) else each for each in arguments]
        return self._ask(self._files.do, verb, *stripped, **options)

    return do


for _verb in PASSED_ON:
    setattr(HeadFileSystem, _verb, _passed_on(_verb))


class _HeadFile(AbstractBufferedFile):
    """Read and written in large blocks."""

    def _fetch_range(self, start: int, end: int) -> Any:
        return self.fs.cat_file(self.path, start=start, end=end)

    def _initiate_upload(self) -> None:
        """The first block makes the file."""

    def _upload_chunk(self, final: bool = False) -> bool:  # noqa: ARG002  (fsspec's signature)
        self.fs.write_at(self.path, self.offset or 0, self.buffer.getvalue())
        return True


fsspec.register_implementation(HeadFileSystem.protocol, HeadFileSystem, clobber=True)
