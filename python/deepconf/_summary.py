"""What a replay comes to: every policy beside the others, and beside plain majority."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deepconf._core import Policy
from deepconf._statistics import (
    Difference,
    Estimate,
    Mixture,
    at_tokens,
    estimates,
    paired,
    per_question,
)
from deepconf.errors import InvalidInput

__all__ = [
    "VARIANTS",
    "Equal",
    "Frontier",
    "Line",
    "MajorityRow",
    "PolicyRow",
    "Replayed",
    "Summary",
    "difference_in_words",
    "points",
    "ratio",
    "summary",
]

Floats = NDArray[np.float64]

VARIANTS = {"majority": "plain majority", "consensus": "majority with early consensus"}
"""The two ways a majority is counted, by their names in a frontier, in words."""


class Line(Protocol):
    """Majority at every budget, means over repeats: `[budgets, questions]` float64 each."""

    @property
    def correct(self) -> Floats: ...
    @property
    def tokens(self) -> Floats: ...


class Frontier(Protocol):
    """Majority at every budget, to the end of the budget and with early consensus."""

    @property
    def budgets(self) -> NDArray[np.int64]: ...
    @property
    def majority(self) -> Line: ...
    @property
    def consensus(self) -> Line: ...


class Replayed(Protocol):
    """What is asked of a replay: `[policies, questions, repeats]` each."""

    @property
    def policies(self) -> Mapping[str, Policy]: ...
    @property
    def questions(self) -> Sequence[str]: ...
    @property
    def gold(self) -> bool: ...
    @property
    def correct(self) -> NDArray[Any]: ...
    @property
    def tokens(self) -> NDArray[Any]: ...
    @property
    def steps(self) -> NDArray[Any]: ...
    @property
    def launched(self) -> NDArray[Any]: ...
    @property
    def stopped(self) -> NDArray[Any]: ...
    @property
    def aborted(self) -> NDArray[Any]: ...
    @property
    def fallback(self) -> NDArray[Any]: ...
    @property
    def frontier(self) -> Frontier: ...


@dataclass(frozen=True, slots=True)
class Equal:
    """Majority at a policy's own mean tokens."""

    accuracy: float
    tokens: float
    """Mean tokens of it: the policy's, or those of the end of the frontier nearest to it."""
    budgets: tuple[int, int]
    """The two budgets it is mixed of."""
    share: float
    """How often it is the smaller one."""
    beyond: str | None
    """`below` or `above`, where no budget is as cheap, or as dear, as the policy."""
    difference: Difference
    """The policy's accuracy minus this one."""


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One policy, over all questions and repeats."""

    label: str
    budget: int
    accuracy: Estimate
    tokens: Estimate
    """Tokens a question."""
    share: float
    """Tokens beside those of all traces of its budget, each to its end: 0.6 is 40% fewer."""
    steps: Estimate
    """The step in which the answer was given."""
    launched: Estimate
    stopped: Estimate
    aborted: Estimate
    fallbacks: Estimate
    """How often the filter left too few ballots and was given up."""
    against_first: Difference
    """Its accuracy minus that of the first policy."""
    same_tokens: dict[str, Equal]
    """By variant, majority at the same tokens."""

    kind: str = "policy"


@dataclass(frozen=True, slots=True)
class MajorityRow:
    """Majority at one budget."""

    kind: str
    """`majority`, or `consensus` where it ends at an early consensus."""
    budget: int
    accuracy: Estimate
    tokens: Estimate
    """Tokens a question."""


@dataclass(frozen=True)
class Summary:
    """The figures of a replay."""

    questions: int
    repeats: int
    gold: bool
    """Whether accuracy is against known answers; else it is agreement with all traces' vote."""
    rows: list[PolicyRow]
    """The policies, in their order."""
    frontier: list[MajorityRow]
    """Plain majority at every budget, then that with early consensus."""
    closing: str
    """The comparison at equal tokens, in a sentence."""

    def table(self) -> list[dict[str, Any]]:
        """All rows as plain values, those of the frontier behind."""
        return [*map(dataclasses.asdict, self.rows), *map(dataclasses.asdict, self.frontier)]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {
            "questions": self.questions,
            "repeats": self.repeats,
            "gold": self.gold,
            "rows": self.table(),
            "closing": self.closing,
        }


