"""What the launchers of rented machines read of their clouds."""

import pytest

from raykit.engine.launchers import aws, gcp


@pytest.mark.parametrize(
    ("reason", "unix_s"),
    [("User initiated (2026-11-28 20:11:14 GMT)", 1795896674.0), ("User initiated", None), ("", None)],
)
def test_when_a_machine_was_stopped_is_read_where_its_cloud_says_so(reason, unix_s):
    assert aws.moment_in(reason) == unix_s


@pytest.mark.parametrize(("stamp", "unix_s"), [("2026-11-28T12:11:14.000-08:00", 1795896674.0), ("", None)])
def test_when_a_machine_of_google_s_was_stopped_is_read(stamp, unix_s):
    assert gcp.moment_in(stamp) == unix_s


def test_of_the_keys_that_ray_has_made_for_google_the_newest_is_used(tmp_path):
    keys = [str(tmp_path / f"key_{number}.pem") for number in range(3)]
    assert gcp.newest_of(keys) == ""
    for key in keys[:2]:
        (tmp_path / key).touch()
    assert gcp.newest_of(keys) == keys[1]
