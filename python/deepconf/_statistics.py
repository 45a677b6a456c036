"""Figures over questions: means, paired differences, majority at equal tokens, AUROC.

Questions are what is drawn from the world, so they are the units of every error and interval;
repeats are draws of traces within a question. Formulas: DESIGN.md, "Statistics".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepconf.errors import InvalidInput

__all__ = [
    "Difference",
    "Estimate",
    "Mixture",
    "at_tokens",
    "auroc",
    "bootstrap",
    "estimates",
    "intervals",
    "pair_agreement",
    "paired",
    "pairs_won",
    "per_question",
    "sign_test",
    "within",
]

Floats = NDArray[np.float64]

DRAWS = 2000
"""How often a bootstrap draws the questions anew."""
LEVEL = 0.95
"""How much of the bootstrap's means an interval holds."""
# Means of the same counts may differ in their last bit, which makes no winner.
_SAME = 1e-9
_ROWS = 512  # Rows of which intervals are taken at once.
_KEPT = 1 << 22  # Counts held at once; as many are kept for the next interval.


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over questions, and how far it may be off."""

    value: float
    error: float | None
    """The standard error; None with a single question."""
    low: float | None
    """The lower end of the 95% interval; None with a single question."""
    high: float | None
    """Its upper end."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of a paired difference over questions."""

    value: float
    low: float | None
    """The lower end of the 95% interval; None with a single question."""
    high: float | None
    """Its upper end."""
    won: int
    """Questions where the first is higher."""
    lost: int
    """Questions where it is lower."""
    p: float | None
    """Of the exact sign test over those: how likely so uneven a count is by chance. None where
    a question is more or less won, as over several draws: the interval says it then."""

    @property
    def clear(self) -> bool:
        """Whether it is one: the interval leaves out 0, and p, where there is one, is below 5%."""
        if self.low is None or self.high is None:
            return False
        likely = self.p is not None and self.p >= 1.0 - LEVEL
        return (self.low > _SAME or self.high < -_SAME) and not likely

    def __neg__(self) -> Difference:
        """The second minus the first."""
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return Difference(-self.value, low, high, self.lost, self.won, self.p)


@dataclass(frozen=True, slots=True)
class Mixture:
    """Majority at a given number of tokens: of two neighbouring budgets, each now and then."""

    correct: Floats
    """`[questions]`, the probability of a right answer."""
    tokens: float
    """Its mean tokens a question: what was wanted, unless that is beyond an end."""
    budgets: tuple[int, int]
    """The smaller budget and the larger; the same twice where one is enough."""
    share: float
    """How often it is the smaller one, in [0, 1]."""
    beyond: Literal["below", "above"] | None
    """Where even the smallest budget costs more than wanted, or the largest less: that one."""


def per_question(values: ArrayLike) -> Floats:
    """The mean over repeats: `[..., questions, repeats]` to `[..., questions]`, float64."""
    return np.asarray(np.mean(np.asarray(values), axis=-1, dtype=np.float64))


def estimates(means: Floats) -> list[Estimate]:
    """The mean of each row of `[n, questions]`, its error and interval.

    The standard error is that of a mean over clusters of equal size: the standard deviation of the
    questions' means (n - 1 below) over the root of their number. What repeats vary is in these
    means already, so it is right with one repeat and with many.

    Raises:
        InvalidInput: there is no question.
    """
    _check(means)
    values = means.mean(axis=1).tolist()
    if means.shape[1] < 2:
        return [Estimate(value, None, None, None) for value in values]
    errors = means.std(axis=1, ddof=1) / math.sqrt(means.shape[1])
    low, high = intervals(means)
    every = zip(values, errors.tolist(), low.tolist(), high.tolist(), strict=True)
    return [Estimate(*each) for each in every]


def paired(first: Floats, second: Floats) -> list[Difference]:
    """How much higher the first is, row by row, on the same questions with the same draws.

    Args:
        first: `[n, questions]`, means over repeats.
        second: `[n, questions]`, or one row for all.

    Raises:
        InvalidInput: there is no question.
    """
    _check(first)
    each = first - second
    each[np.abs(each) < _SAME * np.maximum(1.0, np.abs(first))] = 0.0
    values = each.mean(axis=1).tolist()
    won, lost = (each > 0).sum(axis=1).tolist(), (each < 0).sum(axis=1).tolist()
    whole: list[bool] = np.all(np.isin(each, (-1.0, 0.0, 1.0)), axis=1).tolist()
    low: list[float | None] = [None] * len(each)
    high = low
    if each.shape[1] > 1:
        low, high = (end.tolist() for end in intervals(each))
    return [
        Difference(value, start, end, up, down, sign_test(up, down) if counts else None)
        for value, start, end, up, down, counts in zip(
            values, low, high, won, lost, whole, strict=True
        )
    ]


