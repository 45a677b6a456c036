"""The confidences of the traces in a worker, and which of them stop; knows nothing of vLLM.

A trace has a slot while its request is in the batch. When it leaves, because it has ended, was
preempted or is in another part of a pipeline, it keeps its slot until another needs it, and its
confidences until they are fetched, or until it comes back and is followed from them on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepconf._core import CONFIDENCE_LIMIT, BatchScorer
from deepconf.engines.vllm.inside._watch import Watch

__all__ = ["Found", "Ledger"]


class Found(NamedTuple):
    """What is known of a trace."""

    confidence: NDArray[np.float32]
    """Its token confidences, float32 `[n]`, nats, the forced token's not among them."""
    stop_token: int | None
    """The first token whose group fell below the threshold, counted from 0."""
    error: str | None
    """Why no more of it was scored."""


class _Entry:
    """A trace; `found` is that of the time it lost its slot."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.slot: int | None = None
        self.found = Found(np.empty(0, np.float32), None, None)


class Ledger:
    """Follows up to `slots` traces at once, each of `longest` tokens at the most.

    Args:
        slots: traces that are followed at once.
        longest: tokens of the model's context.
        most_left: traces that have left and were not fetched; the oldest are forgotten then.

    A trace takes 4 bytes a token, and 8 for each of its latest w.
    """

    def __init__(self, slots: int, longest: int, most_left: int = 4096) -> None:
        self._slots = slots
        self._most_left = most_left
        # Takes memory where it is written to.
        self._kept = np.empty((slots, longest), np.float32)
        self._count = np.zeros(slots, np.int64)
        self._window = np.zeros(slots, np.int64)
        self._stop = np.full(slots, -1, np.int64)
        self._errors: dict[int, str] = {}
        self._scorers: dict[int, BatchScorer] = {}
        self._free = list(range(slots))[::-1]
        self._entries: dict[str, _Entry] = {}
        self._holders: dict[int, _Entry] = {}
        self._left: dict[str, _Entry] = {}  # The oldest first.
        self.top_logprobs = np.zeros(slots, np.int64)
        """k of each slot."""
        self.logprob_floor = np.full(slots, -np.inf)
        """Its floor, nats; -inf for none."""
        self.stop_token = np.full(slots, -1, np.int64)
        """The token that ends it; -1 for none."""
        self.closed = np.zeros(slots, np.bool_)
        """Whether it is to end: it stops, or cannot be scored."""
        self.failed = np.zeros(slots, np.bool_)
        """Whether it cannot be scored."""

    def slot_of(self, trace: str) -> int | None:
        """Where a trace is followed; None for one that is not in the batch."""
        entry = self._entries.get(trace)
        return None if entry is None or trace in self._left else entry.slot

    def open(self, watch: Watch, generated: int) -> int:
        """A slot for a trace of which so many tokens have been generated.

        One that comes back goes on from its confidences.
        """
        entry = self._entries.setdefault(watch.trace, _Entry(watch))
        self._left.pop(watch.trace, None)
        if entry.slot is not None:
            if 0 < generated == self._count[entry.slot]:
                return entry.slot
            self._give_up(entry)
        slot = entry.slot = self._vacant()
        self._holders[slot] = entry
        floor = watch.logprob_floor
        self.top_logprobs[slot] = watch.top_logprobs
        self.logprob_floor[slot] = -np.inf if floor is None else floor
        self.stop_token[slot] = -1 if watch.stop_token is None else watch.stop_token
        self.closed[slot] = self.failed[slot] = False
        self._count[slot], self._stop[slot] = 0, -1
        self._window[slot] = watch.window
        scorer = self._scorers.get(watch.window)
        if scorer is None:
            scorer = BatchScorer(self._slots, window=watch.window)
            self._scorers[watch.window] = scorer
        scorer.reset([slot])
        # What was decided of these tokens stays so, whatever the threshold is by now.
        scorer.set_threshold(None, [slot])
        before, stop = entry.found.confidence[:generated], entry.found.stop_token
        if len(before):
            self._take(np.full(len(before), slot), before, at=np.arange(len(before)))
        if stop is not None and stop < len(before):
            self._stop[slot], self.closed[slot] = stop, True
        scorer.set_threshold(entry.watch.threshold, [slot])
        if entry.found.error is not None:
            self._fail(slot, entry.found.error)
        elif len(before) < generated:
            self._fail(
                slot,
                f"{generated} tokens had been generated when it came into the batch, of which "
                f"{len(before)} were scored",
            )
        return slot

    def leave(self, slot: int) -> None:
        """Its request is not in the batch any more."""
        entry = self._holders[slot]
        if self._entries.get(entry.watch.trace) is not entry:  # It was fetched.
            self._give_up(entry)
            return
        self._left[entry.watch.trace] = entry
        if len(self._left) > self._most_left:
            self.fetch([next(iter(self._left))])

    def add(self, slots: NDArray[np.int64], confidence: NDArray[np.float32]) -> None:
        """One token of each of these traces, none of which has failed."""
        sound = np.abs(confidence) < CONFIDENCE_LIMIT
        if not sound.all():
            for slot, value in zip(
                slots[~sound].tolist(), confidence[~sound].tolist(), strict=True
            ):
                at = self._count[slot]
                self._fail(
                    slot,
                    f"token {at} has confidence {value}: where masked tokens have a "
                    "log-probability of -inf, set logprob_floor",
                )
            slots, confidence = slots[sound], confidence[sound]
        self._take(slots, confidence, at=self._count[slots])

    def in_vocabulary(self, slots: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
        """Which of these ask only for tokens that a model of so many has; the others fail."""
        k, token = self.top_logprobs[slots], self.stop_token[slots]
        there = (k <= size) & (token < size)
        for slot, top, stop in zip(slots[~there], k[~there], token[~there], strict=True):
            self.stop_token[slot] = -1 if stop >= size else stop
            self._fail(
                int(slot),
                f"the model has {size} tokens, and top_logprobs={top}, stop_token={stop} were "
                "asked for",
            )
        return there

    def set_threshold(self, trace: str, threshold: float | None) -> None:
        """For the tokens to come; nothing for a trace that is not known or could not be ended."""
        entry = self._entries.get(trace)
        if entry is None or entry.watch.stop_token is None:
            return
        entry.watch = dataclasses.replace(entry.watch, threshold=threshold)
        if entry.slot is not None:
            self._scorers[entry.watch.window].set_threshold(threshold, [entry.slot])

    def fetch(self, traces: Iterable[str]) -> dict[str, Found]:
        """What is known of these traces, which are forgotten then."""
        found: dict[str, Found] = {}
        for trace in traces:
            entry = self._entries.pop(trace, None)
            if entry is None:
                continue
            if self._left.pop(trace, None) is not None and entry.slot is not None:
                self._give_up(entry)
            found[trace] = entry.found if entry.slot is None else self._found(entry.slot)
        return found

    def __len__(self) -> int:
        """How many traces are known."""
        return len(self._entries)

    def _vacant(self) -> int:
        """A slot for another trace, from one that has left where none is free."""
        if not self._free:
            self._give_up(next(one for one in self._left.values() if one.slot is not None))
        return self._free.pop()

    def _give_up(self, entry: _Entry) -> None:
        """Takes the slot of a trace that is not in the batch."""
        slot = entry.slot
        assert slot is not None, "it has one"
        entry.found, entry.slot = self._found(slot), None
        del self._holders[slot]
        self._errors.pop(slot, None)
        self._free.append(slot)
        window, self._window[slot] = int(self._window[slot]), 0
        if not (self._window == window).any():
            del self._scorers[window]

    def _take(
        self,
        slots: NDArray[np.int64],
        confidence: NDArray[np.float32],
        at: NDArray[np.int64],
    ) -> None:
        """Sound confidences, which are these tokens of their traces."""
        self._kept[slots, at] = confidence
        self._count[slots] = at + 1  # Of a slot that is named more than once, the last.
        windows = self._window[slots]
        for window in set(windows.tolist()):
            those = np.flatnonzero(windows == window)
            below = self._scorers[window].step(slots[those], confidence[those])
            for place in those[np.flatnonzero(below)].tolist():
                slot = slots[place]
                if self._stop[slot] < 0:
                    self._stop[slot] = at[place]
                    self.closed[slot] = True

    def _fail(self, slot: int, error: str) -> None:
        self.closed[slot] = self.failed[slot] = True
        self._errors[slot] = error

    def _found(self, slot: int) -> Found:
        stop = int(self._stop[slot])
        kept = self._kept[slot, : self._count[slot]].copy()
        return Found(kept, None if stop < 0 else stop, self._errors.get(slot))
