"""The definitions in float64 NumPy, slow and obvious, to hold the extension against."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

SCORES = ("mean", "lowest_group", "bottom_group", "tail")
FIELDS = (*SCORES, "num_tokens", "short")


def groups(values: ArrayLike, window: int) -> NDArray[np.float64]:
    """The mean of every `window` consecutive tokens; a shorter trace is one group."""
    wide = np.asarray(values, np.float64)
    if len(wide) == 0:
        return np.empty(0)
    size = min(window, len(wide))
    return np.array([wide[i : i + size].mean() for i in range(len(wide) - size + 1)])


def score_one(values: ArrayLike, window: int, tail: int, bottom: float) -> tuple[float, ...]:
    """The `FIELDS` of one trace."""
    wide = np.asarray(values, np.float64)
    if len(wide) == 0:
        return (np.nan, np.nan, np.nan, np.nan, 0, False)
    of_groups = np.sort(groups(wide, window))
    lowest = of_groups[: max(1, int(bottom * len(of_groups)))]
    return (
        wide.mean(),
        of_groups[0],
        lowest.mean(),
        wide[-tail:].mean(),
        len(wide),
        len(wide) < window,
    )


def score(
    traces: Sequence[ArrayLike], window: int = 2048, tail: int = 2048, bottom: float = 0.10
) -> dict[str, NDArray[Any]]:
    """The `FIELDS` of many traces, an array each."""
    rows = [score_one(trace, window, tail, bottom) for trace in traces]
    return {name: np.array([row[at] for row in rows]) for at, name in enumerate(FIELDS)}


def assert_scores(found: Any, traces: Sequence[ArrayLike], **settings: Any) -> None:
    """Fails unless `found` is what the definitions say of `traces`, within 1e-9 relative."""
    for name, expected in score(traces, **settings).items():
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-9, err_msg=name)


def fields(scores: Any) -> tuple[bytes, ...]:
    """The bits of scores, so that NaN equals itself."""
    return tuple(np.asarray(getattr(scores, name)).tobytes() for name in FIELDS)


def first_stop(values: ArrayLike, window: int, threshold: float) -> int | None:
    """The token whose group is the first complete one strictly below the threshold."""
    wide = np.asarray(values, np.float64)
    if len(wide) < window:
        return None
    below = np.flatnonzero(groups(wide, window) < threshold)
    return int(below[0]) + window - 1 if len(below) else None


def vote(
    answers: Sequence[Hashable],
    weights: Sequence[float] | None = None,
    keep: float = 1.0,
    scores: Sequence[float] | None = None,
    min_ballots: int = 1,
) -> tuple[Any, dict[Any, float], dict[Any, int], float, float | None, bool]:
    """Winner, ballots, voters, share, threshold and fallback."""
    voters = [i for i, answer in enumerate(answers) if answer is not None]
    threshold, fallback = None, False
    if keep < 1.0:
        ranking = weights if scores is None else scores
        assert ranking is not None
        voters = [i for i in voters if not np.isnan(ranking[i])]
        if voters:
            threshold = float(np.percentile([ranking[i] for i in voters], 100.0 * (1.0 - keep)))
        kept = [i for i in voters if threshold is not None and ranking[i] >= threshold]
        fallback = len(kept) < min_ballots
        voters = voters if fallback else kept
    ballots: dict[Any, float] = {}
    heads: dict[Any, int] = {}
    for i in voters:
        ballots[answers[i]] = ballots.get(answers[i], 0.0) + (
            1.0 if weights is None else weights[i]
        )
        heads[answers[i]] = heads.get(answers[i], 0) + 1
    order = sorted(ballots, key=lambda answer: -ballots[answer])  # Stable: ties as first seen.
    total = sum(ballots.values())
    share = ballots[order[0]] / total if total > 0 else 0.0
    winner = order[0] if order else None
    ranked = {a: ballots[a] for a in order}, {a: heads[a] for a in order}
    return winner, *ranked, share, threshold, fallback
