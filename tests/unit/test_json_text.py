"""Requests and answers as JSON: what is exact, and what is refused by name."""

import datetime as dt
import decimal
import enum
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from raykit.errors import InputError
from raykit.spec.json_text import as_json, from_json, json_texts


def strictly(text):
    def refuse(word):
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, None, True, "é\ud800"], "b": {"c": [[], {}, [[]]]}},
        [2**53 + 1, 2**63, -(2**63), 2**70, 10**300],
        [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1e16, 3.0],
        [True, 7, 1.0, "7"],
        {"": 0, "\ud800": 1, "NaN": "Infinity"},
    ],
    ids=str,
)
def test_what_json_has_comes_back_as_it_was(value):
    standard, python = json_texts("the answer", value)
    assert standard == python
    for made in (strictly(standard), from_json(standard.encode(), is_python=False)):
        assert repr(made) == repr(value)


@pytest.mark.parametrize(
    "value",
    [
        np.array([[13835058055282163713, 5]], dtype=np.uint64),
        np.float32(0.1),
        np.float16(0.1),
        np.int8(-3),
        np.array([True, False]),
        np.array(7),
        np.array(["a", "é"]),
        np.array([1, "a", None, 2**70, [1]], dtype=object),
        torch.tensor([[0.1, 2.0]], requires_grad=True),
        torch.tensor([0.1], dtype=torch.bfloat16),
        torch.tensor(3),
        pd.Series([3, 1], index=[1, 0]),
    ],
    ids=str,
)
def test_arrays_tensors_and_columns_become_lists_of_the_same_numbers(value):
    assert strictly(as_json("the answer", {"x": [value]})) == {"x": [value.tolist()]}


def test_numpys_floats_tuples_and_enums_of_numbers_are_written_as_python_does():
    class Level(enum.IntEnum):
        HIGH = 3

    value = {"f": np.float64(0.1), "t": (1, (2, 3)), "s": np.str_("a"), "e": Level.HIGH}
    assert as_json("the answer", value) == json.dumps(value)


@pytest.mark.parametrize(
    "nan", [math.nan, np.float32("nan"), np.float64("nan"), torch.tensor(math.nan)], ids=lambda nan: type(nan).__name__
)
def test_nan_is_null_in_json_and_nan_to_python(nan):
    standard, python = json_texts("the answer", {"a": nan, "b": [1, np.array([nan, -math.inf]), (math.inf,)], "NaN": "Infinity"})
    assert strictly(standard) == {"a": None, "b": [1, [None, None], [None]], "NaN": "Infinity"}
    assert str(json.loads(python)) == "{'a': nan, 'b': [1, [nan, -inf], [inf]], 'NaN': 'Infinity'}"


class Plain:
    pass


class Odd:
    def tolist(self):
        return Odd()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            {"price": [1, decimal.Decimal("0.1")]},
            r"has a value of type Decimal at \['price'\]\[1\], .*str\(value\) keeps its digits",
        ),
        ({"at": dt.datetime(2024, 2, 29, tzinfo=dt.UTC)}, r"type datetime at \['at'\], .*isoformat"),
        ({"at": pd.Timestamp("2024-02-29")}, r"type Timestamp at \['at'\]"),
        ({"at": np.datetime64("2024-02-29", "ns")}, r"type datetime64 \(datetime64\[ns\]\) at \['at'\]"),
        ({"at": np.array(["2024-02-29"], dtype="M8[ns]")}, r"type ndarray \(datetime64\[ns\]\)"),
        ({"took": np.timedelta64(3, "s")}, r"type timedelta64 \(timedelta64\[s\]\)"),
        ({"x": pd.Series([1, None], dtype="Int64")}, r"type NAType at \['x'\]\[1\]"),
        ({"x": b"ab"}, r"type bytes at \['x'\], .*base64"),
        ({"x": memoryview(b"ab")}, "type memoryview"),
        ({"x": {1}}, r"type set at \['x'\], .*sorted"),
        ({"x": np.array([1j])}, r"type ndarray \(complex128\) at \['x'\]"),
        ({"x": torch.tensor([1j])}, r"type complex at \['x'\]\[0\]"),
        ({"x": np.longdouble(1)}, r"type longdouble \(.*\) at \['x'\]"),
        ({"x": np.array([(1, 2)], dtype="i4,f4")}, "type ndarray"),
        ({"x": Plain()}, r"type Plain at \['x'\]"),
        ({"x": Odd()}, r"type Odd at \['x'\]"),
        ({"x": {1: "a"}}, r"the answer has the key 1 of type int at \['x'\], for which"),
        ({None: "a"}, r"the answer has the key None of type NoneType, for which"),
        ({(1, 2): 3}, r"the answer has the key \(1, 2\) of type tuple"),
        (1j, "the answer is a value of type complex"),
    ],
    ids=str,
)
def test_what_json_has_no_form_for_is_refused_by_type_and_place(value, words):
    with pytest.raises(TypeError, match=words):
        as_json("the answer", value)


def test_what_holds_itself_or_is_too_deep_is_refused():
    own = []
    own.append(own)
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in (own, {"x": deep}):
        with pytest.raises(ValueError, match="the answer is nested too deeply for JSON, or holds itself"):
            as_json("the answer", value)
    with pytest.raises(ValueError, match="digits"):
        as_json("the answer", 10**5000)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "body is empty"),
        (b" \n", "body is empty"),
        (b"{", "is not JSON: Expecting property name"),
        (b"x=1&y=2", "is not JSON: Expecting value"),
        (b"--b\r\nContent-Disposition: form-data", "is not JSON"),
        (b'{"x": "\xff"}', "is not text: 'utf-8' codec"),
        (b'{"x": NaN}', "has NaN, which is not JSON"),
        (b'[{"x": -Infinity}]', "has -Infinity, which is not JSON"),
        (b'{"x": 1, "y": {"a": 1, "b": 2, "a": 3}}', "has the key 'a' twice in one object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"x":' * 100_000, "nested too deeply"),
        (b"1" * 5000, "is not JSON: Exceeds the limit"),
        (b'{"x": 1} {"x": 2}', "is not JSON: Extra data"),
        (b"\x1f\x8b\x08\x00", "is not"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_body_that_is_no_json_is_refused_in_words(body, words):
    with pytest.raises(InputError, match=words):
        from_json(body, is_python=False)


def test_a_body_may_be_of_any_unicode_encoding_and_pythons_may_have_nan():
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert from_json('{"x": "é"}'.encode(encoding), is_python=False) == {"x": "é"}
    assert from_json(b'{"x": "\\ud800"}', is_python=False) == {"x": "\ud800"}
    assert math.isnan(from_json(b'{"x": NaN}', is_python=True)["x"])
