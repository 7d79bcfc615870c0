"""What is told apart from other errors: that there is no room."""

import pytest

from raykit.store.room import is_full


def test_a_full_device_is_full_and_a_missing_folder_is_not(tmp_path):
    with open("/dev/full", "wb", buffering=0) as device, pytest.raises(OSError, match="No space left") as full:
        device.write(b"x")
    with pytest.raises(OSError, match="No such file") as missing:
        (tmp_path / "none" / "file").write_bytes(b"x")
    assert is_full(full.value)
    assert not is_full(missing.value)
