"""What all streams bring within one turn of the event loop, as steps.

The more streams there are, the more a turn brings, and the less each token costs: one call computes
their confidences, and one tells them to the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepconf._core import token_confidence
from deepconf.engines.base import Signal, Step, Take

__all__ = ["Taker", "Turns"]


class Taker(Protocol):
    """Who has tokens to tell."""

    take: Take
    trace: int
    signal: Signal

    def stop(self, error: Exception | None = None) -> None:
        """Ends it, where its tokens are not wanted any more or cannot be taken."""
        ...


class _Batch:
    """Tokens that go to one place."""

    def __init__(self) -> None:
        self.takers: dict[Taker, None] = {}  # In order.
        self.traces: list[int] = []
        self.rows: list[list[float]] = []


class Turns:
    """Gathers tokens, and hands them over when the event loop's turn is over."""

    def __init__(self) -> None:
        self._batches: dict[tuple[Take, Signal], _Batch] = {}

    def add(self, taker: Taker, rows: Sequence[list[float]]) -> None:
        """Tokens of one trace: what counts of each token's log-probabilities."""
        if not self._batches:
            asyncio.get_running_loop().call_soon(self.flush)
        batch = self._batches.setdefault((taker.take, taker.signal), _Batch())
        batch.takers[taker] = None
        batch.traces += [taker.trace] * len(rows)
        batch.rows += rows

    def flush(self) -> None:
        """Hands over what there is, and stops what is not wanted."""
        batches, self._batches = self._batches, {}
        for (take, signal), batch in batches.items():
            error: Exception | None = None
            try:
                confidence = _confidences(batch.rows, signal.logprob_floor)
                unwanted = set(take(Step(batch.traces, confidence)))
            except Exception as raised:  # The loop would swallow it, and they would wait for ever.
                error, unwanted = raised, set(batch.traces)
            for taker in batch.takers:
                if taker.trace in unwanted:
                    taker.stop(error)


def _confidences(rows: Sequence[list[float]], floor: float | None) -> NDArray[np.float32]:
    """Of rows of different lengths, where the sampled tokens count too."""
    widths = [len(row) for row in rows]
    if min(widths) == max(widths):
        return token_confidence(np.array(rows), logprob_floor=floor)
    found = np.empty(len(rows), np.float32)
    lengths = np.array(widths)
    for width in set(widths):
        of = np.flatnonzero(lengths == width)
        found[of] = token_confidence(np.array([rows[i] for i in of.tolist()]), logprob_floor=floor)
    return found
