"""Thinking with confidence, on recorded traces."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import sys
import threading
import time
import warnings
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import deepconf
import numpy as np
import pytest
from deepconf import DeepThink, Policy, Result, Trace
from deepconf._run import Run
from deepconf.answers import AnswerBook
from deepconf.deepthink import Thinking
from deepconf.engines.base import Chunk
from deepconf.errors import (
    EngineDied,
    EngineError,
    Interrupted,
    InvalidInput,
    InvalidType,
    MissingExtra,
    RunWarning,
    SignalNeverArmed,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_engine import Recorded, RecordedEngine, recorded

SMALL = {"window": 4, "tail": 4}
QUICK, SLOW = 0.0, 30.0

# ---- helpers -------------------------------------------------------------------------------------


def low(**changes: Any) -> Policy:
    return Policy.low(**{"budget": 8, "warmup": 4, "stop": "budget", **SMALL, **changes})


def offline(**changes: Any) -> Policy:
    return Policy.offline(**{"budget": 8, **SMALL, **changes})


def run(
    policy: Policy, traces: Any, *, thinking: dict[str, Any] | None = None, **engine: Any
) -> Result:
    with RecordedEngine(traces, base_seed=policy.seed, **engine) as recording:
        return DeepThink(recording, policy, **thinking or {}).run("?")


def dip(at: int, answer: str = "7", *, tokens: int = 40, level: float = 9.0) -> Recorded:
    """A sure trace that is unsure of one token."""
    values, text, reason = recorded(level, answer, tokens=tokens)
    values[at] = 1.0
    return values, text, reason


def statuses(result: Result) -> list[str]:
    return [trace.status for trace in result.traces]


def groups(confidence: np.ndarray, window: int) -> np.ndarray:
    """Means of complete windows, float64."""
    rows = np.lib.stride_tricks.sliding_window_view(confidence.astype(np.float64), window)
    return rows.mean(axis=1)


def lowest(confidence: np.ndarray, window: int) -> float:
    if len(confidence) == 0:
        return float("nan")
    return float(groups(confidence, min(window, len(confidence))).min())


class Deaf(RecordedEngine):
    """Generates on for a while after it was asked to abort: `abort` takes that many seconds."""

    takes = 0.3

    async def abort(self, request_ids: Sequence[str]) -> None:
        await asyncio.sleep(self.takes)
        await super().abort(request_ids)


# ---- the result ----------------------------------------------------------------------------------


def test_what_a_result_says() -> None:
    policy = low(seed=100, keep=0.5, window=4, tail=2)
    traces = [recorded(5.0 + i, "1/2" if i % 2 else "0.5", tokens=10 + i) for i in range(8)]
    traces[6] = dip(20, "3", level=20.0)
    result = run(policy, traces, chunk=3)
    assert result.question == "?"
    assert result.model == "recorded"
    assert result.policy == policy
    assert result.threshold == 6.5
    assert result.reason == "budget"
    assert result.unarmed is None
    assert result.answer == "0.5"
    assert result.vote.ballots == {"0.5": 7.0 + 8.0 + 9.0 + 10.0 + 12.0, "3": 15.25}
    assert result.vote.num_voters == 6
    assert not result.vote.fallback
    assert [trace.trace for trace in result.traces] == list(range(8))
    assert [trace.seed for trace in result.traces] == list(range(100, 108))
    assert [trace.voted for trace in result.traces] == [False] * 2 + [True] * 6
    assert statuses(result) == ["finished"] * 8
    for trace, (values, text, _) in zip(result.traces, traces, strict=True):
        assert trace.answer == ("3" if trace.trace == 6 else "0.5")
        assert trace.text == text
        assert trace.num_tokens == len(values) == len(trace.confidence)
        assert trace.confidence.dtype == np.float32
        np.testing.assert_array_equal(trace.confidence, values)
        assert trace.scores.lowest_group == lowest(values, 4)
        assert trace.scores.mean == pytest.approx(values.mean(), rel=1e-6)
        assert trace.scores.tail == values[-2:].mean()
        assert trace.stop_token is None
        assert trace.error is None
    assert "'0.5'" in repr(result)
    assert "6 of 8 traces voted" in repr(result)


def test_ctrl_c_gets_through_handlers_that_restart_system_calls() -> None:
    signal.siginterrupt(signal.SIGINT, False)  # As polars' handler does.
    try:
        with RecordedEngine([recorded(9.0, "7")] * 8, delays=SLOW) as recording:
            think = DeepThink(recording, low())
            start = time.perf_counter()
            assert interrupted(lambda: think.run("?"), 0.05).reason == "cancelled"
            assert time.perf_counter() - start < SLOW
    finally:
        signal.siginterrupt(signal.SIGINT, True)


def test_timing() -> None:
    traces = [recorded(9.0, "7")] * 4 + [recorded(9.0, "7")] * 4
    delays = [0.05] * 4 + [0.1] * 4
    online = run(low(), traces, delays=delays).timing
    assert online.warmup >= 0.15
    assert online.sampling >= 0.3
    assert 0 <= online.drain < 5
    assert online.total == online.warmup + online.sampling + online.drain
    assert run(offline(), traces, delays=delays).timing.warmup == 0
    with RecordedEngine(traces, delays=SLOW) as recording:
        think = DeepThink(recording, low())
        cancelled = interrupted(lambda: think.run("?"), 0.05)
    assert 0.04 < cancelled.timing.warmup < 5
    assert cancelled.timing.sampling == 0


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_decision_is_that_of_the_definition(data: Any) -> None:
    window = data.draw(st.integers(1, 6))
    keep = data.draw(st.sampled_from([0.1, 0.5, 0.9]))
    chunk = data.draw(st.integers(1, 9))
    confidence = st.lists(st.integers(64, 640), max_size=24).map(
        lambda numbers: np.array(numbers, np.float32) / 64
    )
    one = st.tuples(confidence, st.sampled_from(["a", "b", None]), st.booleans())
    drawn = data.draw(st.lists(one, min_size=8, max_size=8))
    traces = [
        (values, "" if answer is None else f"\\boxed{{{answer}}}", "finished" if ends else "length")
        for values, answer, ends in drawn
    ]
    policy = low(window=window, keep=keep, min_ballots=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SignalNeverArmed)
        warnings.filterwarnings("ignore", "none of the .* has an answer", RunWarning)
        result = run(policy, traces, chunk=chunk)

    warm = [lowest(v, window) for v, _, ends in drawn[:4] if ends and len(v)]
    if warm:
        assert result.threshold == pytest.approx(np.percentile(warm, 100 * (1 - keep)), rel=1e-12)
    else:
        assert result.threshold is None
    s = result.threshold
    votes: list[tuple[int, str, float, bool]] = []
    for i, (trace, (values, answer, ends)) in enumerate(zip(result.traces, drawn, strict=True)):
        below = []
        if s is not None and i >= 4 and len(values) >= window:
            below = np.flatnonzero(groups(values, window) < s)
        if len(below):
            stop = below[0] + window - 1
            assert (trace.status, trace.stop_token) == ("stopped", stop)
            assert trace.num_tokens == min(len(values), (stop // chunk + 1) * chunk)
            np.testing.assert_array_equal(trace.confidence, values[: trace.num_tokens])
            assert trace.scores.num_tokens == stop + 1
            assert trace.scores.lowest_group == lowest(values[: stop + 1], window)
            continue
        assert (trace.status, trace.stop_token) == ("finished" if ends else "length", None)
        assert trace.answer == answer
        np.testing.assert_array_equal(trace.confidence, values)
        if ends and answer is not None and len(values):
            weight = lowest(values, window)
            votes.append((i, answer, weight, s is None or weight >= s))
    fallback = sum(kept for *_, kept in votes) < 2
    if not fallback:
        votes = [vote for vote in votes if vote[-1]]
    ballots: dict[str, float] = {}
    for _, answer, weight, _ in votes:
        ballots[answer] = ballots.get(answer, 0.0) + weight
    assert [trace.trace for trace in result.traces if trace.voted] == [i for i, *_ in votes]
    assert result.vote.ballots == pytest.approx(ballots)
    assert result.vote.num_voters == len(votes)
    most = max(ballots.values(), default=None)
    assert result.answer == next((a for a, weight in ballots.items() if weight == most), None)
    generated = [trace.num_tokens for trace in result.traces]
    assert result.tokens.generated == sum(generated)
    assert result.tokens.warmup == sum(generated[:4])


def test_a_run_can_be_repeated() -> None:
    random = np.random.default_rng(5)
    answers = ["0.5", "1/2", ".50", r"\frac12", "3"]
    traces = [
        (random.gamma(4.0, 2.0, 50).astype(np.float32), f"\\boxed{{{answers[i % 5]}}}", "finished")
        for i in range(32)
    ]
    policy = low(budget=32, warmup=8, keep=0.9, concurrency=5)
    runs = [run(policy, traces).summary() for _ in range(4)]
    for summary in runs:
        del summary["seconds"]
    assert runs[0]["reason"] == "budget"
    assert runs[1:] == runs[:1] * 3


# ---- tokens --------------------------------------------------------------------------------------


def test_every_token_counts() -> None:
    traces = [recorded(9.0, "7", tokens=20)] * 3 + [recorded(9.0, "7", tokens=32, reason="length")]
    traces += [dip(at, tokens=100) for at in (9, 21, 99)] + [recorded(9.0, "7", tokens=60)]
    result = run(low(), traces, chunk=8)
    stopped = ["stopped"] * 3
    assert statuses(result) == ["finished"] * 3 + ["length", *stopped, "finished"]
    assert [trace.stop_token for trace in result.traces[4:]] == [9, 21, 99, None]
    generated = [20, 20, 20, 32, 16, 24, 100, 60]
    assert [trace.num_tokens for trace in result.traces] == generated
    tokens = result.tokens
    assert tokens.generated == sum(generated)
    assert tokens.warmup == 92
    assert tokens.after_stop == 6 + 2 + 0
    assert tokens.baseline == 8 * 92 / 4
    assert tokens.saved == tokens.baseline - tokens.generated
    assert tokens.compared_with == (
        "the budget of 8 traces at 23.0 tokens each, the mean of the 4 warmup traces that ran to "
        "their end"
    )


def test_offline_is_compared_with_itself() -> None:
    tokens = run(offline(), [recorded(9.0, "7", tokens=10 + i) for i in range(8)]).tokens
    assert tokens.baseline == tokens.generated == sum(range(10, 18))
    assert (tokens.warmup, tokens.after_stop, tokens.saved) == (0, 0, 0)
    assert "the 8 traces that ran to their end" in tokens.compared_with


def test_without_a_whole_trace_nothing_was_saved_for_sure() -> None:
    traces = [recorded(9.0, "7", reason="failed")] * 4 + [recorded(9.0, "7")] * 4
    with (
        pytest.warns(SignalNeverArmed, match="none of the 4 warmup traces ended by itself"),
        pytest.warns(RunWarning, match="4 of 8 traces failed"),
    ):
        tokens = run(low(), traces).tokens
    assert tokens.baseline is None
    assert tokens.saved is None
    assert tokens.compared_with == "nothing: 4 of 8 traces failed"
    traces = [recorded(9.0, "7", reason="length")] * 4 + [recorded(9.0, "7")] * 4
    traces[:4] = [(np.empty(0), "", "finished")] * 4
    with pytest.warns(SignalNeverArmed):
        tokens = run(low(), traces).tokens
    assert tokens.saved is not None


# ---- how a run ends ------------------------------------------------------------------------------


def test_consensus_aborts_the_rest() -> None:
    traces = [recorded(9.0, "7", tokens=16)] * 8
    with RecordedEngine(traces, delays=[QUICK] * 6 + [SLOW] * 2) as recording:
        result = DeepThink(recording, low(stop="consensus", warmup=5, min_ballots=6)).run("?")
        assert recording.running == 0
    assert (result.reason, result.answer) == ("consensus", "7")
    assert statuses(result) == ["finished"] * 6 + ["aborted"] * 2
    assert [name.rsplit("-", 1)[1] for name in recording.aborted] == ["6", "7"]
    assert [trace.voted for trace in result.traces] == [True] * 6 + [False] * 2
    assert result.tokens.generated == 6 * 16
    assert result.timing.total < SLOW / 2


def test_consensus_in_the_warmup_launches_nothing_more() -> None:
    with RecordedEngine([recorded(9.0, "7")] * 8) as recording:
        result = DeepThink(recording, low(stop="consensus")).run("?")
        assert recording.aborted == []
    assert (result.reason, len(result.traces)) == ("consensus", 4)
    assert result.tokens.baseline == 8 * 24
    assert result.tokens.saved == 4 * 24


def test_certain_ends_when_nothing_can_change() -> None:
    traces = [recorded(9.0, "7")] * 5 + [recorded(9.0, "8")] * 3
    delays = [QUICK] * 5 + [SLOW] * 3
    policy = offline(keep=1.0, weight="majority", stop="certain")
    result = run(policy, traces, delays=delays)
    assert (result.reason, result.answer) == ("certain", "7")
    assert statuses(result) == ["finished"] * 5 + ["aborted"] * 3


def test_tokens_that_come_after_the_abort_count() -> None:
    traces = [recorded(9.0, "7", tokens=4)] * 4 + [recorded(9.0, "8", tokens=400)] * 4
    with Deaf(traces, chunk=4, delays=[QUICK] * 4 + [0.01] * 4) as recording:
        result = DeepThink(recording, offline(stop="consensus", min_ballots=4, keep=1.0)).run("?")
    assert statuses(result) == ["finished"] * 4 + ["aborted"] * 4
    assert result.tokens.generated == sum(len(trace.confidence) for trace in result.traces)
    assert all(4 < trace.num_tokens < 400 for trace in result.traces[4:])
    assert result.timing.drain >= Deaf.takes / 2


@pytest.mark.parametrize("concurrency", [1, 3, 8, 20])
def test_budget_and_concurrency_are_respected(concurrency: int) -> None:
    with RecordedEngine([recorded(9.0, "7")] * 99) as recording:
        result = DeepThink(recording, offline(concurrency=concurrency)).run("?")
        assert recording.most_running == min(concurrency, 8)
    assert len(result.traces) == 8


@pytest.mark.parametrize("preset", Policy.presets())
def test_every_preset_runs(preset: str) -> None:
    kind = {} if preset == "offline" else {"warmup": 4}
    policy = Policy.preset(preset, budget=12, **SMALL, **kind)
    traces = [recorded(5.0 + 0.1 * i, "7") for i in range(10)] + [dip(5), dip(9)]
    result = run(policy, traces)
    assert result.answer == "7"
    assert result.reason in ("budget", "consensus")
    assert result.threshold is not None
    json.dumps(result.summary(), allow_nan=False)


def test_traces_shorter_than_the_window_are_said_loudly() -> None:
    with pytest.warns(SignalNeverArmed, match="window of 50 tokens .the longest has 24.") as seen:
        result = run(low(window=50), [recorded(9.0, "7")] * 8)
    assert [warning.filename for warning in seen] == [__file__]
    assert result.unarmed == str(seen[0].message)
    assert all(trace.scores.short for trace in result.traces)
    assert result.answer == "7"


def test_the_warning_is_of_the_line_that_asked() -> None:
    with RecordedEngine([recorded(9.0, "7")] * 8) as recording:
        think = DeepThink(recording, low(window=50))
        with pytest.warns(SignalNeverArmed) as seen:
            think.run("?")
    assert [warning.filename for warning in seen] == [__file__]


# ---- what goes wrong -----------------------------------------------------------------------------


def test_a_trace_that_fails_costs_no_other() -> None:
    traces = [recorded(9.0, "7")] * 8
    traces[1] = traces[6] = recorded(9.0, "8", tokens=20, reason="failed")
    with pytest.warns(RunWarning, match="2 of 8 traces failed, the first with: request .*-1 was"):
        result = run(low(), traces, chunk=8)
    assert Counter(statuses(result)) == {"finished": 6, "failed": 2}
    assert (result.reason, result.answer) == ("budget", "7")
    assert result.vote.num_voters == 6
    assert result.tokens.saved is None
    assert result.tokens.compared_with == "nothing: 2 of 8 traces failed"
    for trace in (result.traces[1], result.traces[6]):
        assert trace.error is not None
        assert "was recorded as failed" in trace.error
        assert (trace.answer, trace.num_tokens, trace.voted) == (None, 16, False)
    assert result.tokens.generated == 6 * 24 + 2 * 16


def test_when_all_fail_there_is_no_result() -> None:
    with pytest.raises(EngineError, match=r"every trace failed, the first with: request .*-0 was"):
        run(low(), [recorded(9.0, "7", reason="failed")] * 8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e6])
def test_a_confidence_that_cannot_be_costs_its_trace_only(bad: float) -> None:
    traces = [recorded(9.0, "7", tokens=24) for _ in range(8)]
    traces[2][0][13] = traces[7][0][13] = bad
    with pytest.warns(RunWarning, match="2 of 8 traces failed, the first with: .*trace 2"):
        result = run(low(), traces, chunk=4)
    assert Counter(statuses(result)) == {"finished": 6, "failed": 2}
    for trace in (result.traces[2], result.traces[7]):
        assert trace.error is not None
        assert re.search(rf"trace {trace.trace}\b.* 13\b", trace.error)
        assert trace.num_tokens == 16
        np.testing.assert_array_equal(trace.confidence, np.full(12, 9.0))
    assert result.answer == "7"
    assert result.tokens.generated == 6 * 24 + 2 * 16
    assert result.to_arrow().num_rows == 8


def test_a_confidence_that_cannot_be_after_the_abort_costs_nothing() -> None:
    traces = [recorded(9.0, "7", tokens=4)] * 4 + [recorded(9.0, "8", tokens=160) for _ in "1234"]
    for values, *_ in traces[4:6]:
        values[-1] = np.nan
    with Deaf(traces, chunk=4, delays=[QUICK] * 4 + [0.01] * 4) as recording:
        recording.takes = 1.5
        result = DeepThink(recording, offline(stop="consensus", min_ballots=4, keep=1.0)).run("?")
    assert statuses(result) == ["finished"] * 4 + ["aborted"] * 4
    assert result.answer == "7"
    assert all(np.isnan(trace.scores.mean) for trace in result.traces[4:6])
    assert [trace.scores.mean for trace in result.traces[6:]] == [9.0, 9.0]
    json.dumps(result.summary(), allow_nan=False)


def test_an_extractor_that_raises_costs_that_answer_only() -> None:
    def extract(text: str) -> str:
        if "13" in text:
            raise KeyError("unlucky")
        return text.rsplit("{", 1)[1].rstrip("}")

    traces = [recorded(9.0, "13" if i in (1, 5) else "7") for i in range(8)]
    with pytest.warns(RuntimeWarning, match=r"could not be extracted: KeyError\('unlucky'\)"):
        result = run(low(), traces, thinking={"answer": extract})
    assert statuses(result) == ["finished"] * 8
    assert result.answer == "7"
    assert result.vote.num_voters == 6
    for trace in (result.traces[1], result.traces[5]):
        assert trace.answer is None
        assert trace.error == "the answer could not be extracted: KeyError('unlucky')"


def test_an_extractor_that_returns_something_else_is_said_loudly() -> None:
    with (
        pytest.warns(RuntimeWarning, match="the answer extractor returned 5: must be a str"),
        pytest.warns(RuntimeWarning, match="none of the 8 traces that ran to their end has an"),
    ):
        result = run(low(), [recorded(9.0, "7")] * 8, thinking={"answer": lambda _: 5})
    assert statuses(result) == ["finished"] * 8
    assert result.answer is None
    assert result.vote.num_voters == 0


def test_a_callback_that_raises_costs_nothing() -> None:
    called: list[str] = []

    def on_trace(trace: Trace) -> None:
        called.append(trace.status)
        raise RuntimeError(f"number {len(called)}")

    with pytest.warns(
        RuntimeWarning, match="on_trace failed, the first time with: .*number 1"
    ) as w:
        result = run(low(), [recorded(9.0, "7")] * 8, thinking={"on_trace": on_trace})
    assert len(w) == 1
    assert called == statuses(result) == ["finished"] * 8
    assert result.answer == "7"


def test_a_callback_hears_of_every_trace() -> None:
    traces = [recorded(9.0, "7")] * 4 + [dip(9), recorded(9.0, "7", reason="failed")]
    traces += [recorded(9.0, "7", reason="length"), recorded(9.0, None)]
    called: list[Trace] = []
    with pytest.warns(RunWarning, match="1 of 8 traces failed"):
        result = run(low(), traces, thinking={"on_trace": called.append})
    assert Counter(trace.status for trace in called) == Counter(statuses(result))
    assert {trace.status for trace in called} == {"finished", "stopped", "failed", "length"}
    for trace in called:
        whole = result.traces[trace.trace]
        assert (trace.answer, trace.num_tokens, trace.text) == (
            whole.answer,
            whole.num_tokens,
            whole.text,
        )
        assert repr(trace.scores) == repr(whole.scores)
        np.testing.assert_array_equal(trace.confidence, whole.confidence)


def test_an_abort_that_fails_costs_nothing() -> None:
    class Refusing(RecordedEngine):
        async def abort(self, request_ids: Sequence[str]) -> None:
            raise EngineError("no")

    traces = [recorded(9.0, "7")] * 4 + [dip(9)] * 4
    with Refusing(traces) as recording:
        result = DeepThink(recording, low()).run("?")
    assert statuses(result) == ["finished"] * 4 + ["stopped"] * 4
    assert [trace.num_tokens for trace in result.traces[4:]] == [40] * 4


def test_an_engine_that_forgets_to_say_why_is_a_failure_of_the_trace() -> None:
    class Silent(RecordedEngine):
        async def stream(self, *args: Any, **options: Any) -> AsyncIterator[Chunk]:
            async for chunk in super().stream(*args, **options):
                if chunk.finish_reason is None:
                    yield chunk

    with (
        Silent([recorded(9.0, "7")] * 8) as recording,
        pytest.raises(EngineError, match="ended trace 0 without saying why"),
    ):
        DeepThink(recording, low()).run("?")


def test_whatever_an_engine_raises_costs_one_trace() -> None:
    class Net(RecordedEngine):
        async def stream(self, *args: Any, **options: Any) -> AsyncIterator[Chunk]:
            async for chunk in super().stream(*args, **options):
                if options["seed"] == 2:
                    raise ConnectionError("read timed out")
                yield chunk

    with (
        Net([recorded(9.0, "7")] * 8) as recording,
        pytest.warns(RunWarning, match=r"1 of 8 traces failed, .*ConnectionError\('read timed out"),
    ):
        result = DeepThink(recording, low()).run("?")
    assert statuses(result) == ["finished"] * 2 + ["failed"] + ["finished"] * 5
    assert result.answer == "7"


class Odd(RecordedEngine):
    """Trace 2 goes wrong in a way of its own."""

    how = ""

    async def stream(self, *args: Any, **options: Any) -> AsyncIterator[Chunk]:
        async for chunk in super().stream(*args, **options):
            if options["seed"] != 2 or chunk.finish_reason is None:
                yield chunk
            elif self.how == "an unknown end":
                yield Chunk(chunk.confidence, chunk.num_tokens, "", "stop")  # type: ignore[arg-type]
            elif self.how == "a cancellation":
                raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("how", "says"),
    [("an unknown end", "finish_reason='stop' of trace 2"), ("a cancellation", "CancelledError")],
)
@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 cannot tell who was cancelled")
def test_odd_ends_cost_their_trace_only(how: str, says: str) -> None:
    with Odd([recorded(9.0, "7")] * 8) as recording:
        recording.how = how
        think = DeepThink(recording, low())
        with pytest.warns(RunWarning, match=says):
            result = think.run("?")
    assert Counter(statuses(result)) == {"finished": 7, "failed": 1}


def test_an_answer_that_is_no_text_costs_its_trace_only() -> None:
    traces = [recorded(9.0, "\ud83d" if i == 3 else "7") for i in range(8)]
    with pytest.warns(RunWarning, match="could not be extracted: UnicodeEncodeError"):
        result = run(low(), traces)
    assert (result.answer, result.vote.num_voters) == ("7", 7)


def test_an_engine_that_never_rests_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Restless(RecordedEngine):
        async def abort(self, request_ids: Sequence[str]) -> None:
            await asyncio.sleep(3_600)

    monkeypatch.setattr("deepconf._run._REST", 0.5)
    traces = [recorded(9.0, "7", tokens=8)] * 4 + [recorded(9.0, "8", tokens=400)] * 4
    with Restless(traces, delays=[QUICK] * 4 + [SLOW] * 4) as recording:
        think = DeepThink(recording, offline(keep=1.0))
        with pytest.warns(RunWarning, match="did not end what it was asked to abort"):
            result = think.run("?", timeout=0.5)
    assert statuses(result) == ["finished"] * 4 + ["aborted"] * 4
    assert (result.reason, result.answer) == ("cancelled", "7")


@pytest.mark.parametrize(
    ("timeout", "error"), [("5", InvalidType), (True, InvalidType), (float("nan"), InvalidInput)]
)
def test_a_timeout_that_is_none_starts_nothing(timeout: Any, error: type[Exception]) -> None:
    with RecordedEngine([recorded(9.0, "7")] * 8) as recording:
        think = DeepThink(recording, low())
        with pytest.raises(error, match="timeout="):
            think.run("?", timeout=timeout)
        with pytest.raises(error, match="timeout="):
            asyncio.run(think.arun("?", timeout=timeout))
        assert not recording.started


def test_a_run_is_freed_without_the_garbage_collector() -> None:
    def extract(text: str) -> str:
        raise KeyError("no")

    gc.collect()
    gc.disable()
    try:
        with RecordedEngine([recorded(9.0, "7")] * 8) as recording:
            think = DeepThink(recording, low(), answer=extract)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                thinking = think.start("?")
                thinking.result()
            kept = weakref.ref(thinking._run)
            del thinking
            end = time.monotonic() + 5  # The loop lets go of it a moment later.
            while kept() is not None and time.monotonic() < end:
                time.sleep(0.01)
            assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("concurrency", [None, 2])
def test_a_dead_engine_is_no_thrifty_run(concurrency: int | None) -> None:
    traces = [recorded(9.0, "7")] * 20 + [recorded(9.0, "7", reason="died")] * 44
    with RecordedEngine(traces, delays=[QUICK] * 20 + [0.05] * 44) as recording:
        think = DeepThink(recording, offline(budget=64, concurrency=concurrency))
        with pytest.raises(EngineDied, match=r"when 20 of 64 traces had ended: .* dead") as caught:
            think.run("?")
    result = caught.value.result
    assert result is not None
    assert (result.reason, result.answer, result.tokens.saved) == ("engine_died", "7", None)
    assert result.vote.num_voters >= 3
    count = Counter(statuses(result))
    assert count["finished"] == 20
    # Nothing was launched once it was dead.
    assert len(result.traces) == (64 if concurrency is None else 22)


def test_an_engine_that_dies_at_once_leaves_nothing() -> None:
    traces = [recorded(9.0, "7", reason="died")] * 8
    with pytest.raises(EngineDied, match="when 0 of 8 traces had ended") as caught:
        run(low(), traces)
    assert caught.value.result is None


def test_an_engine_closed_meanwhile_is_an_engine_error() -> None:
    class Closing(RecordedEngine):
        def cancel_all(self) -> None:
            for task in asyncio.all_tasks(self._loop):
                task.cancel()

    with Closing([recorded(9.0, "7")] * 8, delays=SLOW) as recording:
        think = DeepThink(recording, low())
        for ask in (think.run, lambda question: asyncio.run(think.arun(question))):
            timer = threading.Timer(
                0.1, recording._loop.call_soon_threadsafe, (recording.cancel_all,)
            )
            timer.start()
            with pytest.raises(EngineError, match="closed before it had answered"):
                ask("?")
    with pytest.raises(EngineError, match="the engine is closed"):
        think.run("?")


@pytest.mark.parametrize("policy", ["low", None, {"budget": 8}, Policy])
def test_what_is_no_policy(policy: Any) -> None:
    with (
        RecordedEngine([]) as recording,
        pytest.raises(InvalidType, match=r"must be a deepconf\.Policy"),
    ):
        DeepThink(recording, policy)


def test_settings_are_checked_before_anything_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    with RecordedEngine([], max_logprobs=10) as recording:
        with pytest.raises(InvalidInput, match="top_logprobs=20: 10 were recorded"):
            DeepThink(recording, low())
        policy = low(top_logprobs=10)
        with pytest.raises(InvalidInput, match="answer='box': must be"):
            DeepThink(recording, policy, answer="box")
        with pytest.raises(InvalidType, match="answer=7: must be"):
            DeepThink(recording, policy, answer=7)
        monkeypatch.setattr("deepconf.answers._has_algebra", lambda: False)
        with pytest.raises(MissingExtra, match="math-verify"):
            DeepThink(recording, policy, math=True)


def test_a_question_that_does_not_fit_is_said_by_run() -> None:
    with RecordedEngine({"1?": []}) as recording:
        think = DeepThink(recording, low())
        with pytest.raises(InvalidInput, match="nothing was recorded for '2\\?'"):
            think.run("2?")
        with pytest.raises(InvalidInput, match="nothing was recorded for '3\\?'"):
            asyncio.run(think.arun("3?"))


# ---- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("math", "ballots"),
    [(True, [r"\sqrt{4}"]), (False, [r"\sqrt{4}", "2"])],
)
def test_answers_that_are_equal_share_a_ballot(math: bool, ballots: list[str]) -> None:
    traces = [recorded(9.0, answer) for answer in (r"\sqrt{4}", "2", "2.0", "$2$")] * 2
    result = run(low(concurrency=1), traces, thinking={"math": math})
    assert set(result.vote.voters) == set(ballots)
    assert {trace.answer for trace in result.traces} == set(ballots)


def test_a_run_without_answers_says_what_was_looked_for() -> None:
    says = r"none of the 8 traces .* looked for .boxed.* ends with 'no idea'"
    with pytest.warns(RunWarning, match=says) as seen:
        result = run(low(), [recorded(9.0, None)] * 8)
    assert (result.answer, result.warnings) == (None, (str(seen[0].message),))
    with pytest.warns(RunWarning, match="the extractor given as answer= found none"):
        run(low(), [recorded(9.0, "7")] * 8, thinking={"answer": lambda _: None})


def test_the_first_trace_to_end_gives_the_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    canonical = AnswerBook.canonical

    def slow_at_first(book: AnswerBook, answer: str | None) -> str | None:
        time.sleep(0.2 if answer == "0.50" else 0.0)
        return canonical(book, answer)

    monkeypatch.setattr(AnswerBook, "canonical", slow_at_first)
    traces = [recorded(9.0, answer) for answer in ("0.50", "1/2", "1/2", ".5")]
    result = run(offline(budget=4, keep=1.0), traces)
    assert [trace.answer for trace in result.traces] == ["0.50"] * 4


def test_other_ways_to_find_an_answer() -> None:
    traces = [(np.full(24, 9.0), f"Answer: {i % 2}. \\boxed{{3}}", "finished") for i in range(7)]
    result = run(offline(budget=7, keep=1.0), traces, thinking={"answer": r"regex:Answer: (\d)"})
    assert result.vote.voters == {"0": 4, "1": 3}


# ---- cancelling ----------------------------------------------------------------------------------


def interrupted(work: Callable[[], Result], *after: float) -> Result:
    """Ctrl-C after so many seconds each, and what is finished by then."""
    timers = [threading.Timer(wait, os.kill, (os.getpid(), signal.SIGINT)) for wait in after]
    for timer in timers:
        timer.start()
    try:
        with pytest.raises(Interrupted) as caught:
            work()
    finally:
        for timer in timers:
            timer.cancel()
            timer.join()
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.result is not None
    return caught.value.result


@pytest.fixture
def half_done() -> Iterator[RecordedEngine]:
    """Three traces end at once, the others would take minutes."""
    traces = [recorded(9.0, "7", tokens=16)] * 3 + [recorded(9.0, "8", tokens=400)] * 5
    with RecordedEngine(traces, delays=[QUICK] * 3 + [SLOW] * 5) as recording:
        yield recording


def check_half_done(result: Result, recording: RecordedEngine) -> None:
    assert (result.reason, result.answer) == ("cancelled", "7")
    assert statuses(result) == ["finished"] * 3 + ["aborted"] * 5
    assert result.vote.num_voters == 3
    assert result.tokens.generated == 3 * 16
    assert result.unarmed is None
    assert len(recording.aborted) == 5
    assert recording.running == 0


def at_the_third(act: Callable[[], object]) -> Callable[[Trace], None]:
    """An `on_trace` that acts when the third trace has ended."""
    ended: list[Trace] = []

    def on_trace(trace: Trace) -> None:
        ended.append(trace)
        if len(ended) == 3:
            act()

    return on_trace


@pytest.mark.parametrize("policy", [offline(keep=1.0), low(warmup=8, window=100)])
def test_ctrl_c_brings_what_is_finished(half_done: RecordedEngine, policy: Policy) -> None:
    press = at_the_third(lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted) as caught:
        DeepThink(half_done, policy, on_trace=press).run("?")
    assert caught.value.result is not None
    check_half_done(caught.value.result, half_done)


def test_ctrl_c_before_there_is_a_handle_brings_what_is_finished(
    half_done: RecordedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = half_done.submit

    def lingering(work: Any) -> Any:
        future = submit(work)
        if work.__name__ == "think":  # It runs, and whoever waits for it does not yet.
            time.sleep(5)
        return future

    monkeypatch.setattr(half_done, "submit", lingering)
    press = at_the_third(lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted) as caught:
        DeepThink(half_done, offline(keep=1.0), on_trace=press).run("?")
    assert caught.value.result is not None
    check_half_done(caught.value.result, half_done)


def test_one_ctrl_c_ends_a_loop_of_questions(half_done: RecordedEngine) -> None:
    press = at_the_third(lambda: os.kill(os.getpid(), signal.SIGINT))
    think = DeepThink(half_done, offline(keep=1.0), on_trace=press)

    def loop() -> None:
        for _ in range(3):
            think.run("?")

    with pytest.raises(KeyboardInterrupt):
        loop()
    assert sum(half_done.started.values()) == 1


def test_whatever_interrupts_the_wait_aborts_the_run(half_done: RecordedEngine) -> None:
    class Alarm(Exception):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Alarm):
            DeepThink(half_done, offline(keep=1.0)).run("?")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert half_done.running == 0
    assert len(half_done.aborted) == 5


def test_a_second_ctrl_c_does_not_wait() -> None:
    with Deaf([recorded(9.0, "7", tokens=400)] * 8, delays=SLOW) as recording:
        recording.takes = 2.0
        started = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            interrupted(lambda: DeepThink(recording, low()).run("?"), 0.2, 0.5)
        assert time.perf_counter() - started < 2.0
        while recording.running:
            time.sleep(0.01)


def test_a_cancelled_task_is_cancelled_and_the_handle_has_what_is_finished(
    half_done: RecordedEngine,
) -> None:
    async def cancel() -> Thinking:
        third = asyncio.Event()
        loop = asyncio.get_running_loop()
        on_trace = at_the_third(lambda: loop.call_soon_threadsafe(third.set))
        thinking = DeepThink(half_done, offline(keep=1.0), on_trace=on_trace).start("?")

        async def wait() -> Result:
            return await thinking

        task = asyncio.ensure_future(wait())
        await third.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return thinking

    thinking = asyncio.run(cancel())
    assert thinking.done()
    check_half_done(thinking.result(), half_done)


def test_cancelling_a_handle_gives_what_is_finished(half_done: RecordedEngine) -> None:
    third = threading.Event()
    think = DeepThink(half_done, offline(keep=1.0), on_trace=at_the_third(third.set))
    thinking = think.start("?")
    with pytest.raises(TimeoutError):
        thinking.result(0.01)
    assert third.wait(10)
    thinking.cancel()
    check_half_done(thinking.result(10), half_done)
    thinking.cancel()
    assert thinking.result() is thinking.result()


def test_a_timeout_gives_what_is_finished(half_done: RecordedEngine) -> None:
    think = DeepThink(half_done, offline(keep=1.0))
    check_half_done(think.run("?", timeout=1.0), half_done)
    half_done.aborted.clear()
    check_half_done(asyncio.run(think.arun("?", timeout=1.0)), half_done)


def test_a_timeout_that_is_not_reached_changes_nothing() -> None:
    with RecordedEngine([recorded(9.0, "7")] * 8) as recording:
        think = DeepThink(recording, low())
        assert think.run("?", timeout=60.0).reason == "budget"
        assert asyncio.run(think.arun("?", timeout=60.0)).reason == "budget"


@pytest.mark.skipif(not hasattr(asyncio, "timeout"), reason="new in Python 3.11")
def test_asyncio_timeout_gets_through_and_frees_the_engine(half_done: RecordedEngine) -> None:
    async def limited() -> None:
        async with asyncio.timeout(1.0):
            await DeepThink(half_done, offline(keep=1.0)).arun("?")

    with pytest.raises(TimeoutError):
        asyncio.run(limited())
    assert half_done.running == 0
    assert len(half_done.aborted) == 5


def test_ctrl_c_ends_an_event_loop_over_questions(half_done: RecordedEngine) -> None:
    press = at_the_third(lambda: os.kill(os.getpid(), signal.SIGINT))
    think = DeepThink(half_done, offline(keep=1.0), on_trace=press)

    async def main() -> None:
        for question in "123":
            await think.arun(question)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert sum(half_done.started.values()) == 1
    assert half_done.running == 0


def test_cancelling_one_question_leaves_the_others() -> None:
    traces = {"slow?": [recorded(9.0, "7")] * 8, "quick?": [recorded(9.0, "8")] * 8}
    with RecordedEngine(traces, delays=0.05) as recording:
        think = DeepThink(recording, low())

        async def both() -> list[Any]:
            tasks = [asyncio.ensure_future(think.arun(question)) for question in traces]
            await asyncio.sleep(0.02)
            tasks[0].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

        cancelled, other = asyncio.run(both())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert (other.reason, other.answer) == ("budget", "8")


# ---- warnings ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_warnings_as_errors_carry_the_result() -> None:
    with RecordedEngine([recorded(9.0, "7")] * 8) as recording:
        with pytest.raises(SignalNeverArmed) as caught:
            DeepThink(recording, low(window=50)).run("?")
        assert caught.value.result is not None
        assert caught.value.result.answer == "7"
        assert caught.value.result.warnings == (str(caught.value),)


def test_stops_that_lag_more_and_more_are_warned_of() -> None:
    traces = [recorded(9.0, "7")] * 4 + [dip(9, tokens=20 + 10 * i) for i in range(32)]
    policy = low(budget=36, concurrency=1)

    class Numb(RecordedEngine):
        async def abort(self, request_ids: Sequence[str]) -> None:
            """Comes too late for all of them."""

    with (
        Numb(traces) as recording,
        pytest.warns(RunWarning, match="stops take effect late, and later and later: 45 tokens"),
    ):
        result = DeepThink(recording, policy).run("?")
    assert "285 after each of the last" in result.warnings[0]


def test_tokens_that_come_when_a_stream_is_over_count() -> None:
    traces = [recorded(9.0, "7")] * 4 + [dip(9, tokens=400)] * 4
    with RecordedEngine(traces, delays=0.001) as recording:
        think = DeepThink(recording, low())
        number = int(think.start("?").result().traces[0].trace)
        plain = think.run("?")
        name = recording.aborted[-1].rsplit("-", 1)[0].rsplit("-", 1)
        recording.late[f"{name[0]}-{int(name[1]) + 1}-5"] = 7
        result = think.run("?")
    assert number == 0
    late = [b.num_tokens - a.num_tokens for a, b in zip(plain.traces, result.traces, strict=True)]
    assert late == [0] * 5 + [7, 0, 0]
    assert result.tokens.generated == plain.tokens.generated + 7
    assert result.tokens.after_stop == plain.tokens.after_stop + 7
    assert recording.late == {}


# ---- slow code of the user's ---------------------------------------------------------------------


def test_an_extractor_that_hangs_costs_its_trace_and_no_other() -> None:
    release = threading.Event()

    def extract(text: str) -> str:
        if "13" in text:
            release.wait(60)
        return "7"

    traces = [recorded(9.0, "13" if i == 2 else "7") for i in range(8)]
    with pytest.warns(RunWarning, match="extracting it takes too long"):
        result = run(low(), traces, thinking={"answer": extract, "answer_limit": 0.3})
    release.set()
    assert statuses(result) == ["finished"] * 8
    assert [trace.answer for trace in result.traces] == ["7"] * 2 + [None] + ["7"] * 5
    assert result.timing.total < 30


def test_a_slow_extractor_does_not_hold_up_the_engine() -> None:
    longest = 0.0

    def extract(text: str) -> str:
        time.sleep(1.5)
        return "7"

    traces = [recorded(9.0, "7", tokens=8)] * 3
    with RecordedEngine(traces, delays=0.001) as recording:

        async def beat() -> None:
            nonlocal longest
            while True:
                before = time.perf_counter()
                await asyncio.sleep(0.005)
                longest = max(longest, time.perf_counter() - before)

        beating = recording.submit(beat())
        result = DeepThink(recording, offline(budget=3), answer=extract).run("?")
        beating.cancel()
    assert longest < 1.4
    assert result.vote.ballots["7"] > 0
    assert {trace.answer for trace in result.traces} == {"7"}


def test_ctrl_c_while_answers_are_compared_keeps_every_trace_that_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    canonical, hurry = AnswerBook.canonical, AnswerBook.hurry
    hurried = threading.Event()

    def slow(book: AnswerBook, answer: str | None) -> str | None:
        hurried.wait(0.5)
        return canonical(book, answer)

    def hurrying(book: AnswerBook) -> None:
        hurried.set()
        hurry(book)

    monkeypatch.setattr(AnswerBook, "canonical", slow)
    monkeypatch.setattr(AnswerBook, "hurry", hurrying)
    traces = [recorded(9.0, "7")] * 40 + [recorded(9.0, "8", tokens=400)] * 8
    with RecordedEngine(traces, delays=[QUICK] * 40 + [SLOW] * 8) as recording:
        think = DeepThink(recording, offline(budget=48, keep=1.0))
        began = time.perf_counter()
        result = interrupted(lambda: think.run("?"), 1.0)
    assert time.perf_counter() - began < 10
    assert statuses(result) == ["finished"] * 40 + ["aborted"] * 8
    assert (result.answer, result.vote.num_voters) == ("7", 40)


def test_a_slow_callback_holds_nothing_up() -> None:
    seen: list[int] = []

    def on_trace(trace: Trace) -> None:
        time.sleep(0.5)
        seen.append(trace.trace)

    result = run(low(), [recorded(9.0, "7")] * 8, thinking={"on_trace": on_trace})
    assert sorted(seen) == list(range(8))
    assert result.timing.total < 3.5


def test_sampling_and_seeds_are_of_the_run() -> None:
    with RecordedEngine([recorded(9.0, "7")] * 8) as recording:
        plain = DeepThink(recording, low()).run("?")
        warm = DeepThink(recording, low(seed=None), sampling={"temperature": 0.5}).run("?")
    assert recording.sampled == [None] * 8 + [{"temperature": 0.5}] * 8
    assert [trace.seed for trace in plain.traces] == list(range(8))
    assert [trace.seed for trace in warm.traces] == [None] * 8
    assert warm.answer == "7"
    json.dumps(warm.summary(), allow_nan=False)


def test_traces_cancelled_before_they_began_end_too() -> None:
    called: list[Trace] = []
    with RecordedEngine([recorded(9.0, "7")] * 8) as recording:
        task = DeepThink(recording, offline(), on_trace=called.append)._task

        async def at_once() -> Result:
            question = Run(task, "?")
            thinking = asyncio.ensure_future(question.think())
            await asyncio.sleep(0)
            await question.cancel()
            return await thinking

        result = recording.submit(at_once()).result(10)
        assert recording.most_running == 0
    assert statuses(result) == [trace.status for trace in called] == ["aborted"] * 8
    assert (result.reason, result.answer, result.tokens.generated) == ("cancelled", None, 0)


# ---- many questions ------------------------------------------------------------------------------


def test_many_questions_on_one_engine() -> None:
    random = np.random.default_rng(3)
    traces = {
        f"{q}?": [
            (
                random.gamma(4.0, 2.0, 40).astype(np.float32),
                f"\\boxed{{{q + (i % 3 == 0)}}}",
                "finished",
            )
            for i in range(8)
        ]
        for q in range(20)
    }
    with RecordedEngine(traces, delays=0.002) as recording:
        think = DeepThink(recording, low(keep=0.9))

        async def ask() -> list[Result]:
            return await asyncio.gather(*(think.arun(question) for question in traces))

        together = asyncio.run(ask())
        assert recording.most_running > 3 * 8
        apart = [think.run(question) for question in traces]
    for question, one, other in zip(traces, together, apart, strict=True):
        assert one.question == question
        summary, expected = one.summary(), other.summary()
        del summary["seconds"], expected["seconds"]
        assert summary == expected
        assert one.answer is not None
        assert abs(int(one.answer) - int(question[:-1])) <= 1


def test_one_question_that_fails_leaves_the_others() -> None:
    traces = {
        "good?": [recorded(9.0, "7")] * 8,
        "bad?": [recorded(9.0, "7", reason="failed")] * 8,
    }
    with RecordedEngine(traces) as recording:
        think = DeepThink(recording, low())

        async def ask() -> list[Any]:
            asked = (think.arun(question) for question in ("good?", "bad?", "ugly?"))
            return await asyncio.gather(*asked, return_exceptions=True)

        good, bad, ugly = asyncio.run(ask())
    assert good.answer == "7"
    assert isinstance(bad, EngineError)
    assert isinstance(ugly, InvalidInput)


def test_run_works_inside_a_running_event_loop() -> None:
    async def notebook() -> Result:
        return run(low(), [recorded(9.0, "7")] * 8)

    assert asyncio.run(notebook()).answer == "7"


# ---- what can be kept ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed() -> Result:
    """One of everything."""
    traces = [recorded(9.0, "7")] * 4 + [dip(9), recorded(9.0, "7", reason="failed")]
    traces += [recorded(9.0, None, reason="length"), (np.empty(0), "", "finished")]
    messages = [MappingProxyType({"role": "user", "content": "?"})]
    with (
        RecordedEngine(traces, base_seed=3) as recording,
        pytest.warns(RunWarning, match="1 of 8 traces failed"),
    ):
        return DeepThink(recording, low(seed=3, top_logprobs=5)).run(messages)


def test_a_summary_is_json(mixed: Result) -> None:
    summary = json.loads(json.dumps(mixed.summary(), allow_nan=False))
    assert summary == mixed.summary()
    assert summary["question"] == [{"role": "user", "content": "?"}]
    assert summary["answer"] == "7"
    assert summary["ballots"] == {"7": 36.0}
    assert summary["tokens"]["generated"] == mixed.tokens.generated
    assert summary["seconds"]["total"] == mixed.timing.total
    assert [trace["status"] for trace in summary["traces"]] == statuses(mixed)
    assert summary["traces"][4]["stop_token"] == 9
    assert summary["traces"][7]["mean"] is None
    assert Policy(**summary["policy"]) == mixed.policy


def test_traces_go_through_parquet(mixed: Result, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    correct = [True, None, False, True, *np.array([True, False]), None, None]
    table = mixed.to_arrow("q-1", correct)
    pq.write_table(table, tmp_path / "traces.parquet", compression="zstd")
    back = pq.read_table(tmp_path / "traces.parquet")
    assert back.equals(table)
    assert back.schema.metadata == table.schema.metadata
    assert [(field.name, str(field.type)) for field in back.schema] == [
        ("question_id", "string"),
        ("trace", "int32"),
        ("answer", "string"),
        ("status", "string"),
        ("num_tokens", "int32"),
        ("confidence", "list<element: float>"),
        ("text", "string"),
        ("correct", "bool"),
        ("seed", "int64"),
        ("stop_token", "int64"),
        ("voted", "bool"),
        ("error", "string"),
        ("gold", "string"),
        ("finish_order", "int32"),
    ]
    rows = back.to_pylist()
    for row, trace in zip(rows, mixed.traces, strict=True):
        assert row["question_id"] == "q-1"
        names = ("trace", "answer", "status", "num_tokens", "text")
        for name in (*names, "seed", "stop_token", "voted", "error"):
            assert row[name] == getattr(trace, name)
        assert row["confidence"] == trace.confidence.tolist()
    assert [row["correct"] for row in rows] == [True, None, False, True, True, False, None, None]
    assert set(back["status"].to_pylist()) == {"finished", "stopped", "failed", "length"}
    column = back["confidence"].combine_chunks()
    assert isinstance(column, pa.ListArray)
    scores = deepconf.score(column, **SMALL)
    ended = [trace for trace in mixed.traces if trace.stop_token is None]
    np.testing.assert_array_equal(
        scores.lowest_group[[trace.trace for trace in ended]],
        [trace.scores.lowest_group for trace in ended],
    )


def test_the_settings_are_in_the_metadata(mixed: Result) -> None:
    found = {
        key.decode(): value.decode() for key, value in mixed.to_arrow().schema.metadata.items()
    }
    assert found["model"] == "recorded"
    assert (found["k"], found["window"], found["seed"]) == ("5", "4", "3")
    assert Policy(**json.loads(found["policy"])) == mixed.policy
    versions = json.loads(found["versions"])
    assert versions["deepconf"] == deepconf.__version__
    assert {"python", "numpy"} <= versions.keys()


def test_correct_must_be_of_the_same_length(mixed: Result) -> None:
    with pytest.raises(InvalidInput, match="correct has 7 entries and there are 8 traces"):
        mixed.to_arrow(correct=[True] * 7)
