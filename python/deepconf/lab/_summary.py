"""What a replay comes to: every policy beside the others, and beside plain majority."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepconf._statistics import (
    Difference,
    Estimate,
    Mixture,
    at_tokens,
    estimates,
    paired,
    per_question,
)
from deepconf._words import counted, in_lines
from deepconf.errors import InvalidInput
from deepconf.lab._verdict import AGREEMENT, VARIANTS, closing, ratio

if TYPE_CHECKING:
    from deepconf.lab.played import Frontier, Replay

__all__ = [
    "Equal",
    "MajorityRow",
    "PolicyRow",
    "Summary",
    "equal_tokens",
    "summary",
]

Floats = NDArray[np.float64]

MOST_LINES = 8
"""Policies that a summary shows of itself."""


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

    @classmethod
    def of(cls, mixture: Mixture, difference: Difference) -> Equal:
        """From the mixture, and how the policy differs from it."""
        return cls(
            accuracy=float(mixture.correct.mean()),
            tokens=mixture.tokens,
            budgets=mixture.budgets,
            share=mixture.share,
            beyond=mixture.beyond,
            difference=difference,
        )


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
    steps: Estimate
    """The step in which the answer was given."""


@dataclass(frozen=True, repr=False)
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
    notes: list[str] = field(default_factory=list)
    """What its reader must know, as that no trace reaches a window."""

    def __repr__(self) -> str:
        """The first policies, a line each, and what it comes to."""
        what = "accuracy" if self.gold else "agreement"
        lines = [
            f"{row.label}: {what} {ratio(row.accuracy.value)}, {row.tokens.value:,.0f} tokens, "
            f"{ratio(row.share)} of its budget's"
            for row in self.rows[:MOST_LINES]
        ]
        if len(self.rows) > MOST_LINES:
            lines.append(f"and {len(self.rows) - MOST_LINES:,} more")
        over = f"{counted(self.questions, 'question')}, {counted(self.repeats, 'draw')} of each"
        return in_lines(f"deepconf.Summary: {over}", [*lines, *self.notes, self.closing])

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
            "notes": self.notes,
            "closing": self.closing,
        }


def summary(replay: Replay) -> Summary:
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
    columns = {
        name: estimates(per_question(replay.columns[name]))
        for name in ("tokens", "steps", "launched", "stopped", "aborted", "fallback")
    }
    accuracies = estimates(correct)
    spent, full = tokens.mean(axis=1), replay.full.mean(axis=(1, 2))
    against = paired(correct, correct[:1])
    equal = equal_tokens(replay.frontier, correct, tokens)
    rows = [
        PolicyRow(
            label=label,
            budget=policy.budget,
            accuracy=accuracies[at],
            tokens=columns["tokens"][at],
            share=float(spent[at] / full[at]) if full[at] else 1.0,
            steps=columns["steps"][at],
            launched=columns["launched"][at],
            stopped=columns["stopped"][at],
            aborted=columns["aborted"][at],
            fallbacks=columns["fallback"][at],
            against_first=against[at],
            same_tokens=equal[at],
        )
        for at, (label, policy) in enumerate(replay.policies.items())
    ]
    lines = [row for name in VARIANTS for row in _majority_rows(name, replay.frontier)]
    notes = [*replay.unarmed, *replay.notes, *([] if replay.gold else [AGREEMENT])]
    said = closing(rows, replay.gold)
    return Summary(questions, repeats, replay.gold, rows, lines, said, notes)


def equal_tokens(frontier: Frontier, correct: Floats, tokens: Floats) -> list[dict[str, Equal]]:
    """Majority at the mean tokens of each row of `[n, questions]`, by variant."""
    found = []
    for name in VARIANTS:
        mixtures = [
            at_tokens(
                frontier.budgets, frontier.tokens[name], frontier.correct[name], float(wanted)
            )
            for wanted in tokens.mean(axis=1)
        ]
        differences = paired(correct, np.stack([mixture.correct for mixture in mixtures]))
        found.append([Equal.of(*each) for each in zip(mixtures, differences, strict=True)])
    return [dict(zip(VARIANTS, each, strict=True)) for each in zip(*found, strict=True)]


def _majority_rows(name: str, frontier: Frontier) -> list[MajorityRow]:
    each = (frontier.correct, frontier.tokens, frontier.steps)
    figures = [estimates(of[name]) for of in each]
    every = zip(frontier.budgets.tolist(), *figures, strict=True)
    return [MajorityRow(name, budget, *of) for budget, *of in every]
