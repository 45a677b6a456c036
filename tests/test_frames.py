"""Scores and votes as data frames, as rows, and as they show themselves."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import deepconf
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from deepconf.errors import InvalidType, MissingExtra
from recorded_engine import RecordedEngine, recorded

SCORES = deepconf.score([[9.0, 8.0, 9.0], [9.0, 2.0, 3.0], [7.0], []], window=2, tail=2)
VOTE = deepconf.vote(["42", "41", "42", None], weights=[1.0, 3.0, 0.5, 9.0])
VOTES = deepconf.vote_many(["a", "a", "b", "c"], ["1", "2", "3", None], [1.0, 3.0, 2.0, 1.0])


def test_scores_become_a_frame() -> None:
    table, frame = SCORES.to_arrow(), SCORES.to_pandas()
    names = ["mean", "lowest_group", "bottom_group", "tail", "num_tokens", "short"]
    assert table.schema.names == list(frame.columns) == names
    for name in names:
        column = getattr(SCORES, name)
        np.testing.assert_array_equal(table[name].to_numpy(), column)
        np.testing.assert_array_equal(frame[name].to_numpy(), column)
    assert table.schema.field("num_tokens").type == pa.int64()
    assert len(deepconf.score([]).to_pandas()) == 0


def test_votes_become_a_frame_and_rows() -> None:
    rows = list(VOTES)
    assert rows == [
        ("a", "2", 0.75, 2, False),
        ("b", "3", 1.0, 1, False),
        ("c", None, 0.0, 0, False),
    ]
    assert rows[0].question_id == "a"
    assert type(rows[0].share) is float
    assert VOTES.to_arrow().to_pylist() == [row._asdict() for row in rows]
    assert VOTES.to_pandas()["answer"].tolist()[:2] == ["2", "3"]


def test_a_vote_becomes_a_frame_and_rows() -> None:
    rows = list(VOTE)
    assert rows == [("41", 3.0, 1, 3 / 4.5), ("42", 1.5, 2, 1.5 / 4.5)]
    assert rows[1]._fields == ("answer", "weight", "voters", "share")
    assert VOTE.to_arrow().to_pylist() == [row._asdict() for row in rows]
    assert VOTE.to_pandas().to_dict("records") == [row._asdict() for row in rows]
    assert list(pickle.loads(pickle.dumps(VOTE))) == rows
    assert list(deepconf.vote([None])) == []
    assert deepconf.vote([None]).to_arrow().num_rows == 0


def test_answers_of_no_common_type_make_no_arrow_table() -> None:
    mixed = deepconf.vote(["a", 3, (1, 2)])
    with pytest.raises(InvalidType, match="Vote makes no Arrow table"):
        mixed.to_arrow()
    assert mixed.to_pandas()["answer"].tolist() == ["a", 3, (1, 2)]


def test_reprs_have_numbers() -> None:
    assert repr(SCORES) == (
        "<deepconf.Scores of 4 traces: 7 tokens, lowest groups 2.5 to 8.5, 1 shorter than the "
        "window>"
    )
    assert repr(deepconf.score([])) == "<deepconf.Scores of 0 traces: 0 tokens>"
    assert repr(VOTES) == "<deepconf.Votes on 3 questions: 2 answered, share 0.88 on average>"
    fallback = deepconf.vote_many(["a", "a"], ["1", "2"], [1.0, 2.0], keep=0.5, min_ballots=2)
    assert "the filter given up in 1>" in repr(fallback)
    assert repr(deepconf.vote_many([], [])) == "<deepconf.Votes on 0 questions: 0 answered>"


def test_html_is_escaped_and_short() -> None:
    evil = "<script>alert(1)</script>" + "x" * 1000
    vote = deepconf.vote([evil, *map(str, range(50))])
    page = vote._repr_html_()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "and 41 more" in page
    assert len(page) < 5000
    many = deepconf.vote_many([evil, *range(5000)], [evil] * 5001)
    assert "<script" not in many._repr_html_()
    assert "and 4,991 more" in many._repr_html_()
    assert len(many._repr_html_()) < 10_000
    scores = deepconf.score([[1.0, 2.0]] * 5000)._repr_html_()
    assert scores.count("<tr>") == 11
    assert "Vote: –" in deepconf.vote([])._repr_html_()


@pytest.mark.parametrize(("package", "method"), [("pandas", "to_pandas"), ("pyarrow", "to_arrow")])
def test_a_missing_package_is_named(
    package: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for result in (SCORES, VOTE, VOTES):
        with pytest.raises(MissingExtra, match=f"package {package}"):
            getattr(result, method)()


# ---- answers that are the same ------------------------------------------------------------------

SAME = ["0.5", "1/2", "7", "0.50", "7"]


def test_a_vote_compares_answers_where_it_is_asked_to() -> None:
    assert deepconf.vote(SAME).answer == "7"
    assert deepconf.vote(SAME, math=False).ballots == {"0.5": 3.0, "7": 2.0}
    assert deepconf.vote(pa.array([*SAME, None]), math="auto").num_voters == 5
    assert deepconf.vote(pd.Series([*SAME, None]), math=False).num_voters == 5
    assert deepconf.vote(["", " 7", None], math=False).ballots == {"7": 1.0}
    algebra = ["x^2+2x+1", "(x+1)^2", "5"]
    pytest.importorskip("math_verify")
    assert deepconf.vote(algebra, math=True).ballots == {"x^2+2x+1": 2.0, "5": 1.0}


def test_votes_compare_answers_within_a_question() -> None:
    votes = deepconf.vote_many(["a", "a", "b", "a"], ["0.5", "1/2", "1/2", "3"], math=False)
    assert votes.answers == ["0.5", "1/2"]
    assert votes.num_voters.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: deepconf.vote(["1", 2], math="auto"), r"answers\[1\] is 2, a int: must be a str"),
        (lambda: deepconf.vote(["1"], math="yes"), "math='yes': must be \"auto\", True or False"),
        (lambda: deepconf.vote_many(["a"], ["1", "2"], math=False), "2 entries and questions 1"),
    ],
)
def test_answers_that_cannot_be_compared_are_named(call: Any, words: str) -> None:
    with pytest.raises(deepconf.DeepConfError, match=words):
        call()


# ---- results ------------------------------------------------------------------------------------


def result() -> deepconf.Result:
    traces = [recorded(level, "<b>7" if level > 6 else "8", tokens=60) for level in range(3, 11)]
    for values, _, _ in traces[:4]:
        values[20:] -= 3.0
    policy = deepconf.Policy.low(
        budget=8, warmup=4, window=4, tail=4, top_logprobs=5, keep=0.5, consensus=1.0
    )
    with RecordedEngine(traces) as engine:
        return deepconf.DeepThink(engine, policy).run("?")


def test_a_result_shows_itself() -> None:
    found = result()
    page = found._repr_html_()
    assert "&lt;b&gt;7" in page
    assert "<b>7" not in page
    assert f"{found.tokens.generated:,} generated" in page
    assert all(len(repr(trace)) < 120 for trace in found.traces)
    assert repr(found.traces[0]).startswith("<deepconf.Trace 0: finished, '8', 60 tokens")