@functools.cache
def sign_test(won: int, lost: int) -> float:
    """The two-sided p of so uneven a count, if either side were as likely.

    Exact: twice the binomial tail, at most 1. Over paired right and wrong answers it is the exact
    test of McNemar.

    >>> round(sign_test(1, 7), 4)
    0.0703
    """
    total = won + lost
    ways = tail = 1
    for at in range(min(won, lost)):
        ways = ways * (total - at) // (at + 1)
        tail += ways
    return float(min(1.0, 2 * tail / 2**total))


def bootstrap(values: Floats, seed: int = 0) -> Floats:
    """Means over questions drawn anew, with replacement.

    Args:
        values: `[questions, n]`: n figures of each question, drawn together.
        seed: of the draws; the same questions are drawn whatever the figures are.

    Returns:
        `[2000, n]` float64.
    """
    questions = len(values)
    return np.concatenate([counts @ values for counts in _draws(questions, seed)]) / questions


def intervals(means: Floats) -> tuple[Floats, Floats]:
    """The 95% percentile bootstrap interval of the mean of each row: `[n, questions]` to two `[n]`.

    With few questions it is somewhat too narrow, by about the root of (questions - 1) / questions.
    """
    ends = np.empty((2, len(means)))
    for start in range(0, len(means), _ROWS):
        some = slice(start, start + _ROWS)
        ends[:, some] = _ends(bootstrap(means[some].T))
    return ends[0], ends[1]


def within(won: Floats, pairs: Floats) -> Estimate:
    """The AUROC within questions: of all pairs within one, the share that is won.

    Args:
        won: `[questions]`, of `pairs_won`.
        pairs: likewise. A question without pairs says nothing and is left out.

    Returns:
        NaN without any pairs. The interval draws questions anew, and the error is the standard
        deviation of what comes of it.
    """
    there = pairs > 0
    if not there.any():
        return Estimate(math.nan, None, None, None)
    counts = np.stack([won[there], pairs[there]], axis=1)
    value = float(counts[:, 0].sum() / counts[:, 1].sum())
    if len(counts) < 2:
        return Estimate(value, None, None, None)
    drawn = bootstrap(counts)
    ratios = drawn[:, 0] / drawn[:, 1]
    low, high = _ends(ratios[:, None])[:, 0].tolist()
    return Estimate(value, float(ratios.std(ddof=1)), low, high)


def at_tokens(budgets: ArrayLike, tokens: ArrayLike, correct: ArrayLike, wanted: float) -> Mixture:
    """Majority at so many tokens a question: two neighbouring budgets, mixed to cost just that.

    For every question alike, the smaller budget is taken with the probability that makes the mean
    tokens over all questions equal `wanted`. So it can be had, and it can be compared question by
    question.

    Args:
        budgets: `[b]`, ascending.
        tokens: `[b, questions]`, mean tokens at each budget.
        correct: `[b, questions]`, the share of right answers.
        wanted: mean tokens a question.

    Raises:
        InvalidInput: the shapes do not fit, there is no budget, or `wanted` is not finite.
    """
    sizes = np.asarray(budgets, np.int64)
    cost = np.asarray(tokens, np.float64)
    right = np.asarray(correct, np.float64)
    if cost.ndim != 2 or cost.shape != right.shape or sizes.shape != cost.shape[:1]:
        raise InvalidInput(
            f"budgets {sizes.shape}, tokens {cost.shape} and correct {right.shape} must be [b], "
            f"[b, questions] and [b, questions]"
        )
    if not cost.size:
        raise InvalidInput("tokens is empty: there must be a budget and a question")
    if not math.isfinite(wanted):
        raise InvalidInput(f"wanted={wanted}: must be a finite number of tokens")
    # More traces cost more, on the whole; a consensus may make neighbours equal.
    mean = np.maximum.accumulate(cost.mean(axis=1))
    upper = int(np.searchsorted(mean, wanted, side="right"))
    close = _SAME * max(1.0, abs(wanted))
    if upper == 0:
        beyond: Literal["below", "above"] | None = "below" if mean[0] > wanted + close else None
        return Mixture(right[0], float(mean[0]), (int(sizes[0]),) * 2, 1.0, beyond)
    if upper == len(mean):
        beyond = "above" if mean[-1] < wanted - close else None
        # Of budgets that cost the same, the smallest.
        last = int(np.searchsorted(mean, mean[-1], side="left"))
        return Mixture(right[last], float(mean[-1]), (int(sizes[last]),) * 2, 1.0, beyond)
    lower = upper - 1
    share = float((mean[upper] - wanted) / (mean[upper] - mean[lower]))
    mixed = share * right[lower] + (1.0 - share) * right[upper]
    return Mixture(mixed, float(wanted), (int(sizes[lower]), int(sizes[upper])), share, None)


