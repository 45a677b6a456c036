"""Whether traces and what is done with them fit: windows that none reaches, questions of one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepconf._core import Policy
from deepconf._windows import fitting
from deepconf._words import counted

__all__ = ["alone", "unarmed"]

# In more of the runs than this nothing could be stopped: the window is too long.
_MOST = 0.5
_GROUPS = ("lowest_group", "bottom_group")


def unarmed(
    policies: Mapping[str, Policy], shares: ArrayLike, lengths: NDArray[np.int64]
) -> list[str]:
    """A note for each policy whose window does not fit the traces.

    Args:
        policies: by label.
        shares: `[policies]`, of the runs in which nothing could be stopped.
        lengths: tokens of each trace.
    """
    longest, fit = int(lengths.max(initial=0)), fitting(lengths)
    notes = []
    for (label, policy), share in zip(policies.items(), np.asarray(shares), strict=True):
        measured = policy.weight in _GROUPS or (policy.keep < 1.0 and policy.measure in _GROUPS)
        small = f"a smaller window, such as {fit}, fits"
        if longest < policy.window and policy.mode == "online":
            notes.append(
                f"{label}: nothing could be stopped: no trace reaches the window of "
                f"{policy.window} tokens (the longest has {longest}): {small}"
            )
        elif longest < policy.window and measured:
            notes.append(
                f"{label}: no trace reaches the window of {policy.window} tokens (the longest has "
                f"{longest}), so each is one group, its mean: {small}"
            )
        elif share > _MOST:
            notes.append(
                f"{label}: in {share:.0%} of the runs nothing could be stopped, for no trace "
                f"reached the window of {policy.window} tokens, or no warmup trace ended by itself"
            )
    return notes


def alone(sizes: ArrayLike) -> list[str]:
    """A note where there are several questions, and all have one trace.

    Args:
        sizes: `[questions]`, traces of each.
    """
    sizes = np.asarray(sizes)
    if len(sizes) < 2 or sizes.max() > 1:
        return []
    return [
        f"each of the {counted(len(sizes), 'question')} has one trace, so there is no vote: where "
        "several answer one question, question_id says which when they are imported"
    ]
