"""`vote` and `vote_many` against a count by hand, over every kind of column."""

from __future__ import annotations

import copy
import math
import os
import pickle
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import oracle
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from deepconf import vote, vote_many
from deepconf.errors import InvalidInput, InvalidType
from hypothesis import given, settings
from hypothesis import strategies as st

# Quarters: their sums are exact in any order.
quarters = st.integers(0, 40).map(lambda n: n / 4)
rows = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", None]), quarters, quarters | st.just(float("nan"))),
    max_size=25,
)
keeps = st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9, 1.0])


def columns(rows: list[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(width)]


def parts(vote: Any) -> tuple[Any, ...]:
    return vote.answer, vote.ballots, vote.voters, vote.share, vote.threshold, vote.fallback


@given(rows=rows, keep=keeps, min_ballots=st.integers(0, 4), weighted=st.booleans())
@settings(deadline=None)
def test_a_vote_is_a_count_by_hand(
    rows: list[tuple[Any, ...]], keep: float, min_ballots: int, weighted: bool
) -> None:
    answers, given_weights, scores = columns(rows, 3)
    weights = given_weights if weighted else None
    expected = oracle.vote(answers, weights, keep, scores, min_ballots)
    found = vote(answers, weights, keep, scores, min_ballots=min_ballots)
    assert parts(found) == expected
    assert list(found.ballots) == list(found.voters) == list(expected[1])
    assert found.num_voters == sum(found.voters.values())


@given(rows=rows, keep=keeps)
@settings(deadline=None)
def test_without_scores_the_weights_are_filtered_on(
    rows: list[tuple[Any, ...]], keep: float
) -> None:
    answers, weights, _ = columns(rows, 3)
    assert parts(vote(answers, weights, keep)) == parts(vote(answers, weights, keep, weights))


@given(
    rows=rows.flatmap(
        lambda rows: st.lists(
            st.sampled_from(["q", "r", "s"]), min_size=len(rows), max_size=len(rows)
        ).map(lambda questions: [(q, *row) for q, row in zip(questions, rows, strict=True)])
    ),
    keep=keeps,
    min_ballots=st.integers(0, 3),
    threads=st.sampled_from([1, 3, None]),
)
@settings(deadline=None)
def test_many_votes_are_a_vote_for_each_question(
    rows: list[tuple[Any, ...]], keep: float, min_ballots: int, threads: int | None
) -> None:
    asked, said, weighs, ranks = columns(rows, 4)
    found = vote_many(asked, said, weighs, keep, ranks, min_ballots=min_ballots, threads=threads)
    questions = list(dict.fromkeys(asked))
    assert found.questions == questions
    assert len(found) == len(found.answers) == len(questions)
    for at, question in enumerate(questions):
        mine = [row[1:] for row in rows if row[0] == question]
        answers, weights, scores = columns(mine, 3)
        one = vote(answers, weights, keep, scores, min_ballots=min_ballots)
        many = found.answers[at], found.share[at], found.num_voters[at], found.fallback[at]
        assert many == (one.answer, one.share, one.num_voters, one.fallback)


def test_the_number_of_threads_changes_no_bit() -> None:
    rng = np.random.default_rng(2)
    questions, answers = rng.integers(0, 500, 20_000), rng.integers(0, 9, 20_000)
    weights = rng.uniform(0, 20, 20_000)
    shares = [
        vote_many(questions, answers, weights, 0.3, threads=n).share.tobytes() for n in (1, 2, 7)
    ]
    assert shares[0] == shares[1] == shares[2]


VALUES = [
    "a", "", "é", 7, -(2**70), 2.5, True, (1, "x"), frozenset({1}), b"x", 1j,
    Decimal("0.1"), Fraction(1, 3), np.int64(9), np.float32(0.5), int,
]  # fmt: skip


@pytest.mark.parametrize("answer", VALUES, ids=repr)
def test_any_hashable_value_is_an_answer_and_comes_back_as_it_was(answer: Any) -> None:
    found = vote([None, "other", answer, answer])
    assert found.answer == answer
    assert type(found.answer) is type(answer)
    assert found.ballots == {answer: 2.0, "other": 1.0}


def test_equal_values_share_a_ballot_under_the_first() -> None:
    found = vote([1, 1.0, True, "1"])
    assert (type(found.answer), found.ballots) == (int, {1: 3.0, "1": 1.0})


TEXTS = ["b", "a", None, "a", "", "c"]
COLUMNS: dict[str, Any] = {
    "list": TEXTS,
    "tuple": tuple(TEXTS),
    "iterator": dict(enumerate(TEXTS)).values(),
    "NumPy objects": np.array(TEXTS, object),
    "NaN for None": [float("nan") if text is None else text for text in TEXTS],
    "pandas": pd.Series(TEXTS),
    "pandas objects": pd.Series(TEXTS, dtype=object),
    "pandas categories": pd.Series(TEXTS, dtype="category"),
    "polars": pl.Series(TEXTS),
    "polars sliced": pl.Series(["x", *TEXTS, "y"])[1:-1],
    "Utf8": pa.array(TEXTS, pa.string()),
    "LargeUtf8": pa.array(TEXTS, pa.large_string()),
    "Utf8View": pa.array(TEXTS, pa.string_view()),
    "sliced": pa.array(["x", None, *TEXTS, "y"])[2:-1],
    "chunked": pa.chunked_array([TEXTS[:2], [], TEXTS[2:]], pa.string()),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_kind_of_column_votes_alike(kind: str) -> None:
    weights = [1.0, 2.0, 4.0, 0.5, 2.25, 0.0]
    found = vote(COLUMNS[kind], weights)
    assert found.ballots == {"a": 2.5, "": 2.25, "b": 1.0, "c": 0.0}
    assert list(found.ballots) == ["a", "", "b", "c"]
    many = vote_many(COLUMNS["Utf8"].fill_null("q"), COLUMNS[kind], weights)
    assert many.questions == ["b", "a", "q", "", "c"]
    assert many.answers == ["b", "a", None, "", "c"]
    assert many.num_voters.tolist() == [1, 2, 0, 1, 1]


WEIGHTS: dict[str, Any] = {
    "float32": np.array([3, 1, 1], np.float32),
    "float16": np.array([3, 1, 1], np.float16),
    "integers": np.array([3, 1, 1]),
    "strided": np.array([3.0, 9.0, 1.0, 9.0, 1.0])[::2],
    "pandas": pd.Series([3.0, 1.0, 1.0]),
    "polars": pl.Series([3, 1, 1]),
    "Arrow": pa.array([3.0, 1.0, 1.0]),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_may_be_any_column_of_numbers(kind: str) -> None:
    assert vote(["a", "b", "b"], WEIGHTS[kind]).ballots == {"a": 3.0, "b": 2.0}


def test_a_tie_goes_to_the_answer_seen_first() -> None:
    assert vote(["b", "a", "a", "b"]).answer == "b"
    assert vote(["a", "b"], [2.0, 2.0]).answer == "a"
    assert vote([None, "b", "a"], [9.0, 0.0, 0.0]).answer == "b"


@pytest.mark.parametrize("answers", [[], [None, None]])
def test_nobody_votes(answers: list[Any]) -> None:
    assert parts(vote(answers)) == (None, {}, {}, 0.0, None, False)


def test_a_filter_that_leaves_too_few_is_given_up() -> None:
    found = vote(["a", "b", "a"], [1.0, 5.0, 1.0], 0.1, [1.0, 2.0, 3.0], min_ballots=2)
    assert (found.answer, found.num_voters, found.fallback) == ("b", 3, True)
    kept = vote(["a", "b", "a"], [1.0, 5.0, 1.0], 0.1, [1.0, 2.0, 3.0], min_ballots=1)
    assert (kept.answer, kept.num_voters, kept.fallback) == ("a", 1, False)
    assert kept.threshold == found.threshold == pytest.approx(2.8)


def test_what_has_no_answer_needs_no_weight() -> None:
    assert vote(["a", None], [1.0, np.nan]).ballots == {"a": 1.0}
    assert vote(["a", None], [1.0, -1.0]).ballots == {"a": 1.0}


BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (["a", [1]], {}, InvalidType, r"answers\[1\] is a list: must be hashable"),
    ("abc", {}, InvalidType, "answers is a str: must be a sequence"),
    (
        pd.DataFrame({"answer": ["1"]}),
        {},
        InvalidType,
        "a DataFrame, a table: vote takes",
    ),
    (
        pa.table({"answer": ["1"]}),
        {},
        InvalidType,
        "a Table, a table: .*vote_traces",
    ),
    (None, {}, InvalidType, "answers is a NoneType"),
    (["a"], {"weights": [1.0, 2.0]}, InvalidInput, "weights has 2 entries and answers has 1"),
    (["a"], {"scores": [], "keep": 0.5}, InvalidInput, "scores has 0 entries and answers has 1"),
    (["a", "b"], {"weights": [1.0, -2.0]}, InvalidInput, r"weights\[1\] = -2: .* at least 0"),
    (["a", "b"], {"weights": [1.0, np.nan]}, InvalidInput, r"weights\[1\] = NaN"),
    (["a", "b"], {"weights": [np.inf, 1.0]}, InvalidInput, r"weights\[0\] = inf"),
    (["a"], {"weights": ["1"]}, InvalidType, "weights has dtype <U1: must be numbers"),
    (["a"], {"weights": [[1.0]]}, InvalidInput, r"weights has shape \[1, 1\]"),
    (["a"], {"weights": [1.0], "keep": 0.0}, InvalidInput, r"keep=0: .* in \(0, 1\]"),
    (["a"], {"weights": [1.0], "keep": 1.5}, InvalidInput, "keep=1.5"),
    (["a"], {"weights": [1.0], "keep": -0.5}, InvalidInput, "keep=-0.5"),
    (["a"], {"weights": [1.0], "keep": np.nan}, InvalidInput, "keep=NaN"),
    (["a"], {"keep": 0.5}, InvalidInput, "keep=0.5: a filter needs scores"),
    (["a"], {"keep": 0.5, "scores": [np.inf]}, InvalidInput, "scores holds inf at position 0"),
]


@pytest.mark.parametrize(("answers", "arguments", "error", "message"), BAD)
def test_bad_input_is_refused_by_name(
    answers: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        vote(answers, **arguments)
    with pytest.raises(error, match=message):
        vote_many([0] * (1 if answers is None else len(answers)), answers, **arguments)


def test_every_row_needs_a_question() -> None:
    with pytest.raises(InvalidInput, match=r"questions\[1\] is None"):
        vote_many(["q", None], ["a", "b"])
    with pytest.raises(InvalidInput, match="answers has 2 entries and questions has 1"):
        vote_many(["q"], ["a", "b"])
    with pytest.raises(InvalidInput, match="threads=0"):
        vote_many(["q"], ["a"], threads=0)


MISSING = {
    "Arrow integers": pa.array([None, None, 7]),
    "Arrow floats": pa.array([None, None, 7.0]),
    "Arrow booleans": pa.array([None, None, True]),
    "Arrow dictionary": pa.array([None, None, "7"]).dictionary_encode(),
    "Arrow chunks": pa.chunked_array([pa.array([None], pa.int8()), pa.array([None, 7], pa.int8())]),
    "NA": [pd.NA, pd.NA, 7],
    "NaT": [pd.NaT, pd.NaT, 7],
    "NaN of float32": [np.float32("nan"), np.float32("nan"), 7],
    "NaN of Decimal": [Decimal("nan"), Decimal("nan"), 7],
    "pandas Int64": pd.Series([None, None, 7], dtype="Int64"),
    "pandas category": pd.Series([None, None, "7"], dtype="category"),
    "polars integers": pl.Series([None, None, 7]),
    "polars categories": pl.Series([None, None, "7"], dtype=pl.Categorical),
}


@pytest.mark.parametrize("kind", MISSING)
def test_whatever_stands_for_nothing_never_votes(kind: str) -> None:
    found = vote(MISSING[kind])
    assert found.num_voters == 1
    assert found.answer in (7, "7", True)
    assert found.answer is not None
    assert vote_many([0, 0, 0], MISSING[kind]).num_voters.tolist() == [1]


def test_votes_are_pickled_and_copied() -> None:
    found = vote(["a", None, "b", "a"], [1.0, 2.0, 3.0, 1.0], keep=0.5)
    again = pickle.loads(pickle.dumps(found))
    assert repr(again) == repr(found)
    assert (again.ballots, again.voters) == (found.ballots, found.voters)
    assert copy.deepcopy(found).threshold == found.threshold


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, 1e291])
def test_a_weight_whose_sums_could_not_be_told_is_refused(weight: float) -> None:
    with pytest.raises(InvalidInput, match=r"weights\[1\] = .* at most 1e290"):
        vote(["a", "b"], [1.0, weight])
    assert vote(["a", None], [1.0, weight]).answer == "a"
    assert vote(["a", "a"], [1e290, 1e290]).share == 1.0


@pytest.mark.parametrize("name", ["min_ballots", "threads"])
def test_negative_counts_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"{name}=-1: out of range, or negative"):
        vote_many(["q"], ["a"], **{name: -1})


FORKED_VOTE = """
import os, signal
import numpy as np
from deepconf import vote

answers, scores = ["a", "b"] * 50_000, np.arange(100_000.0)
expected = repr(vote(answers, keep=0.5, scores=scores))
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(0 if repr(vote(answers, keep=0.5, scores=scores)) == expected else 1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_filters_many_rows() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED_VOTE], check=True, timeout=60)