def pairs_won(
    scores: ArrayLike, right: ArrayLike, questions: ArrayLike, size: int
) -> tuple[Floats, Floats]:
    """Pairs of a right and a wrong trace of one question, and those in which the right one is up.

    O(n log n). A tie is half won.

    Args:
        scores: `[n]` float; NaN entries are left out.
        right: `[n]` bool.
        questions: `[n]` int, each in [0, size).
        size: how many questions there are.

    Returns:
        Won and all, `[size]` float64 each; their ratio is a question's AUROC.
    """
    values = np.asarray(scores, np.float64)
    labels = np.asarray(right, np.bool_)
    group = np.asarray(questions, np.int64)
    if values.ndim != 1 or values.shape != labels.shape or values.shape != group.shape:
        raise InvalidInput(
            f"scores {values.shape}, right {labels.shape} and questions {group.shape} must be "
            f"rows of one length"
        )
    known = ~np.isnan(values)
    values, labels, group = values[known], labels[known], group[known]
    order = np.lexsort((values, group))
    values, labels, group = values[order], labels[order], group[order]
    # Wrong traces before each place, and before the first of its question and of its equals.
    before = np.concatenate([[0], np.cumsum(~labels)])
    question_starts = np.searchsorted(group, np.arange(size + 1))
    new = np.ones(len(values), np.bool_)
    new[1:] = (values[1:] != values[:-1]) | (group[1:] != group[:-1])
    ties = np.flatnonzero(new)
    tie = np.cumsum(new) - 1
    ends = np.append(ties[1:], len(values))
    below = before[ties][tie] - before[question_starts[group]]
    equal = (before[ends] - before[ties])[tie]
    score = np.where(labels, below + equal / 2, 0.0)
    won = np.bincount(group, weights=score, minlength=size)
    wrong = np.diff(before[question_starts])
    pairs = wrong * (np.diff(question_starts) - wrong)
    return won.astype(np.float64), pairs.astype(np.float64)


def auroc(scores: ArrayLike, right: ArrayLike) -> float:
    """The probability that a right trace scores above a wrong one, ties counting half.

    Exact, by ranks: O(n log n).

    Args:
        scores: `[n]` float; NaN entries are left out.
        right: `[n]` bool.

    Returns:
        In [0, 1]; NaN where all are right, or none.

    >>> auroc([0.9, 0.8, 0.8, 0.1], [True, True, False, False])
    0.875
    """
    values, labels = np.asarray(scores, np.float64), np.asarray(right, np.bool_)
    if values.ndim != 1 or values.shape != labels.shape:
        raise InvalidInput(f"scores {values.shape} and right {labels.shape} must be two equal rows")
    won, pairs = pairs_won(values, labels, np.zeros(len(values), np.int64), 1)
    return float(won[0] / pairs[0]) if pairs[0] else float("nan")


def pair_agreement(votes: ArrayLike, question: ArrayLike) -> float | None:
    """How often two traces of a question give the same answer, over all such pairs.

    Args:
        votes: `[answers]`, for each different answer of a question the traces that give it.
        question: `[answers]`, its question, counted from 0.

    Returns:
        A share; None where no question has two traces.
    """
    votes = np.asarray(votes, np.int64)
    all_votes = np.bincount(np.asarray(question, np.int64), weights=votes)
    pairs = float((all_votes * (all_votes - 1)).sum())
    return float((votes * (votes - 1)).sum()) / pairs if pairs else None


def _check(means: Floats) -> None:
    if means.ndim != 2 or not means.shape[1]:
        raise InvalidInput(f"means has shape {means.shape}: must be [n, questions], not empty")


def _draws(questions: int, seed: int) -> Iterable[Floats]:
    """How often each question is drawn, `[some, questions]` at a time, `DRAWS` in all."""
    return (_kept if DRAWS * questions <= _KEPT else _drawn)(questions, seed)


@functools.lru_cache(maxsize=1)
def _kept(questions: int, seed: int) -> tuple[Floats, ...]:
    return tuple(_drawn(questions, seed))


def _drawn(questions: int, seed: int) -> Iterator[Floats]:
    random = np.random.default_rng(seed)
    most = max(1, _KEPT // questions)
    for start in range(0, DRAWS, most):
        size = min(most, DRAWS - start)
        counts = np.empty((size, questions))
        for row in counts:
            row[:] = np.bincount(random.integers(questions, size=questions), minlength=questions)
        yield counts


def _ends(means: Floats) -> Floats:
    """Of `[draws, n]`, the two ends between which `LEVEL` of each column lies: `[2, n]`."""
    return np.asarray(np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0))
