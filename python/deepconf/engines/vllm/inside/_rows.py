"""From the logits of a step to the rows that are to end: what both model runners share.

Nothing here waits for the device before what it waits for is done: what is copied in one step is
looked at `lag` steps later, so that all ranks of an engine decide in the same step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from deepconf._core import token_confidence
from deepconf.engines.vllm.inside._ledger import Found, Ledger
from deepconf.engines.vllm.inside._watch import Watch

__all__ = ["Rows", "of_engine"]

Largest = Callable[[torch.Tensor, int], torch.Tensor]


class _Copy(NamedTuple):
    """Log-probabilities on their way to the host."""

    top: torch.Tensor
    """float32 `[rows, k]`, the largest first."""
    event: Any
    """Recorded behind the copy; None where there is none to wait for."""
    rows: NDArray[np.int64]
    slots: NDArray[np.int64]
    leaving: list[int]
    """Slots of traces that have left since, and whose latest row is in here."""


# Logits that a core's own cache holds. Those of 512 rows of a large vocabulary in one go take twice
# as long on a CPU.
_CACHED = 1 << 19


def _log_softmax_and_topk(logits: torch.Tensor, k: int) -> torch.Tensor:
    rows, vocabulary = logits.shape
    size = max(1, _CACHED // vocabulary if logits.device.type == "cpu" else rows)

    def of(part: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(part, -1, dtype=torch.float32).topk(k).values

    return of(logits) if size >= rows else torch.cat([of(part) for part in logits.split(size)])


class Rows:
    """The places of a batch, and the traces in them that are ours.

    Args:
        places: how many requests a batch has at the most.
        longest: tokens of the model's context.
        lag: steps until what was computed on the device is looked at.
        largest: `[rows, vocabulary]` logits, and k, to `[rows, k]` log-probabilities, float32.
    """

    def __init__(
        self, places: int, longest: int, lag: int, largest: Largest = _log_softmax_and_topk
    ) -> None:
        # A trace that has left keeps its slot until its rows are taken in.
        self._ledger = Ledger(places * (lag + 1), longest)
        self._slots = np.full(places, -1, np.int64)
        self._copies: deque[_Copy] = deque()
        self._lag = lag
        self._largest = largest

    # ---- who is where --------------------------------------------------------------------------

    def bind(self, place: int, params: Any, generated: int) -> bool:
        """A request is put into a place; whether it is ours.

        Args:
            place: where; whoever was there has gone.
            params: its `SamplingParams`.
            generated: how many tokens of it have been generated before.
        """
        self.release(place)
        watch = Watch.of(params)
        if watch is None:
            return False
        elsewhere = self._ledger.slot_of(watch.trace)
        if elsewhere is not None:
            for other in np.flatnonzero(self._slots == elsewhere).tolist():
                self.release(other)  # A runner that does not say who leaves.
            self._take_in_all_of([elsewhere])
        self._slots[place] = self._ledger.open(watch, generated)
        return True

    def release(self, place: int) -> None:
        """Whoever was there has gone."""
        slot = int(self._slots[place])
        if slot >= 0:
            self._slots[place] = -1
            under_way = [copy for copy in self._copies if slot in copy.slots]
            if under_way:
                under_way[-1].leaving.append(slot)
            else:
                self._ledger.leave(slot)

    def move(self, origin: int, place: int) -> None:
        """A request is moved to a place that is free, or whose request is gone."""
        self.release(place)
        self._slots[place], self._slots[origin] = self._slots[origin], -1

    def swap(self, one: int, other: int) -> None:
        """Two places are exchanged."""
        self._slots[[one, other]] = self._slots[[other, one]]

    # ---- a step --------------------------------------------------------------------------------

    def score(
        self, logits: torch.Tensor, places: NDArray[np.int64], unfinished: NDArray[np.bool_]
    ) -> None:
        """Takes in what earlier steps computed, and begins to compute what this one says.

        Args:
            logits: `[rows, vocabulary]`, before anything has changed them.
            places: `[rows]`, the place of each row's request.
            unfinished: `[rows]`, whose prompt is not all read yet: they sample nothing.
        """
        while len(self._copies) >= self._lag:
            self._take_in(self._copies.popleft())
        slots = self._slots[places]
        rows = np.flatnonzero((slots >= 0) & ~unfinished)
        rows = rows[~self._ledger.closed[slots[rows]]]
        rows = rows[self._ledger.in_vocabulary(slots[rows], logits.shape[-1])]
        if len(rows):
            k = int(self._ledger.top_logprobs[slots[rows]].max())
            top, event = _to_host(self._largest(logits, k))
            self._copies.append(_Copy(top, event, rows, slots[rows], []))

    def force(self, logits: torch.Tensor, places: NDArray[np.int64]) -> torch.Tensor:
        """Leaves the rows that are to end no other token than the one that ends them."""
        slots = self._slots[places]
        rows = np.flatnonzero(slots >= 0)
        rows = rows[self._ledger.closed[slots[rows]]]
        tokens = self._ledger.stop_token[slots[rows]]
        rows, tokens = rows[tokens >= 0], tokens[tokens >= 0]
        if len(rows):
            at, token = _to_device(rows, logits), _to_device(tokens, logits)
            logits[at] = -torch.inf
            logits[at, token] = 0.0
        return logits

    def _take_in_all_of(self, slots: Sequence[int]) -> None:
        """Takes in what was computed of these, and waits for it."""
        while any(np.isin(slots, copy.slots).any() for copy in self._copies):
            self._take_in(self._copies.popleft())

    def _take_in(self, copy: _Copy) -> None:
        if copy.event is not None:
            copy.event.synchronize()
        going = ~self._ledger.failed[copy.slots]  # What was on its way at a stop is counted.
        slots, top = copy.slots[going], copy.top.numpy()[copy.rows[going]]
        ks, floors = self._ledger.top_logprobs[slots], self._ledger.logprob_floor[slots]
        confidence = np.empty(len(slots), np.float32)
        for k, floor in {*zip(ks.tolist(), floors.tolist(), strict=True)}:
            those = (ks == k) & (floors == floor)
            confidence[those] = _confidences(top[those, :k], floor)
        self._ledger.add(slots, confidence)
        for slot in copy.leaving:
            self._ledger.leave(slot)

    # ---- what was found ------------------------------------------------------------------------

    def fetch(self, traces: Sequence[str]) -> dict[str, Found]:
        """What is known of these traces, which are forgotten then."""
        slots = [self._ledger.slot_of(trace) for trace in traces]
        self._take_in_all_of([slot for slot in slots if slot is not None])
        return self._ledger.fetch(traces)

    def set_thresholds(self, thresholds: Mapping[str, float | None]) -> None:
        """Sets s of these traces for the tokens to come, nats; None never stops."""
        for trace, threshold in thresholds.items():
            self._ledger.set_threshold(trace, threshold)

    def __len__(self) -> int:
        """How many traces are known."""
        return len(self._ledger)


def of_engine(vllm_config: Any) -> Rows:
    """For an engine of this configuration.

    Where steps overlap (`async_scheduling`), one is launched while the one before it runs, and the
    one before that is done. In a pipeline more steps are under way, but not in its last stage.
    """
    scheduler = vllm_config.scheduler_config
    lag = 2 if scheduler.async_scheduling else 1
    largest: Largest = _log_softmax_and_topk
    if (vllm_config.additional_config or {}).get("deepconf_kernel") == "triton":
        from deepconf.engines.vllm.inside._kernel import top_logprobs as largest
    return Rows(scheduler.max_num_seqs, vllm_config.model_config.max_model_len, lag, largest)


def _confidences(top: NDArray[np.float32], floor: float) -> NDArray[np.float32]:
    """NaN for a row of which something is not finite, even when raised to the floor."""
    sound = np.isfinite(np.maximum(top, floor)).all(axis=1)
    found = np.full(len(top), np.nan, np.float32)
    logprob_floor = None if floor == -np.inf else floor
    found[sound] = token_confidence(top[sound], logprob_floor=logprob_floor)
    return found


def _to_host(values: torch.Tensor) -> tuple[torch.Tensor, Any]:
    if values.device.type == "cpu":
        return values, None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event


def _to_device(values: NDArray[np.int64], like: torch.Tensor) -> torch.Tensor:
    tensor = torch.from_numpy(values)
    if like.device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(like.device, non_blocking=True)
