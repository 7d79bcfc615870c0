"""The sockets of a gloo device, so that they can be cut as a process's death would cut them.

gloo's own ``abort`` returns and leaves its threads where they are (torch 2.13): a rank that left a broken world would wait
in the group's destructor for a peer that has left too, and has its sockets open still for the same reason.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch.distributed as dist

Address = tuple[str, int]
OPEN_FILES = "/dev/fd"

opening = threading.Lock()
"""Held by who opens a socket that listens: whose it is can be told only if there is one at a time."""


def open_device(host: str) -> tuple[Any, Address]:
    """Open a device of gloo on this node's address ``host``, and give where it listens."""
    with opening:
        before = set(_listening())
        device = dist.ProcessGroupGloo.create_device(hostname=host)
        return device, (set(_listening()) - before).pop()


def cut(devices: set[Address]) -> None:
    """Shut down this process's connections from or to these devices: both ends see it at once, who waits there is woken."""
    for each in _sockets():
        with suppress(OSError):  # its peer has closed it
            if not _listens(each) and (each.getsockname()[:2] in devices or each.getpeername()[:2] in devices):
                each.shutdown(socket.SHUT_RDWR)


def _listening() -> Iterator[Address]:
    for each in _sockets():
        if _listens(each):
            yield each.getsockname()[:2]


def _listens(each: socket.socket) -> bool:
    return bool(each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _sockets() -> Iterator[socket.socket]:
    """Give this process's TCP sockets, each by a descriptor of its own."""
    for name in os.listdir(OPEN_FILES):
        with suppress(OSError):  # closed meanwhile
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as found:
                if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
                    yield found
