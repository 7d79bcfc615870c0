"""Whether something could not be written because there was no room for it."""

from __future__ import annotations

import errno

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_full(error: BaseException) -> bool:
    """Say whether a write failed for a full disk, a spent quota, or a limit of files' sizes."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM
