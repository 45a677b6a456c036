"""Scoring in vLLM's workers, without one: requests that come, move and go through a batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", exc_type=ModuleNotFoundError)

import torch
from deepconf import TraceScorer, token_confidence
from deepconf.engines.base import Step
from deepconf.engines.vllm._steps import Request
from deepconf.engines.vllm.inside._ledger import Found, Ledger
from deepconf.engines.vllm.inside._reports import Inside, refusal
from deepconf.engines.vllm.inside._rows import Rows
from deepconf.engines.vllm.inside._watch import Watch

VOCABULARY = 40
EOS = 7


def params(trace: str = "a", **changes: Any) -> SimpleNamespace:
    watch = Watch(**{"trace": trace, "top_logprobs": 5, "window": 3, "stop_token": EOS, **changes})
    return SimpleNamespace(extra_args=watch.as_extra_args(), n=1)


def confidences(logits: list[np.ndarray], watch: Watch) -> np.ndarray:
    """By vLLM's log-probabilities and the core's mean of them, row by row."""
    if not logits:
        return np.empty(0, np.float32)
    values = torch.log_softmax(torch.from_numpy(np.array(logits)), -1)
    top = values.topk(watch.top_logprobs).values.numpy()
    return token_confidence(top, logprob_floor=watch.logprob_floor)


# ---- what a request asks -------------------------------------------------------------------------


def test_what_a_request_asks_comes_back_from_its_arguments() -> None:
    watch = Watch("a", 20, 2048, -30.0, 15.25, 2)
    assert Watch.of(SimpleNamespace(extra_args=watch.as_extra_args(), n=1)) == watch
    few = Watch("a", 20, 2048)
    assert few.as_extra_args() == {
        "deepconf_trace": "a",
        "deepconf_top_logprobs": 20,
        "deepconf_window": 2048,
    }
    assert Watch.of(SimpleNamespace(extra_args={"mine": 1, **few.as_extra_args()}, n=1)) == few


@pytest.mark.parametrize("extra", [None, {}, {"mine": 1}])
def test_other_requests_ask_nothing(extra: Any) -> None:
    assert Watch.of(SimpleNamespace(extra_args=extra)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trace": None}, "deepconf_trace is missing: .*deepconf_window go together"),
        ({"trace": ""}, "deepconf_trace='': must be a string that is not empty"),
        ({"top_logprobs": 1}, "deepconf_top_logprobs=1: must be an integer of at least 2"),
        ({"top_logprobs": 2.5}, "deepconf_top_logprobs=2.5: must be an integer"),
        ({"top_logprobs": True}, "deepconf_top_logprobs=True: must be an integer"),
        ({"window": 0}, "deepconf_window=0: must be an integer of at least 1"),
        ({"logprob_floor": float("nan")}, "deepconf_logprob_floor=nan: must be a finite negative"),
        ({"threshold": "3"}, "deepconf_threshold='3': must be a finite number of nats"),
        ({"stop_token": -1}, "deepconf_stop_token=-1: must be an integer of at least 0"),
        ({"threshold": 3.0}, "deepconf_threshold needs deepconf_stop_token"),
        ({"top_logprobs": float("inf")}, "deepconf_top_logprobs=inf: must be an integer"),
        ({"top_logprobs": float("nan")}, "deepconf_top_logprobs=nan: must be an integer"),
        ({"window": 2**31}, "deepconf_window=2147483648: must be .* at most 2147483647"),
        ({"logprob_floor": 1.0}, "deepconf_logprob_floor=1.0: must be a finite negative number"),
        ({"threshold": 10**400}, "deepconf_threshold=10+: must be a finite number of nats"),
        ({"windows": 3}, "deepconf_windows is not known: there are deepconf_logprob_floor"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    values = {"trace": "a", "top_logprobs": 5, "window": 3} | change
    extra = {f"deepconf_{name}": value for name, value in values.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        Watch.of(SimpleNamespace(extra_args=extra, n=1))


def test_several_completions_of_one_request_are_refused() -> None:
    with pytest.raises(ValueError, match="n=2: must be 1, one request is one trace"):
        Watch.of(SimpleNamespace(extra_args=params().extra_args, n=2))


def test_engines_that_cannot_score_inside_say_why() -> None:
    def config(**changes: Any) -> SimpleNamespace:
        parallel = SimpleNamespace(enable_batch_sharded_sampling=changes.pop("sharded", False))
        others = {"speculative_config": None, "diffusion_config": None}
        return SimpleNamespace(**{"parallel_config": parallel, **others, **changes})

    assert refusal({"enforce_eager": True}, config()) is None
    assert "speculative decoding" in str(refusal({}, config(speculative_config=object())))
    assert "a diffusion model" in str(refusal({}, config(diffusion_config=object())))
    assert "enable_batch_sharded_sampling=True" in str(refusal({}, config(sharded=True)))
    mine = {"worker_extension_cls": "mine"}
    assert "worker_extension_cls='mine'" in str(refusal(mine, config()))


# ---- a batch -------------------------------------------------------------------------------------


class Trace:
    """A request of a made-up engine: what its model says, and what must be found of it."""

    def __init__(self, name: str, dice: np.random.Generator) -> None:
        floor = [None, -4.0][dice.integers(2)]
        threshold = [None, 2.6, 2.9, 3.2][dice.integers(4)]
        k, window = [(5, 3), (5, 8), (12, 3)][dice.integers(3)]
        self.watch = Watch(name, k, window, floor, threshold, EOS)
        self.ours = dice.random() < 0.8
        self.length = int(dice.integers(1, 30))
        self.prompt = int(dice.integers(0, 3))  # Steps until it is read.
        self.left = self.prompt
        self.dice = dice
        self.said: list[np.ndarray] = []
        self.tokens = 0
        self.forced = False
        self.place = -1

    @property
    def params(self) -> SimpleNamespace:
        return SimpleNamespace(extra_args=self.watch.as_extra_args() if self.ours else None, n=1)

    def logits(self) -> np.ndarray:
        return self.dice.normal(0, self.dice.uniform(0.2, 3), VOCABULARY).astype(np.float32)

    def stop(self) -> int | None:
        scorer = TraceScorer(window=self.watch.window, threshold=self.watch.threshold)
        return scorer.extend(confidences(self.said, self.watch))


def played(seed: int, lag: int, places: int = 6) -> Iterator[tuple[Trace, Any]]:
    """Each trace of ours at its end, with what was found."""
    dice = np.random.default_rng([seed, lag])
    rows = Rows(places, 64, lag)
    waiting = [Trace(f"t{i}", np.random.default_rng([seed, i])) for i in range(25)]
    running: list[Trace] = []

    def leave(trace: Trace) -> None:
        running.remove(trace)
        if trace.ours:
            rows.release(trace.place)

    while waiting or running:
        if running and dice.random() < 0.1:  # Preempted: it comes again, and is read again.
            trace = running[dice.integers(len(running))]
            leave(trace)
            trace.left = trace.prompt
            waiting.append(trace)
        while len(running) < places and waiting and dice.random() < 0.7:
            trace = waiting.pop(0)
            trace.place = ({*range(places)} - {other.place for other in running}).pop()
            running.append(trace)
            assert rows.bind(trace.place, trace.params, trace.tokens) == trace.ours
        free = {*range(places)} - {other.place for other in running}
        if running and free and dice.random() < 0.3:
            trace, place = running[dice.integers(len(running))], free.pop()
            rows.move(trace.place, place)
            trace.place = place
        if len(running) > 1 and dice.random() < 0.3:
            one, other = (running[i] for i in dice.choice(len(running), 2, replace=False))
            rows.swap(one.place, other.place)
            one.place, other.place = other.place, one.place
        order = sorted(running, key=lambda trace: trace.place)
        at = np.array([trace.place for trace in order], np.int64)
        said = [trace.logits() for trace in order]
        unfinished = np.array([trace.left > 0 for trace in order], np.bool_)
        if not order:
            continue
        logits = torch.from_numpy(np.array(said))
        rows.score(logits, at, unfinished)
        after = rows.force(logits.clone(), at).numpy()
        for trace, before, now in zip(order, said, after, strict=True):
            forced = not np.array_equal(before, now)
            if forced:
                assert trace.ours
                assert (int(np.argmax(now)), int(np.isfinite(now).sum())) == (EOS, 1)
            if trace.left:
                trace.left -= 1
                continue
            trace.tokens += 1
            if forced:
                trace.forced = True
            else:
                trace.said.append(before)
            if forced or trace.tokens >= trace.length:
                leave(trace)
                if trace.ours:
                    yield trace, rows.fetch([trace.watch.trace])[trace.watch.trace]
    assert len(rows) == 0
    assert rows.fetch(["t0"]) == {}


@pytest.mark.parametrize("lag", [1, 2])
def test_what_is_found_is_what_was_said_whatever_happens_in_the_batch(lag: int) -> None:
    seen = stopped = late = 0
    for seed in range(60):
        for trace, found in played(seed, lag):
            seen += 1
            assert found.error is None
            np.testing.assert_array_equal(found.confidence, confidences(trace.said, trace.watch))
            stop = trace.stop()
            assert found.stop_token == stop
            if trace.forced:
                assert stop is not None
                # Decided `lag` steps later, or sooner where somebody left and all was taken in.
                assert stop + 1 < trace.tokens <= stop + 1 + lag
                stopped += 1
                late += trace.tokens == stop + 1 + lag
            elif stop is not None:  # It ended before it could be stopped.
                assert trace.tokens <= stop + 1 + lag
    assert seen > 800
    assert stopped > 100
    assert late > 50


def test_rows_that_are_nobodys_are_left_alone() -> None:
    rows = Rows(4, 64, 1)
    assert not rows.bind(1, SimpleNamespace(extra_args=None), 0)
    logits = torch.randn(4, VOCABULARY)
    before = logits.clone()
    places = np.arange(4)
    rows.score(logits, places, np.zeros(4, np.bool_))
    assert rows.force(logits, places) is logits
    assert torch.equal(logits, before)


def step(rows: Rows, logits: np.ndarray) -> list[int]:
    """One step; the rows that were forced."""
    before = logits.astype(np.float32)
    places = np.arange(len(logits))
    rows.score(torch.from_numpy(before), places, np.zeros(len(logits), np.bool_))
    after = rows.force(torch.from_numpy(before.copy()), places).numpy()
    return [
        row
        for row in range(len(logits))
        if not np.array_equal(after[row], before[row], equal_nan=True)
    ]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_cannot_be_scored_end_their_trace_alone(bad: float) -> None:
    rows = Rows(3, 64, 1)
    rows.bind(0, params("sound"), 0)
    rows.bind(1, params("bad"), 0)
    rows.bind(2, params("floored", logprob_floor=-9.0), 0)
    logits = np.random.default_rng(0).normal(size=(3, VOCABULARY))
    assert step(rows, logits) == []
    broken = logits.copy()
    broken[1:, : VOCABULARY if bad == bad and bad > 0 else VOCABULARY - 3] = bad
    assert step(rows, broken) == []
    ended = step(rows, logits)
    found = rows.fetch(["sound", "bad", "floored"])
    assert 1 in ended
    assert found["bad"].confidence.shape == (1,)
    assert "token 1 has confidence nan" in str(found["bad"].error)
    assert "set logprob_floor" in str(found["bad"].error)
    assert found["sound"].error is None
    assert len(found["sound"].confidence) == 3
    if bad == -np.inf:  # Which is what a floor is for.
        assert ended == [1]
        assert found["floored"].error is None
        assert len(found["floored"].confidence) == 3


@pytest.mark.parametrize(
    ("asked", "closes"), [({"top_logprobs": 41}, True), ({"stop_token": 40}, False)]
)
def test_tokens_that_the_model_does_not_have_cost_their_trace_alone(
    asked: dict[str, int], closes: bool
) -> None:
    rows = Rows(2, 64, 1)
    rows.bind(0, params("sound"), 0)
    rows.bind(1, params("bad", threshold=1.0, **asked), 0)
    logits = np.random.default_rng(0).normal(size=(2, VOCABULARY))
    for _ in range(4):
        assert step(rows, logits) == ([1] if closes else [])
    found = rows.fetch(["sound", "bad"])
    assert len(found["sound"].confidence) == 4
    assert found["sound"].error is None
    assert "the model has 40 tokens" in str(found["bad"].error)
    assert f"{next(iter(asked))}={next(iter(asked.values()))}" in str(found["bad"].error)


def test_a_threshold_may_come_later_or_go() -> None:
    rows = Rows(3, 64, 1)
    for place, name in enumerate("abc"):
        rows.bind(place, params(name, window=1, threshold=100.0 if name == "c" else None), 0)
    rows.set_thresholds({"a": 100.0, "c": None, "unknown": 1.0})
    logits = np.random.default_rng(0).normal(size=(3, VOCABULARY))
    assert step(rows, logits) == []
    assert step(rows, logits) == [0]
    assert {name: one.stop_token for name, one in rows.fetch("abc").items()} == {
        "a": 0,
        "b": None,
        "c": None,
    }


def test_a_threshold_that_was_set_outlasts_a_preemption_and_decides_nothing_anew() -> None:
    rows = Rows(1, 64, 1)
    rows.bind(0, params("a", window=1), 0)
    logits = np.random.default_rng(0).normal(size=(1, VOCABULARY))
    assert step(rows, logits) == []
    assert step(rows, logits) == []
    rows.release(0)
    rows.set_thresholds({"a": 100.0})
    rows.bind(0, params("a", window=1), 2)
    assert step(rows, logits) == [0]
    assert rows.fetch(["a"])["a"].stop_token == 1  # Which was on its way; the first was decided.


def test_tokens_that_were_generated_elsewhere_are_said() -> None:
    rows = Rows(1, 64, 1)
    rows.bind(0, params("a"), 3)
    found = rows.fetch(["a"])["a"]
    assert "3 tokens had been generated" in str(found.error)
    assert "of which 0 were scored" in str(found.error)


def test_one_that_comes_back_with_fewer_tokens_goes_on_from_those() -> None:
    rows = Rows(1, 64, 1)
    rows.bind(0, params("a"), 0)
    logits = np.random.default_rng(0).normal(size=(4, 1, VOCABULARY))
    for values in logits[:3]:
        step(rows, values)
    rows.release(0)
    rows.bind(0, params("a"), 2)  # The third was in flight, and is generated again.
    step(rows, logits[3])
    expected = confidences([*logits[[0, 1, 3], 0].astype(np.float32)], Watch("a", 5, 3))
    np.testing.assert_array_equal(rows.fetch(["a"])["a"].confidence, expected)


def test_a_name_twice_in_a_batch_belongs_to_the_later() -> None:
    rows = Rows(2, 64, 1)
    rows.bind(0, params("a"), 0)
    logits = np.random.default_rng(0).normal(size=(2, VOCABULARY))
    step(rows, logits)
    rows.bind(1, params("a"), 1)  # A runner that gives it another place, and does not say so.
    step(rows, logits)
    expected = confidences([*logits.astype(np.float32)], Watch("a", 5, 3))
    np.testing.assert_array_equal(rows.fetch(["a"])["a"].confidence, expected)


def test_a_trace_that_is_fetched_while_it_runs_is_forgotten() -> None:
    rows = Rows(1, 64, 1)
    rows.bind(0, params("a"), 0)
    logits = np.random.default_rng(0).normal(size=(1, VOCABULARY))
    step(rows, logits)
    assert len(rows.fetch(["a"])["a"].confidence) == 1
    step(rows, logits)
    rows.release(0)
    assert (len(rows), rows.fetch(["a"])) == (0, {})


def test_nobody_is_waited_for_where_a_place_is_taken_again() -> None:
    rows = Rows(2, 64, 2)
    rows.bind(0, params("a"), 0)
    rows.bind(1, params("b"), 0)
    logits = np.random.default_rng(0).normal(size=(2, VOCABULARY))
    step(rows, logits)
    step(rows, logits)
    rows.bind(1, params("c"), 0)
    assert len(rows._copies) == 2  # Both may be under way yet.
    step(rows, logits)
    found = rows.fetch("abc")
    assert {name: len(one.confidence) for name, one in found.items()} == {"a": 3, "b": 2, "c": 1}


def test_what_nobody_fetches_is_forgotten_in_time() -> None:
    ledger = Ledger(2, 64, most_left=3)
    for number in range(10):
        slot = ledger.open(Watch(f"t{number}", 5, 3), 0)
        ledger.add(np.array([slot]), np.array([float(number)], np.float32))
        ledger.leave(slot)
    found = ledger.fetch(f"t{number}" for number in range(10))
    assert {name: one.confidence.tolist() for name, one in found.items()} == {
        "t7": [7.0],
        "t8": [8.0],
        "t9": [9.0],
    }
    assert len(ledger) == 0


def test_a_trace_that_leaves_keeps_its_slot_until_another_needs_it() -> None:
    ledger = Ledger(2, 64)
    slot = ledger.open(Watch("a", 5, 3), 0)
    ledger.add(np.array([slot]), np.array([1.0], np.float32))
    ledger.leave(slot)
    assert ledger.slot_of("a") is None
    assert ledger.open(Watch("a", 5, 3), 1) == slot
    ledger.add(np.array([slot]), np.array([2.0], np.float32))
    ledger.leave(slot)
    assert {ledger.open(Watch(name, 5, 3), 0) for name in "bc"} == {0, 1}
    assert ledger.fetch("a")["a"].confidence.tolist() == [1.0, 2.0]
    assert len(ledger) == 2


def test_a_pipeline_in_which_halves_take_turns_costs_nothing_a_token() -> None:
    # Requests that are not in a step leave the batch of the V1 runner, and come back in the next.
    length, ledger = 64_000, Ledger(32, 64_001)
    watches = [Watch(f"t{number}", 5, 2048) for number in range(32)]
    slots = [ledger.open(watch, 0) for watch in watches]
    for slot in slots:
        ledger._take(np.full(length, slot), np.full(length, 9.0, np.float32), np.arange(length))
    began = time.perf_counter()
    for _ in range(10):
        for slot in slots:
            ledger.leave(slot)
        slots = [ledger.open(watch, length) for watch in watches]
    assert time.perf_counter() - began < 0.2  # A copy of them all takes longer, of one takes 1 ms.


def test_a_window_that_no_trace_has_any_more_takes_no_memory() -> None:
    ledger = Ledger(2, 64)
    for window in range(1, 50):
        ledger.leave(ledger.open(Watch(f"t{window}", 5, window), 0))
        ledger.fetch([f"t{window}"])
    assert not ledger._scorers


# ---- what is made of it --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Found(np.ones(4, np.float32), None, None), (False, 3, {})),
        # A step that was under way when the trace ended by itself.
        (Found(np.ones(4, np.float32), 3, None), (False, 3, {})),
        (Found(np.ones(3, np.float32), None, "token 3 has confidence nan"), (False, 3, {})),
        # Stopped: one token was forced, or others before it by a budget for thinking.
        (Found(np.ones(2, np.float32), 1, None), (True, 2, {0: 1})),
        (Found(np.ones(1, np.float32), 0, None), (True, 1, {0: 2})),
    ],
)
def test_what_is_behind_the_end_of_a_trace_is_not_its_own(found: Found, expected: Any) -> None:
    seen = []

    class Pretended(Inside):
        def __init__(self) -> None:
            pass

        async def _fetch(self, trace: str) -> Found:
            return found

    def take(step: Step) -> list[int]:
        seen.append((len(step.confidence), dict(step.unscored)))
        return []

    request = Request("name", 0, detokenized=False, inside=True)
    request.tokens.extend([1, 2, 3])
    stopped = asyncio.run(Pretended().hand_over(request, take))
    assert (stopped, *seen[0]) == expected
