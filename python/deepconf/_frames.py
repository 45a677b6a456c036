"""Scores and votes as data frames and rows, and how they show themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from deepconf import _html
from deepconf._core import Scores, Vote, Votes
from deepconf._words import counted
from deepconf.errors import InvalidType, MissingExtra

__all__ = [
    "Ballot",
    "QuestionVote",
    "frame",
    "frame_of",
    "html",
    "rows",
    "text",
    "to_arrow",
    "to_pandas",
]


class Ballot(NamedTuple):
    """What one answer got in a vote."""

    answer: Any
    weight: float
    """V(a), the summed weight of its traces."""
    voters: int
    """How many traces voted for it."""
    share: float
    """Its part of all weight."""


class QuestionVote(NamedTuple):
    """The vote on one question of many."""

    question_id: Any
    answer: Any
    """None where nobody voted."""
    share: float
    """The winner's part of all weight."""
    num_voters: int
    fallback: bool
    """Whether the filter was given up."""


_SCORES = ("mean", "lowest_group", "bottom_group", "tail", "num_tokens", "short")


def rows(result: Vote | Votes) -> Iterable[Ballot | QuestionVote]:
    """The ballots of a vote, the heaviest first; or the votes on many questions, in turn."""
    if isinstance(result, Vote):
        total = sum(result.ballots.values())
        return [
            Ballot(answer, weight, result.voters[answer], weight / total if total else 0.0)
            for answer, weight in result.ballots.items()
        ]
    numbers = (result.share.tolist(), result.num_voters.tolist(), result.fallback.tolist())
    return map(QuestionVote, result.questions, result.answers, *numbers)


def to_arrow(result: Scores | Vote | Votes) -> Any:
    """A table of pyarrow's."""
    from deepconf.traces._schema import arrow

    pa = arrow()
    try:
        return pa.table(_columns(result))
    except (pa.ArrowException, OverflowError) as error:
        raise InvalidType(
            f"{type(result).__name__} makes no Arrow table, where a column has one type: {error}"
        ) from error


def to_pandas(result: Scores | Vote | Votes) -> Any:
    """A data frame of pandas."""
    return frame(_columns(result))


def frame(columns: dict[str, Any]) -> Any:
    """A data frame of pandas.

    Raises:
        MissingExtra: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingExtra("pandas", "pandas") from error
    return pd.DataFrame(columns)


def frame_of(table: Any) -> Any:
    """A data frame of pandas, of a table of pyarrow's.

    Raises:
        MissingExtra: pandas is not installed.
    """
    frame({})  # Says which extra is missing.
    return table.to_pandas()


def _columns(result: Scores | Vote | Votes) -> dict[str, Any]:
    if isinstance(result, Scores):
        return {name: getattr(result, name) for name in _SCORES}
    if isinstance(result, Votes):
        return {
            "question_id": result.questions,
            "answer": result.answers,
            "share": result.share,
            "num_voters": result.num_voters,
            "fallback": result.fallback,
        }
    ballots: list[Any] = list(rows(result))
    return {
        "answer": [ballot.answer for ballot in ballots],
        "weight": np.array([ballot.weight for ballot in ballots], np.float64),
        "voters": np.array([ballot.voters for ballot in ballots], np.int64),
        "share": np.array([ballot.share for ballot in ballots], np.float64),
    }


def text(result: Scores | Votes) -> str:
    """One line."""
    if isinstance(result, Votes):
        answered = sum(answer is not None for answer in result.answers)
        given_up = int(np.sum(result.fallback))
        numbers = f"{answered:,} answered"
        if answered:
            numbers += f", share {np.sum(result.share) / answered:.2f} on average"
        if given_up:
            numbers += f", the filter given up in {given_up:,}"
        return f"<deepconf.Votes on {counted(len(result), 'question')}: {numbers}>"
    low, high = (_extreme(which, result.lowest_group) for which in (np.min, np.max))
    numbers = f"{int(np.sum(result.num_tokens)):,} tokens"
    if low is not None:
        numbers += f", lowest groups {low:.4g} to {high:.4g}"
    short = int(np.sum(result.short))
    if short:
        numbers += f", {short:,} shorter than the window"
    return f"<deepconf.Scores of {counted(len(result), 'trace')}: {numbers}>"


def _extreme(which: Any, values: Any) -> float | None:
    known = values[~np.isnan(values)]
    return float(which(known)) if len(known) else None


def html(result: Scores | Vote | Votes) -> str:
    """A small table."""
    if isinstance(result, Vote):
        return _html.of_vote(result)
    count = len(result)
    if isinstance(result, Votes):
        return _html.table(
            f"Votes on {counted(count, 'question')}", QuestionVote._fields, rows(result), count
        )
    columns = [getattr(result, name)[: _html.MOST_ROWS].tolist() for name in _SCORES]
    lines = zip(range(count), *columns, strict=False)
    return _html.table(f"Scores of {counted(count, 'trace')}", ("trace", *_SCORES), lines, count)
