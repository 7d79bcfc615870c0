import threading

from hypothesis import given
from hypothesis import strategies as st

from raykit.engine.pipeline.packer import Packer

LONG_S = 1000.0


def _filled(rows, **options):
    packer = Packer(**{"max_rows": 1000, "max_bytes": 10**9, "max_wait_s": LONG_S, **options})

    def fill():
        for row in rows:
            packer.add(row)
        packer.close()

    threading.Thread(target=fill, daemon=True).start()
    return packer


@given(st.integers(0, 50), st.integers(1, 8))
def test_a_block_has_so_many_rows_and_the_last_one_the_rest(num_rows, max_rows):
    rows = [{"x": number} for number in range(num_rows)]
    blocks = [block for block, _ in _filled(rows, max_rows=max_rows).blocks()]
    assert [row for block in blocks for row in block] == rows
    assert all(len(block) == max_rows for block in blocks[:-1])


def test_a_block_has_so_many_bytes_and_tells_them():
    sizes = [(len(block), size) for block, size in _filled([{"x": b"0123456789"}] * 5, max_bytes=15).blocks()]
    assert sizes == [(2, 20), (2, 20), (1, 10)]


def test_a_row_is_passed_on_though_the_next_one_does_not_come():
    gate = threading.Event()

    def rows():
        yield {"x": 1}
        gate.wait()
        yield {"x": 2}

    blocks = _filled(rows(), max_wait_s=0.0).blocks()
    assert next(blocks)[0] == [{"x": 1}]
    gate.set()
    assert [block for block, _ in blocks] == [[{"x": 2}]]


def test_no_row_is_taken_while_a_full_block_waits():
    packer = Packer(max_rows=2, max_bytes=10**9, max_wait_s=LONG_S)
    third = threading.Event()

    def fill():
        for number in range(3):
            packer.add({"x": number})
        third.set()
        packer.close()

    packer.add({"x": -2})
    packer.add({"x": -1})
    threading.Thread(target=fill, daemon=True).start()
    blocks = packer.blocks()
    assert not third.is_set()
    assert [row["x"] for block, _ in blocks for row in block] == [-2, -1, 0, 1, 2]
    assert third.is_set()
