"""Token confidence and entropy, against the definitions."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from deepconf import token_confidence, token_entropy
from deepconf.engines.vllm import confidences
from deepconf.errors import InvalidInput, InvalidType
from hypothesis import given, settings
from hypothesis import strategies as st

RNG = np.random.default_rng(3)
TABLE = np.log(RNG.dirichlet(np.ones(20), 50))

tables = st.integers(2, 9).flatmap(
    lambda k: st.lists(st.lists(st.floats(-60, 0), min_size=k, max_size=k), min_size=1, max_size=12)
)


def confidence(table: Any) -> Any:
    return -np.asarray(table, np.float64).mean(axis=1)


def entropy(table: Any) -> Any:
    p = np.exp(np.asarray(table, np.float64))
    p /= p.sum(axis=1, keepdims=True)
    return -(p * np.log(p, out=np.zeros_like(p), where=p > 0)).sum(axis=1)


BOTH = pytest.mark.parametrize(
    ("function", "definition"),
    [(token_confidence, confidence), (token_entropy, entropy)],
    ids=["confidence", "entropy"],
)
Function = Callable[..., Any]


@BOTH
@given(table=tables)
@settings(deadline=None)
def test_tables_score_by_the_definition(
    function: Function, definition: Function, table: list[list[float]]
) -> None:
    found = function(table)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, definition(table), rtol=1e-6, atol=1e-6)


FORMS: dict[str, Any] = {
    "float64": TABLE,
    "float32": TABLE.astype(np.float32),
    "Fortran order": np.asfortranarray(TABLE),
    "strided": np.repeat(TABLE, 3, axis=1)[:, ::3],
    "lists": TABLE.tolist(),
    "a data frame": pl.DataFrame(TABLE),
}


@BOTH
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_scores_alike(
    function: Function, definition: Function, form: str
) -> None:
    np.testing.assert_allclose(function(FORMS[form]), definition(TABLE), rtol=2e-6)


@BOTH
def test_float16_is_taken_at_its_value(function: Function, definition: Function) -> None:
    half = TABLE.astype(np.float16)
    np.testing.assert_allclose(function(half), definition(half), rtol=1e-6)


@BOTH
def test_the_number_of_threads_changes_no_bit(function: Function, definition: Function) -> None:
    table = RNG.uniform(-20, 0, (10_000, 7)).astype(np.float32)
    one = function(table, threads=1)
    assert all(function(table, threads=n).tobytes() == one.tobytes() for n in (2, 5, None))


def test_known_values() -> None:
    assert token_confidence([[-1.0, -3.0], [-0.5, -0.5]]).tolist() == [2.0, 0.5]
    half = math.log(0.5)
    np.testing.assert_allclose(token_entropy([[half, half], [-9.0, -9.0]]), math.log(2), rtol=1e-6)


def test_a_single_entry_is_no_confidence_and_has_no_entropy() -> None:
    column = [[-3.0], [0.0]]
    with pytest.raises(InvalidInput, match=r"k=1: must be at least 2: .*lowest where the model is"):
        token_confidence(column)
    assert token_entropy(column).tolist() == [0.0, 0.0]


@BOTH
def test_no_tokens_have_no_scores(function: Function, definition: Function) -> None:
    found = function(np.zeros((0, 20), np.float32))
    assert (found.shape, found.dtype) == ((0,), np.float32)


@BOTH
def test_the_floor_raises_what_lies_below_it(function: Function, definition: Function) -> None:
    masked = [[-1.0, -np.inf], [-9999.0, -2.0], [-3.0, -10.0]]
    raised = [[-1.0, -10.0], [-10.0, -2.0], [-3.0, -10.0]]
    np.testing.assert_array_equal(function(masked, logprob_floor=-10), function(raised))


NOT_FINITE = "logprobs holds {} at row 1, column 0: every value must be finite"
BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (
        [[-1.0, -9.0], [-np.inf, -9.0]],
        {},
        InvalidInput,
        NOT_FINITE.format("-inf") + ".*set logprob_floor",
    ),
    ([[-1.0, -9.0], [np.nan, -9.0]], {}, InvalidInput, NOT_FINITE.format("NaN")),
    ([[-1.0, -9.0], [np.nan, -9.0]], {"logprob_floor": -5}, InvalidInput, NOT_FINITE.format("NaN")),
    ([[-1.0, -9.0], [np.inf, -9.0]], {"logprob_floor": -5}, InvalidInput, NOT_FINITE.format("inf")),
    ([[-1.0], [-1.0, -2.0]], {}, InvalidInput, "logprobs: NumPy makes no array of it"),
    ([-1.0, -2.0], {}, InvalidInput, r"shape \[2\] and dtype float64: must be \[n_tokens, k\]"),
    (np.zeros((2, 2, 2)), {}, InvalidInput, r"shape \[2, 2, 2\]"),
    (np.zeros((3, 0)), {}, InvalidInput, "k=0: a row needs at least one"),
    (np.ones((2, 2), int), {}, InvalidType, "logprobs has dtype int64"),
    ([["a"]], {}, InvalidType, "logprobs has dtype <U1"),
    (
        [[-1.0, -9.0]],
        {"logprob_floor": 1.0},
        InvalidInput,
        "logprob_floor=1: must be a finite negative",
    ),
    ([[-1.0, -9.0]], {"logprob_floor": -np.inf}, InvalidInput, "logprob_floor=-inf"),
    ([[-1.0, -9.0]], {"logprob_floor": np.nan}, InvalidInput, "logprob_floor=NaN"),
    ([[-1.0, -9.0]], {"threads": 0}, InvalidInput, "threads=0"),
    ([[-1.0, -9.0]], {"threads": -1}, InvalidInput, "threads=-1: out of range"),
    ([[-1.0, -9.0]], {"threads": "2"}, InvalidType, "threads='2' is a text"),
]


@pytest.mark.parametrize("function", [token_confidence, token_entropy])
@pytest.mark.parametrize(("table", "settings", "error", "message"), BAD)
def test_bad_input_is_refused_by_name(
    function: Function, table: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(table, **settings)


def test_a_sampled_token_that_is_nowhere_among_the_likeliest_is_not_counted() -> None:
    """vLLM's dicts have one entry more for it; nobody says how many were asked for."""

    def row(*of: tuple[float, int]) -> dict[int, Any]:
        return {rank: SimpleNamespace(logprob=logprob, rank=rank) for logprob, rank in of}

    outside = row((-6.0, 700), (-0.5, 1), (-1.5, 2))
    assert confidences([outside] * 3).tolist() == [1.0] * 3
    assert confidences([outside] * 3, entries="returned").tolist() == pytest.approx([8 / 3] * 3)
    among = row((-0.5, 1), (-1.5, 2), (-4.0, 3))
    assert confidences([among] * 3).tolist() == [2.0] * 3
    assert confidences([among, outside, among], k=2).tolist() == [1.0] * 3
    with pytest.raises(InvalidInput, match="so k=1"):
        confidences([row((-6.0, 700), (-0.5, 1))] * 3)
