import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raykit.client.capture import pack
from raykit.client.sending import sent, words
from raykit.engine.buffers import Buffers, check_memory
from raykit.engine.setting import ClusterSetting
from raykit.errors import CapacityError, RunError
from raykit.wire import buffers
from raykit.wire.door import Door
from raykit.wire.payload import Payload

LARGE = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8)


def view_of(array):
    return memoryview(array).cast("B")


@pytest.fixture
def store(tmp_path):
    setting = ClusterSetting(name="lab", address="", port=0, token_file="", folder=str(tmp_path))
    made = Buffers(setting)
    made.missing({}, {"head": 0})
    return made


def test_a_content_that_is_there_is_found_whoever_has_it(store):
    name = buffers.new_name(view_of(LARGE))
    buffers.write(store.folder, name, view_of(LARGE))
    assert buffers.known(store.folder, view_of(LARGE.copy()), buffers.listed(store.folder)) == name
    assert bytes(buffers.mapped(store.folder / name)) == LARGE.tobytes()
    assert store.missing({name: LARGE.nbytes, "ab-c": 1}, {"head": 10**9}) == ["ab-c"]


@settings(max_examples=30, deadline=None)
@given(place=st.integers(0, LARGE.nbytes - 1), other=st.integers(1, 255))
def test_a_content_that_differs_in_one_byte_is_another(tmp_path_factory, place, other):
    folder = tmp_path_factory.mktemp("buffers")
    buffers.write(folder, buffers.new_name(view_of(LARGE)), view_of(LARGE))
    changed = LARGE.copy()
    changed[place] ^= other
    assert buffers.known(folder, view_of(changed), buffers.listed(folder)) is None


def test_who_writes_to_a_buffer_changes_its_own_pages_alone(store):
    buffers.write(store.folder, "ab", view_of(LARGE))
    mine = np.frombuffer(buffers.mapped(store.folder / "ab"), np.uint8)
    mine[:] = 0
    assert bytes(buffers.mapped(store.folder / "ab")) == LARGE.tobytes()


def test_pieces_come_in_any_order_and_twice_and_another_content_is_refused(store):
    name = buffers.digest(view_of(LARGE))
    half = LARGE.nbytes // 2
    first, second = LARGE[:half].tobytes(), LARGE[half:].tobytes()
    for _ in range(2):
        store.write_at(name, 0, first, of=LARGE.nbytes)
        assert store.missing({name: LARGE.nbytes}, {"head": 10**9}) == [name]
    store.write_at(name, half, second, of=LARGE.nbytes)
    store.write_at(name, half, second, of=LARGE.nbytes)
    assert bytes(buffers.mapped(store.folder / name)) == LARGE.tobytes()
    with pytest.raises(ValueError, match="another content"):
        store.write_at("ab", 0, b"xyz", of=3)
    for outside in ("../token", "a/b", ".new", ""):
        with pytest.raises(ValueError, match="no buffer's name"):
            store.write_at(outside, 0, b"xyz", of=3)


def test_an_interrupted_write_leaves_nothing(store):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        buffers.write(store.folder, "ab", view_of(LARGE), told=interrupt)
    assert list(store.folder.iterdir()) == []


def test_buffers_stay_while_a_run_has_them_and_the_last_used_of_the_others(store, tmp_path):
    now_s = time.time()
    for number, name in enumerate(("a1", "a2", "a3", "a4", "a5.new")):
        (store.folder / name).write_bytes(b"x" * 100)
        os.utime(store.folder / name, (0, now_s - 10_000 + number))
    (tmp_path / "run").mkdir()
    store.keep(["a1", "a1"], tmp_path / "run")
    with pytest.raises(RunError, match="Run the cell again"):
        store.keep(["b1"], tmp_path / "run")
    buffers.prune(store.folder, kept_bytes=200, unused_before_unix_s=now_s - 1000)
    assert {file.name for file in store.folder.iterdir()} == {"a1", "a4"}
    (tmp_path / "run" / "buffers" / "a1").unlink()
    buffers.prune(store.folder, kept_bytes=0, unused_before_unix_s=0)  # it may be for a run that starts now
    assert {file.name for file in store.folder.iterdir()} == {"a1", "a4"}
    buffers.prune(store.folder, kept_bytes=0, unused_before_unix_s=now_s)
    assert list(store.folder.iterdir()) == []


def test_what_fits_nowhere_is_refused_with_its_size_and_what_is_free(store):
    check_memory(5_000_000_000, {"head": 1_000_000_000, "other": 6_000_000_000})
    with pytest.raises(CapacityError, match=r"take 7 GB; the most memory that a node has free is 6 GB, on other"):
        check_memory(7_000_000_000, {"head": 1_000_000_000, "other": 6_000_000_000})
    with pytest.raises(
        CapacityError, match=r"take 1e\+03 TB|take .* GB that the cluster lab does not have yet; the disk of its head has"
    ):
        store.missing({"ab": 10**18}, {"head": 10**19})


class Near(Door):
    """The door of a store in this process."""

    def __init__(self, store):
        self.store = store

    def missing(self, sizes):
        return self.store.missing(sizes, {"head": 10**12})


def test_equal_values_of_a_run_are_stored_once_and_the_next_run_sends_nothing(store, tmp_path):
    numbers = np.arange(400_000.0)
    work = [numbers, numbers.copy(), numbers.reshape(400, -1).T, numbers + 1, [str(n) * 30 for n in range(20_000)]]
    written = []
    for _ in range(2):
        payload = sent(pack(work, {"work": work}, {}), lambda question: question(Near(store)), here=tmp_path)
        written.append({file: file.stat().st_mtime_ns for file in store.folder.iterdir()})
        found = Payload.from_bytes(payload.to_bytes(), read=lambda name: buffers.mapped(store.folder / name)).open()
        assert all(np.array_equal(*pair) for pair in zip(found[:4], work[:4], strict=True))
        assert found[4] == work[4]
        found[0][0] = -1.0
        assert found[1][0] == found[2][0, 0] == 0.0
    assert len(written[0]) == 3
    assert written[0].keys() == written[1].keys()


def test_the_line_of_a_long_way_says_how_far_it_is():
    assert words(500_000_000, 2_000_000_000, 3.0).split("|")[1:] == ["█████               ", " 0.50 of 2.00 GB, 9 s left "]