def summary(replay: Replayed) -> Summary:
    """The figures of a replay: each policy's, paired differences, majority at the same tokens.

    Raises:
        InvalidInput: it has no policy or no question.
    """
    count, questions, repeats = replay.correct.shape
    if not count or not questions or not repeats:
        raise InvalidInput(
            f"the replay has {count} policies, {questions} questions and {repeats} repeats: "
            f"there must be one of each"
        )
    correct, tokens = per_question(replay.correct), per_question(replay.tokens)
    frontier = replay.frontier
    names = ("correct", "tokens", "steps", "launched", "stopped", "aborted", "fallback")
    columns = {name: estimates(per_question(getattr(replay, name))) for name in names}
    # Of tokens that all traces of a budget cost; whole budgets are on the frontier, or between.
    whole = frontier.majority.tokens.mean(axis=1)
    budgets = np.array([policy.budget for policy in replay.policies.values()])
    full = np.interp(budgets, frontier.budgets, whole)
    spent = tokens.mean(axis=1)
    against = paired(correct, correct[:1])
    equal = {name: _equal(getattr(frontier, name), frontier, correct, spent) for name in VARIANTS}
    rows = [
        PolicyRow(
            label=label,
            budget=policy.budget,
            accuracy=columns["correct"][at],
            tokens=columns["tokens"][at],
            share=float(spent[at] / full[at]) if full[at] else 1.0,
            steps=columns["steps"][at],
            launched=columns["launched"][at],
            stopped=columns["stopped"][at],
            aborted=columns["aborted"][at],
            fallbacks=columns["fallback"][at],
            against_first=against[at],
            same_tokens={name: equal[name][at] for name in VARIANTS},
        )
        for at, (label, policy) in enumerate(replay.policies.items())
    ]
    lines = [row for name in VARIANTS for row in _majority_rows(name, frontier)]
    return Summary(questions, repeats, replay.gold, rows, lines, _closing(rows, replay.gold))


def _equal(line: Line, frontier: Frontier, correct: Floats, spent: Floats) -> list[Equal]:
    found: list[Mixture] = [
        at_tokens(frontier.budgets, line.tokens, line.correct, float(wanted)) for wanted in spent
    ]
    differences = paired(correct, np.stack([mixture.correct for mixture in found]))
    return [
        Equal(
            float(mixture.correct.mean()),
            mixture.tokens,
            mixture.budgets,
            mixture.share,
            mixture.beyond,
            difference,
        )
        for mixture, difference in zip(found, differences, strict=True)
    ]


def _majority_rows(name: str, frontier: Frontier) -> list[MajorityRow]:
    line: Line = getattr(frontier, name)
    every = zip(frontier.budgets, estimates(line.correct), estimates(line.tokens), strict=True)
    return [MajorityRow(name, int(budget), *each) for budget, *each in every]


def _closing(rows: list[PolicyRow], gold: bool) -> str:
    """Whether the best policy beats the better majority at its tokens."""
    best = min(rows, key=lambda row: (-row.accuracy.value, row.tokens.value))
    name, equal = max(best.same_tokens.items(), key=lambda item: item[1].accuracy)
    found = equal.difference
    which = f"{best.label}, the most accurate of {len(rows)}" if len(rows) > 1 else best.label
    what = "accuracy" if gold else "agreement"
    figures = (
        f"{ratio(best.accuracy.value)} against {ratio(equal.accuracy)} "
        f"({difference_in_words(found)})"
    )
    at = "at the same tokens"
    if equal.beyond == "above":
        at = "at the whole budget, which costs fewer tokens"
    elif equal.beyond == "below":
        at = "at its smallest budget, which costs more tokens"
    if not found.value:
        said = f"{VARIANTS[name]} {at} is as good as {which}: {figures}"
    elif found.value < 0:
        said = f"{VARIANTS[name]} {at} is better here than {which}: {figures}"
    else:
        said = f"{which} is better here than {VARIANTS[name]} {at}: {figures}"
    if found.value and not found.clear:
        said += "; the difference is within chance"
    return f"{what}: {said}."


def difference_in_words(found: Difference) -> str:
    """A difference of accuracies, its interval, and the questions it comes from."""
    interval = "" if found.low is None else f" [{points(found.low)}, {points(found.high)}]"
    return (
        f"{points(found.value)}{interval} points; {found.lost} lost, {found.won} won, "
        f"p = {found.p:.2g}"
    )


def ratio(value: float) -> str:
    """A share as text: `91.7%`."""
    return f"{value:.1%}"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, signed: `-0.6`."""
    if value is None:
        return "–"
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text
