"""Streaming scorers: bit for bit what `score` says of the same tokens, and when to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import oracle
import pytest
from deepconf import BatchScorer, TraceScorer, score
from deepconf.errors import InvalidInput, InvalidType
from hypothesis import given, settings
from hypothesis import strategies as st

tokens = st.lists(st.floats(-50, 50, width=32), max_size=40)
# Sixteenths: float64 holds every sum of them exactly, so the oracle decides as the scorer must.
grid = st.lists(st.integers(0, 160).map(lambda n: n / 16), max_size=40)
sizes = st.integers(1, 9)


@given(chunks=st.lists(tokens, max_size=4), window=sizes, tail=sizes, wide=st.booleans())
@settings(deadline=None)
def test_extending_is_scoring(
    chunks: list[list[float]], window: int, tail: int, wide: bool
) -> None:
    scorer = TraceScorer(window, tail, bottom=0.25)
    seen: list[float] = []
    for chunk in chunks:
        assert scorer.extend(np.array(chunk, np.float64 if wide else np.float32)) is None
        seen += chunk
        recorded = score([seen], window=window, tail=tail, bottom=0.25)[0]
        assert oracle.fields(scorer.scores()) == oracle.fields(recorded)
        np.testing.assert_array_equal(
            [scorer.mean, scorer.lowest_group, scorer.tail, scorer.num_tokens],
            [recorded.mean, recorded.lowest_group, recorded.tail, recorded.num_tokens],
        )
        last = score([seen[-window:]]).mean[0] if len(seen) >= window else np.nan
        np.testing.assert_array_equal(scorer.group, last)


@given(trace=tokens, window=sizes, tail=sizes)
@settings(deadline=None)
def test_pushing_is_extending(trace: list[float], window: int, tail: int) -> None:
    pushed, extended = (TraceScorer(window, tail) for _ in range(2))
    assert not any(pushed.push(c) for c in trace)
    extended.extend(trace)
    assert oracle.fields(pushed.scores()) == oracle.fields(extended.scores())


@given(trace=tokens, window=sizes, tail=sizes)
@settings(deadline=None)
def test_without_a_bottom_the_rest_is_the_same(trace: list[float], window: int, tail: int) -> None:
    lean, full = TraceScorer(window, tail, bottom=None), TraceScorer(window, tail)
    lean.extend(trace)
    full.extend(trace)
    assert np.isnan(lean.scores().bottom_group)
    rest = [at for at, name in enumerate(oracle.FIELDS) if name != "bottom_group"]
    found, expected = oracle.fields(lean.scores()), oracle.fields(full.scores())
    assert [found[at] for at in rest] == [expected[at] for at in rest]


@given(trace=grid, window=sizes, threshold=st.integers(0, 160).map(lambda n: n / 16))
@settings(deadline=None)
def test_the_first_complete_group_below_the_threshold_stops(
    trace: list[float], window: int, threshold: float
) -> None:
    expected = oracle.first_stop(trace, window, threshold)
    scorer = TraceScorer(window, threshold=threshold)
    assert scorer.extend(trace) == expected
    # Nothing after the token that asked for the stop was added.
    assert scorer.num_tokens == (len(trace) if expected is None else expected + 1)
    other = TraceScorer(window, threshold=threshold)
    asked = (at for at, c in enumerate(trace) if other.push(c))
    assert next(asked, None) == expected


def test_a_group_at_the_threshold_does_not_stop() -> None:
    scorer = TraceScorer(window=2, threshold=3.0)
    assert not scorer.push(2.0)
    assert not scorer.push(4.0)
    assert scorer.push(2.0 - 2.0**-40)  # One quantum less.


def test_a_threshold_holds_for_the_tokens_to_come() -> None:
    scorer = TraceScorer(window=1)
    assert scorer.threshold is None
    assert not scorer.push(1.0)
    scorer.threshold = 5.0
    assert (scorer.threshold, scorer.push(1.0)) == (5.0, True)
    scorer.threshold = None
    assert not scorer.push(1.0)


def test_reset_forgets_the_trace_and_keeps_the_settings() -> None:
    scorer = TraceScorer(window=2, threshold=3.0)
    scorer.extend([9.0, 9.0, 9.0])
    scorer.reset()
    assert oracle.fields(scorer.scores()) == oracle.fields(score([[]], window=2)[0])
    assert scorer.extend([1.0, 1.0]) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 40_000.0])
def test_a_refused_confidence_leaves_the_scorer_as_it_was(bad: float) -> None:
    scorer = TraceScorer(window=2, threshold=0.0)
    scorer.extend([3.0, 4.0])
    before = oracle.fields(scorer.scores()), scorer.group
    with pytest.raises(InvalidInput, match="at position 0"):
        scorer.push(bad)
    with pytest.raises(InvalidInput, match="at position 1"):
        scorer.extend([5.0, bad])
    with pytest.raises(InvalidInput, match="threshold=NaN: must be finite"):
        scorer.threshold = np.nan
    assert (oracle.fields(scorer.scores()), scorer.group) == before
    assert scorer.threshold == 0.0


@given(
    steps=st.lists(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 20, width=32)), max_size=6)),
    window=sizes,
    threshold=st.none() | st.floats(0, 20),
)
@settings(deadline=None)
def test_a_batch_is_a_scorer_for_each_slot(
    steps: list[list[tuple[int, float]]], window: int, threshold: float | None
) -> None:
    batch = BatchScorer(4, window=window, threshold=threshold)
    singles = [TraceScorer(window, threshold=threshold) for _ in range(4)]
    for step in steps:
        slots = np.array([slot for slot, _ in step], np.int64)
        found = batch.step(slots, np.array([c for _, c in step], np.float32))
        assert found.tolist() == [singles[slot].push(c) for slot, c in step]
    for name in ("group", "lowest_group", "num_tokens"):
        expected = np.array([getattr(single, name) for single in singles])
        np.testing.assert_array_equal(getattr(batch, name), expected)


def test_a_batch_empties_the_slots_it_is_told_to() -> None:
    batch = BatchScorer(3, window=1)
    batch.step([0, 1, 2], [1.0, 2.0, 3.0])
    batch.reset([2, 0])
    np.testing.assert_array_equal(batch.num_tokens, [0, 1, 0])
    np.testing.assert_array_equal(batch.lowest_group, [np.nan, 2.0, np.nan])
    assert len(batch) == 3


def test_a_batch_takes_a_new_threshold() -> None:
    batch = BatchScorer(1, window=1, threshold=1.0)
    assert batch.step([0], [2.0]).tolist() == [False]
    batch.set_threshold(3.0)
    assert batch.step([0], [2.0]).tolist() == [True]
    batch.set_threshold(None)
    assert batch.step([0], [2.0]).tolist() == [False]


def test_a_batch_takes_a_threshold_for_some_of_its_slots() -> None:
    batch = BatchScorer(3, window=1)
    batch.set_threshold(3.0, slot_ids=[0, 2])
    assert batch.step([0, 1, 2], [2.0, 2.0, 4.0]).tolist() == [True, False, False]
    batch.reset([0])
    assert batch.step([0], [2.0]).tolist() == [True]
    with pytest.raises(InvalidInput, match="slot_ids=3: there are 3 slots"):
        batch.set_threshold(9.0, slot_ids=[1, 3])
    assert batch.step([1], [2.0]).tolist() == [False]


BAD_STEPS: list[tuple[Any, Any, type[Exception], str]] = [
    ([0, 2], [1.0, 1.0], InvalidInput, "slot_ids=2: there are 2 slots"),
    ([0, -1], [1.0, 1.0], InvalidInput, "slot_ids=-1"),
    ([0, 1], [1.0, np.nan], InvalidInput, "NaN at position 1"),
    ([0, 1], [1.0], InvalidInput, "slot_ids has 2 entries and confidences has 1"),
    ([0.0], [1.0], InvalidType, "slot_ids has dtype float64"),
    ([[0]], [1.0], InvalidType, r"slot_ids has dtype int64 and shape \[1, 1\]"),
    ([0], [[1.0]], InvalidInput, r"confidences has shape \[1, 1\]"),
    ([0], np.array([1]), InvalidType, "confidences has dtype int64"),
]


@pytest.mark.parametrize(("slots", "confidences", "error", "message"), BAD_STEPS)
def test_a_refused_step_adds_nothing_to_any_slot(
    slots: Any, confidences: Any, error: type[Exception], message: str
) -> None:
    batch = BatchScorer(2, window=1)
    with pytest.raises(error, match=message):
        batch.step(slots, confidences)
    assert batch.num_tokens.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TraceScorer(window=0), "window=0"),
        (lambda: TraceScorer(window=2**31 + 1), "window=2147483649"),
        (lambda: TraceScorer(tail=-1), "tail=-1"),
        (lambda: TraceScorer(bottom=0.0), "bottom=0"),
        (lambda: TraceScorer(threshold=np.inf), "threshold=inf"),
        (lambda: BatchScorer(-1), "slots=-1"),
        (lambda: BatchScorer(1, window=0), "window=0"),
        (lambda: BatchScorer(1).set_threshold(np.nan), "threshold=NaN"),
        (lambda: BatchScorer(1).reset([1]), "slot_ids=1"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make()


def test_threads_may_share_a_scorer() -> None:
    scorer = TraceScorer(window=1)
    together = threading.Barrier(8)

    def hammer(number: int) -> None:
        together.wait()
        for _ in range(200):
            scorer.push(float(number))
            scorer.extend([float(number)] * 3)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hammer, range(1, 9)))
    assert (scorer.num_tokens, scorer.mean, scorer.lowest_group) == (8 * 800, 4.5, 1.0)


def test_threads_may_share_a_batch() -> None:
    traces = np.random.default_rng(5).uniform(0, 20, (8, 300)).astype(np.float32)
    batch = BatchScorer(8, window=16)
    together = threading.Barrier(8)

    def follow(slot: int) -> None:
        together.wait()
        for c in traces[slot]:
            batch.step([slot], c[None])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(follow, range(8)))
    np.testing.assert_array_equal(batch.lowest_group, score(traces, window=16).lowest_group)
