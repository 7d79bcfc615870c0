import itertools

import pandas as pd
import pytest

import raykit as rk
from raykit.client.pipeline import Pipeline, describe_source, stage_name
from raykit.errors import InputError, OptionError, SourceError
from raykit.spec.rows import rows_in


def test_items_that_are_no_dicts_become_rows():
    assert list(rows_in([1, {"x": 2}])) == [{"item": 1}, {"x": 2}]
    assert list(rows_in(pd.DataFrame({"x": [1, 2]}))) == [{"x": 1}, {"x": 2}]


@pytest.mark.parametrize("value", [7, None, "abc", b"abc", {"x": 1}])
def test_what_is_no_iterable_of_rows_has_none(value):
    assert rows_in(value) is None
    with pytest.raises(SourceError, match="is no source" if not isinstance(value, str) else "Nothing is at"):
        describe_source(value)


def test_of_an_endless_iterator_no_more_is_taken_than_the_limit():
    numbers = itertools.count()
    assert describe_source(numbers, limit=3)[1] == [{"item": 0}, {"item": 1}, {"item": 2}]
    assert next(numbers) == 3


def test_a_range_travels_as_what_it_is_however_long():
    pipeline = Pipeline([test_items_that_are_no_dicts_become_rows])
    _, payload = pipeline.prepare(range(10**9))
    assert len(payload.extras["source"]) < 1000
    assert payload.open_extra("source") == range(10**9)
    assert describe_source(range(10**9), limit=3)[1] == range(3)
    with pytest.raises(SourceError, match="source is empty"):
        describe_source(range(0))


def test_stages_travel_apart_from_the_rows():
    pipeline = Pipeline([test_items_that_are_no_dicts_become_rows])
    bodies = {pipeline.prepare([{"x": 1}] * num_rows)[1].body for num_rows in (1, 10_000)}
    assert len(bodies) == 1


def test_a_limit_of_nothing_is_refused_also_of_an_endless_iterator():
    with pytest.raises(OptionError, match="limit is 0"):
        Pipeline([lambda row: row]).prepare(itertools.count(), limit=0)


def test_a_function_is_not_called_here():
    def source():
        raise AssertionError

    described, value = describe_source(source)
    assert (described.form, described.label, value) == ("function", "source", source)


def test_a_class_whose_objects_cannot_be_called_is_no_stage_marked_or_not_and_one_that_inherits_it_is():
    class Mute:
        pass

    class Doubles:
        def __call__(self, row):
            return {"x": 2 * row["x"]}

    class AlsoDoubles(Doubles):
        pass

    for mark in (rk.stage(cpus=1), stage_name):
        with pytest.raises(InputError, match="The class Mute has no __call__"):
            mark(Mute)
    with pytest.raises(InputError, match="3 is no stage"):
        rk.stage(cpus=1)(3)
    assert stage_name(AlsoDoubles) == "AlsoDoubles"
    assert stage_name(rk.stage(name="twice")(AlsoDoubles)) == "twice"
