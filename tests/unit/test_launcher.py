"""What the launcher of rented machines reads of their cloud."""

import pytest

from raykit.engine.launcher import moment_in


@pytest.mark.parametrize(
    ("reason", "unix_s"),
    [("User initiated (2026-11-28 20:11:14 GMT)", 1795896674.0), ("User initiated", None), ("", None)],
)
def test_when_a_machine_was_stopped_is_read_where_its_cloud_says_so(reason, unix_s):
    assert moment_in(reason) == unix_s
