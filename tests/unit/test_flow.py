import random

from hypothesis import given, settings
from hypothesis import strategies as st

from raykit.engine.pipeline.flow import Flow, Piece


def _source(flow, spans):
    """Blocks are lists of row names; a piece is a cut of one."""
    for span, names in enumerate(spans):
        if names:
            flow.add(Piece(block=names, start=0, stop=len(names), span=span))
        flow.close(span)


def _rows(work):
    return [name for piece in work.pieces for name in piece.block[piece.start : piece.stop]]


def test_a_batch_waits_until_it_is_full_or_its_span_has_no_more():
    flow = Flow(1)
    flow.add(Piece(block=[1, 2, 3], start=0, stop=3, span=0))
    assert flow.take(0, most=4, batch=4) is None
    flow.add(Piece(block=[4, 5, 6], start=0, stop=3, span=0))
    assert _rows(flow.take(0, most=4, batch=4)) == [1, 2, 3, 4]
    assert flow.take(0, most=4, batch=4) is None
    flow.close(0)
    assert _rows(flow.take(0, most=4, batch=4)) == [5, 6]


def test_a_later_stage_waits_for_what_may_still_come_from_an_earlier_one():
    flow = Flow(2)
    _source(flow, [[1, 2]])
    first, second = flow.take(0, most=1, batch=1), flow.take(0, most=1, batch=1)
    flow.done(first, [(["a"], 1, 8)])
    assert flow.take(1, most=2, batch=2) is None
    flow.done(second, [])
    assert _rows(flow.take(1, most=2, batch=2)) == ["a"]


def test_a_span_is_through_when_nothing_of_it_is_under_way_and_an_empty_one_at_once():
    flow = Flow(1)
    _source(flow, [[1], []])
    assert flow.through() == [(1, [])]
    flow.done(flow.take(0, most=1, batch=1), [(["x"], 1, 8)])
    assert flow.through() == [(0, [["x"]]), (1, [])]
    flow.forget(0)
    flow.forget(1)
    assert flow.num_spans == 0
    assert flow.is_over(0)


def test_what_a_restarted_span_still_had_under_way_does_not_count():
    flow = Flow(1)
    _source(flow, [[1, 2]])
    old = flow.take(0, most=2, batch=1)
    flow.restart(0)
    assert not flow.done(old, [(["old"], 1, 8)])
    flow.again(old)
    assert _rows(flow.take(0, most=2, batch=1)) == [1, 2]
    assert flow.take(0, most=2, batch=1) is None


def test_a_call_of_a_span_that_was_begun_anew_or_is_through_no_longer_counts():
    flow = Flow(1)
    _source(flow, [[1]])
    old = flow.take(0, most=1, batch=1)
    assert flow.is_current(old)
    flow.restart(0)
    assert not flow.is_current(old)
    new = flow.take(0, most=1, batch=1)
    flow.done(new, [(["x"], 1, 8)])
    flow.forget(0)
    assert not flow.is_current(old)
    assert not flow.is_current(new)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 2**32))
def test_every_row_comes_out_once_whatever_dies_and_however_stages_multiply_rows(num_stages, sizes, seed):
    chance = random.Random(seed)  # drawn one by one, numbers would be more than Hypothesis wants to hold
    flow = Flow(num_stages)
    spans = [[f"{span}.{row}" for row in range(size)] for span, size in enumerate(sizes)]
    batches = [chance.choice([1, 2, 5]) for _ in range(num_stages)]
    copies = [chance.choice([1, 1, 2]) for _ in range(num_stages)]
    _source(flow, spans)
    under_way, out = [], []
    while flow.num_spans:
        stage = chance.randrange(num_stages)
        if work := flow.take(stage, most=chance.choice([1, 4, 10]), batch=batches[stage]):
            under_way.append(work)
        if under_way and chance.random() < 0.7:
            work = under_way.pop(chance.randrange(len(under_way)))
            what = chance.random()
            if what < 0.15:
                flow.again(work, deaths=work.deaths + 1)
            elif what < 0.2:
                if flow.is_current(work):
                    flow.restart(work.span)
            else:
                made = [f"{name}/{copy}" for name in _rows(work) for copy in range(copies[work.stage])]
                flow.done(work, [(made[:1], len(made[:1]), 8), (made[1:], len(made[1:]), 8)])
        for span, blocks in flow.through():
            out += [name for block in blocks for name in block]
            flow.forget(span)
    expected = [name for names in spans for name in names]
    for copy in copies:
        expected = [f"{name}/{number}" for name in expected for number in range(copy)]
    assert sorted(out) == sorted(expected)
    assert abs(flow.num_bytes) < 1e-6
