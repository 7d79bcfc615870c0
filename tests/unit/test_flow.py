import random
from zlib import crc32

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raykit.engine.pipeline.flow import Flow, Piece
from raykit.engine.pipeline.row_order import keys_of, source_keys, spread


def _piece(names, span=0, first=0):
    """Blocks are lists of row names; a piece is a cut of one."""
    return Piece(block=names, start=0, stop=len(names), span=span, keys=source_keys(first, first + len(names)))


def _source(flow, spans):
    for span, names in enumerate(spans):
        if names:
            flow.add(_piece(names, span))
        flow.close(span)


def _rows(work):
    return [name for piece in work.pieces for name in piece.block[piece.start : piece.stop]]


def test_a_batch_waits_until_it_is_full_or_its_span_has_no_more():
    flow = Flow(1)
    flow.add(_piece([1, 2, 3]))
    assert flow.take(0, most=4, batch=4) is None
    flow.add(_piece([4, 5, 6], first=3))
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
    assert [(span, [piece.block for piece in pieces]) for span, pieces in flow.through()] == [(0, [["x"]]), (1, [])]
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


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 2**32))
def test_every_row_comes_out_once_and_in_order_whatever_dies_and_however_stages_multiply_rows(num_stages, sizes, seed):
    chance = random.Random(seed)  # drawn one by one, numbers would be more than Hypothesis wants to hold
    flow = Flow(num_stages)
    spans = [[f"{span}.{row}" for row in range(size)] for span, size in enumerate(sizes)]
    batches = [chance.choice([1, 2, 5]) for _ in range(num_stages)]
    copies = [chance.choice([1, 2]) for _ in range(num_stages)]
    drops = [chance.choice([0, 2, 3]) for _ in range(num_stages)]
    _source(flow, spans)
    under_way, out = [], {}
    while flow.num_spans:
        stage = chance.randrange(num_stages)
        if work := flow.take(stage, most=chance.choice([1, 4, 10]), batch=batches[stage], stalled=not under_way):
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
                made = _made(work, batches[work.stage], copies[work.stage], drops[work.stage])
                if work.gaps and batches[work.stage] > 1 and (copies[work.stage] > 1 or drops[work.stage]):
                    flow.again_unbroken(work)
                else:
                    flow.done(work, *made)
        for span, pieces in flow.through():
            keys = keys_of([piece.keys for piece in pieces])
            names = [name for piece in pieces for name in piece.block[piece.start : piece.stop]]
            out[span] = [names[at] for at in keys.argsort(kind="stable")]
            flow.forget(span)
    expected = dict(enumerate(spans))
    for stage, copy in enumerate(copies):
        expected = {span: _plain(names, copy, drops[stage]) for span, names in expected.items()}
    assert {span: sorted(names) for span, names in out.items()} == {span: sorted(names) for span, names in expected.items()}
    assert out == expected
    assert abs(flow.num_bytes) < 1e-6


def _plain(names, copies, drops):
    """What a stage makes of rows: some are left out, by their name, and the others come ``copies`` times."""
    return [f"{name}/{copy}" for name in names if not drops or crc32(name.encode()) % drops for copy in range(copies)]


def _made(work, batch, copies, drops):
    """A stage's blocks and their rows' origins: of a batch of several rows nobody knows which row was made of which."""
    rows, found, origins = _rows(work), [], []
    for start in range(0, len(rows), batch):
        those = rows[start : start + batch]
        made = _plain(those, copies, drops)
        found += made
        if batch == 1:
            origins += [start] * len(made)
        else:
            origins += spread(len(made), range(start, start + len(those))).tolist()
    cuts = (0, 1), (1, len(found))
    return [(found[slice(*cut)], len(found[slice(*cut)]), 8) for cut in cuts], np.array(origins, dtype=int)
