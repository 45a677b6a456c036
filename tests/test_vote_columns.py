"""Votes are the same whatever holds the questions and answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import deepconf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pa = pytest.importorskip("pyarrow")
pl = pytest.importorskip("polars")

Rows = list[Any]

TEXTS: dict[str, Callable[[Rows], Any]] = {
    "list": list,
    "tuple": tuple,
    "generator": iter,
    "objects": lambda rows: np.array([*rows, None], dtype=object)[:-1],
    "utf8": lambda rows: pa.array(rows, pa.string()),
    "large utf8": lambda rows: pa.array(rows, pa.large_string()),
    "views": lambda rows: pa.array(rows, pa.string_view()),
    "polars": lambda rows: pl.Series(rows, dtype=pl.String),
    "categories": lambda rows: pl.Series(rows, dtype=pl.Categorical),
    "chunks": lambda rows: pa.chunked_array([rows[:1], [], rows[1:3], rows[3:]], pa.string()),
    "view chunks": lambda rows: pa.chunked_array([rows[:2], rows[2:]], pa.string_view()),
    "slice": lambda rows: pa.array(["x", None, *rows, "y"], pa.string())[2:-1],
    "view slice": lambda rows: pa.array(["x" * 20, None, *rows, "y"], pa.string_view())[2:-1],
}
INTEGERS: dict[str, Callable[[Rows], Any]] = {
    "list": list,
    "int64": lambda rows: np.array(rows, np.int64),
    "int16": lambda rows: np.array(rows, np.int16),
    "uint64": lambda rows: np.array(rows, np.uint64),
    "every second": lambda rows: np.repeat(np.array(rows), 2)[::2],
    "arrow": lambda rows: pa.array(rows, pa.int64()),
    "arrow int8": lambda rows: pa.array(rows, pa.int8()),
    "arrow uint64": lambda rows: pa.array(rows, pa.uint64()),
    "arrow chunks": lambda rows: pa.chunked_array([rows[:3], rows[3:]], pa.uint32()),
    "polars": pl.Series,
}
QUESTIONS = ["q", "a question of more than fifteen bytes", "é", "", "q", "q", ""]
ANSWERS = ["7", None, "sixteen bytes it is", "8", "8", "8", None]
LONG = "a text that no key can hold, number "


def winners(votes: deepconf.Votes) -> list[tuple[Any, Any]]:
    return list(zip(votes.questions, votes.answers, strict=True))


@pytest.mark.parametrize("kind", TEXTS)
def test_questions_that_stand_together_may_be_cut_anywhere(kind: str) -> None:
    questions = sorted(QUESTIONS)
    for asked in (questions, questions[::-1], [*questions, questions[0]]):
        votes = deepconf.vote_many(TEXTS[kind](asked), ["7"] * len(asked))
        assert votes.questions == list(dict.fromkeys(asked))
        assert votes.num_voters.tolist() == [asked.count(question) for question in votes.questions]


@pytest.mark.parametrize("answers", TEXTS)
@pytest.mark.parametrize("questions", TEXTS)
def test_texts_vote_alike_from_anything(questions: str, answers: str) -> None:
    votes = deepconf.vote_many(TEXTS[questions](QUESTIONS), TEXTS[answers](ANSWERS))
    assert winners(votes) == [
        ("q", "8"),
        (QUESTIONS[1], None),
        ("é", "sixteen bytes it is"),
        ("", "8"),
    ]
    assert votes.num_voters.tolist() == [3, 0, 1, 1]
    assert all(type(question) is str for question in votes.questions)


@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_vote_alike_from_anything(kind: str) -> None:
    rows = [3, 1, 3, 2, 1, 3, 3]
    column = INTEGERS[kind]
    votes = deepconf.vote_many(column(rows), column([5, 6, 7, 8, 6, 7, 5]))
    assert winners(votes) == [(3, 5), (1, 6), (2, 8)]
    assert deepconf.vote(column(rows)).ballots == {3: 4.0, 1: 2.0, 2: 1.0}


@pytest.mark.parametrize("big", [2**64 - 1, 2**63, 2**63 - 1])
def test_large_integers_keep_their_value(big: int) -> None:
    for column in (np.array([big, 0, big], np.uint64), pa.array([big, 0, big], pa.uint64())):
        assert deepconf.vote(column).answer == big
    assert deepconf.vote(pa.array([-1, None, -1, 2], pa.int32())).ballots == {-1: 2.0, 2: 1.0}


@pytest.mark.parametrize("first", ["7", None, math.nan])
def test_anything_hashable_may_follow_texts(first: Any) -> None:
    answers = [first, "7", 7, 7.0, (1, 2), True, 1, None, "\ud800", "7"]
    vote = deepconf.vote(answers)
    assert vote.answer == "7"
    assert vote.ballots == {
        "7": 2.0 + (first == "7"),
        7: 2.0,
        (1, 2): 1.0,
        True: 2.0,
        "\ud800": 1.0,
    }


def test_a_subclass_of_str_keeps_its_own_equality() -> None:
    class Loose(str):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, str) and self.lower() == other.lower()

        def __hash__(self) -> int:
            return hash(self.lower())

    vote = deepconf.vote([Loose("A"), Loose("a"), Loose("b")])
    assert list(vote.ballots.values()) == [2.0, 1.0]


@pytest.mark.parametrize(
    "column",
    [pa.nulls(3), pa.array([None] * 3, pa.string()), [None] * 3, pl.Series([None] * 3)],
    ids=["nulls", "texts", "list", "polars"],
)
def test_nobody_answers(column: Any) -> None:
    votes = deepconf.vote_many(["q", "q", "p"], column)
    assert winners(votes) == [("q", None), ("p", None)]


@pytest.mark.parametrize("kind", ["utf8", "views", "list", "chunks", "slice"])
def test_a_row_without_a_question_is_named(kind: str) -> None:
    with pytest.raises(deepconf.InvalidInput, match=r"questions\[2\] is None"):
        deepconf.vote_many(TEXTS[kind](["a", "b", None, "c", None]), ["x"] * 5)
    with pytest.raises(deepconf.InvalidInput, match=r"questions\[1\] is None"):
        deepconf.vote_many(pa.array([4, None]), ["x"] * 2)


@pytest.mark.parametrize("wrong", ["text", 7])
def test_what_is_no_sequence_is_refused(wrong: Any) -> None:
    with pytest.raises(deepconf.InvalidType, match="must be a sequence"):
        deepconf.vote_many(wrong, ["x"])
    with pytest.raises(deepconf.InvalidType, match=r"answers\[1\] is .*list.*must be hashable"):
        deepconf.vote(["x", []])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 40)), max_size=60),
    st.sampled_from(["", LONG]),
    st.sampled_from([0.1, 0.5, 1.0]),
    st.booleans(),
)
def test_many_votes_are_one_vote_each(rows: Rows, pad: str, keep: float, grouped: bool) -> None:
    rows = sorted(rows, key=lambda row: row[0]) if grouped else rows
    questions = [f"{pad}{question}" for question, _, _ in rows]
    answers = [f"{pad}{answer}" if answer else None for _, answer, _ in rows]
    weights = [weight / 8 for _, _, weight in rows]
    expected = {}
    for question in dict.fromkeys(questions):
        mine = [i for i, other in enumerate(questions) if other == question]
        vote = deepconf.vote([answers[i] for i in mine], [weights[i] for i in mine], keep)
        expected[question] = (vote.answer, vote.share, vote.num_voters, vote.fallback)
    for column in (TEXTS["list"], TEXTS["utf8"], TEXTS["views"], TEXTS["polars"]):
        for threads in (1, 3):
            votes = deepconf.vote_many(
                column(questions), column(answers), weights, keep, threads=threads
            )
            columns = (votes.answers, votes.share, votes.num_voters, votes.fallback)
            got = zip(*columns, strict=True)
            assert dict(zip(votes.questions, got, strict=True)) == expected
            assert votes.questions == list(expected)
