"""Steps of vLLM's engine core, through vLLM's own output processor."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", exc_type=ModuleNotFoundError)

from deepconf import DeepThink, Policy, Result
from deepconf._run import Run
from deepconf.engines import VLLM, Signal, Step
from deepconf.engines.vllm._steps import Steps, _decode_arrays_at_once, misfits
from deepconf.errors import EngineDied, EngineError, InvalidInput, RunWarning
from pretended_core import PretendedLLM, output, pretended, rows, settle
from vllm.v1.engine import EngineCoreOutputs, output_processor
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.stats import IterationStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

SIGNAL = Signal(2)


def policy(**changes: Any) -> Policy:
    settings = {"budget": 4, "warmup": 2, "stop": "budget", "window": 2, "tail": 2}
    return Policy.low(**{**settings, "top_logprobs": 2, **changes})


async def thinking(
    engine: VLLM, settings: Policy, **options: Any
) -> tuple[Run, asyncio.Task[Result]]:
    """A run whose first traces are on their way."""
    run = Run(DeepThink(engine, settings, **options)._task, "?")
    task = asyncio.ensure_future(run.think())
    await settle(lambda: len(engine._llm.output_processor.request_states) > 0)
    return run, task


def play(
    *,
    by_step: bool,
    entries: Any = "topk",
    width: int = 2,
    seed: int = 0,
    stats: bool = False,
) -> Result:
    """A whole run, four traces with one to three tokens a step."""
    dice = [np.random.default_rng([seed, trace]) for trace in range(4)]
    llm = PretendedLLM(log_stats=stats)
    engine = pretended(llm, by_step=by_step)

    async def work() -> Result:
        run, task = await thinking(engine, policy(entries=entries), answer=lambda text: text[-1])
        left = {run.request_id(trace): 12 + trace for trace in range(4)}
        iteration = IterationStats() if stats else None
        while not task.done():
            states = llm.output_processor.request_states.values()
            there = [state.external_req_id for state in states]
            step = []
            for name in there:
                own = dice[int(name[-1])]
                count = min(int(own.integers(1, 4)), left[name])
                left[name] -= count
                table = -own.uniform(0, 5, (count, width + 1))
                table[:, 1:].sort(axis=1)
                table[:, 1:] = table[:, :0:-1]
                end = None if left[name] else "STOP"
                step.append(output(name, "x" * (count - 1) + "7", table, end=end))
            llm.outputs(step, iteration)
            for _ in range(20):
                await asyncio.sleep(0)
            await asyncio.sleep(0.002 if not there else 0)
        return task.result()

    return asyncio.run(work())


# ---- the same as vLLM's public interface ---------------------------------------------------------


@pytest.mark.parametrize("entries", ["topk", "returned"])
@pytest.mark.parametrize(("width", "stats"), [(2, False), (5, False), (2, True)])
def test_by_the_step_is_as_by_the_trace(entries: Any, width: int, stats: bool) -> None:
    step, stream = (
        play(by_step=by_step, entries=entries, width=width, stats=stats)
        for by_step in (True, False)
    )
    assert step.threshold == stream.threshold is not None
    assert any(trace.status == "stopped" for trace in step.traces)
    for one, other in zip(step.traces, stream.traces, strict=True):
        assert (one.status, one.stop_token) == (other.status, other.stop_token)
        scored = one.scores.num_tokens  # How many come after a stop is a matter of time.
        assert one.text[: scored - 1] == other.text[: scored - 1]
        np.testing.assert_array_equal(one.confidence[:scored], other.confidence[:scored])
        if one.status == "finished":
            assert (one.num_tokens, one.text) == (other.num_tokens, other.text)
    assert step.vote.ballots == stream.vote.ballots


def collect(
    llm: PretendedLLM, engine: VLLM, feed: Callable[[], Coroutine[Any, Any, None]], **options: Any
) -> tuple[list[Step], Any]:
    """What one request brings, with its end or error."""
    steps: list[Step] = []

    def take(step: Step) -> list[int]:
        steps.append(step)
        return []

    async def work() -> Any:
        request = engine.generate_into(
            take, [1], trace=3, request_id="r", seed=0, signal=SIGNAL, **options
        )
        task = asyncio.ensure_future(request)
        await settle(lambda: "r" in llm.names)
        await feed()
        return (await asyncio.gather(task, return_exceptions=True))[0]

    return steps, asyncio.run(work())


def test_tokens_come_once_and_nothing_is_kept() -> None:
    llm = PretendedLLM()
    engine = pretended(llm)

    async def feed() -> None:
        for tokens in ("ab", "c", "", "d"):
            llm.outputs([output("r", tokens, rows(*map(float, range(len(tokens)))))])
        state = llm.output_processor.request_states["r-internal"]
        assert len(state.logprobs_processor.logprobs) == 0
        assert len(state.detokenizer.token_ids) == 2  # Of the first output.
        llm.outputs([output("r", "e", rows(4.0), end="LENGTH")])

    steps, ending = collect(llm, engine, feed)
    assert [(step.traces, step.confidence.tolist()) for step in steps] == [
        ([3, 3], [0.0, 1.0]),
        ([3], [0.0]),
        ([3], [0.0]),
        ([3], [4.0]),
    ]
    assert (ending.finish_reason, ending.text) == ("length", "abcde")
    assert engine._steps is not None
    assert not engine._steps._requests
    assert not engine._steps._batches


def test_requests_of_others_are_left_to_vllm() -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    llm = PretendedLLM()
    engine = pretended(llm)
    kind = RequestOutputKind.DELTA
    params = SamplingParams(logprobs=2, flat_logprobs=True, detokenize=False, output_kind=kind)
    seen: list[Any] = []

    async def feed() -> None:
        queue = await llm.add_request("other", [1], params)
        llm.outputs([output("r", "a", rows(1.0)), output("other", "b", rows(2.0))])
        seen.append(queue.get_nowait())
        llm.outputs([output("r", "a", rows(1.0), end="STOP")])

    steps, ending = collect(llm, engine, feed)
    assert seen[0].outputs[0].token_ids == [ord("b")]
    assert len(seen[0].outputs[0].logprobs) == 1
    assert (len(steps), ending.text) == (2, "a")  # Without the token that stopped it.


def test_a_token_without_logprobs_is_counted() -> None:
    llm = PretendedLLM()

    async def feed() -> None:
        llm.outputs([output("r", "ab")])
        llm.outputs([output("r", "c", rows(1.0), end="LENGTH")])

    steps, ending = collect(llm, pretended(llm), feed)
    assert [(step.traces, step.unscored) for step in steps] == [([], {3: 2}), ([3], {})]
    assert ending.text == "abc"


def test_tokens_that_came_without_their_logprobs_cost_no_other_request() -> None:
    llm = PretendedLLM()

    async def feed() -> None:
        llm.outputs([output("r", "abc", rows(1.0, 2.0))])  # Three tokens, and two of them scored.
        llm.outputs([output("r", "d", rows(1.0), end="LENGTH")])

    steps, ending = collect(llm, pretended(llm), feed)
    found = [(step.traces, step.confidence.tolist(), step.unscored) for step in steps]
    assert found == [([3, 3], [1.0, 2.0], {3: 1}), ([3], [1.0], {})]
    assert ending.text == "abcd"


def test_statistics_are_vllms() -> None:
    counts = []
    for by_step in (True, False):
        llm = PretendedLLM(log_stats=True)
        stats = IterationStats()

        async def feed(llm: PretendedLLM = llm, stats: IterationStats = stats) -> None:
            for end in (None, None, None, "LENGTH"):
                llm.outputs([output("r", "ab", rows(1.0, 2.0), end=end)], stats)
                await asyncio.sleep(0)

        collect(llm, pretended(llm, by_step=by_step), feed)
        (finished,) = stats.finished_requests
        counts.append((stats.num_generation_tokens, finished.num_generation_tokens))
    assert counts == [(8, 8)] * 2


# ---- ends ----------------------------------------------------------------------------------------


def test_stopped_traces_of_a_step_are_aborted_at_once() -> None:
    llm = PretendedLLM()
    engine = pretended(llm)

    async def work() -> Result:
        run, task = await thinking(engine, policy(budget=6), answer=lambda _: "7")
        name = run.request_id
        for trace in range(2):
            llm.outputs([output(name(trace), "abc", rows(4.0, 4.0, 4.0), end="STOP")])
        await settle(lambda: len(llm.names) == 6)
        step = [output(name(trace), "ab", rows(1.0, 1.0)) for trace in (2, 3, 4)]
        llm.outputs([*step, output(name(5), "ab", rows(9.0, 9.0))])
        assert llm.aborted == [f"{name(trace)}-internal" for trace in (2, 3, 4)]
        # What was on its way is counted, and given to nobody.
        llm.outputs([output(name(3), "xyz", rows(1.0, 1.0, 1.0))])
        llm.outputs([output(name(5), "c", rows(9.0), end="STOP")])
        return await task

    result = asyncio.run(work())
    statuses = [trace.status for trace in result.traces]
    assert statuses == ["finished"] * 2 + ["stopped"] * 3 + ["finished"]
    assert [trace.num_tokens for trace in result.traces] == [3, 3, 2, 5, 2, 3]
    assert result.traces[3].text == "ab"
    assert engine._steps is not None
    assert (engine._steps._aborted, engine._steps._late) == ({}, {})


def test_what_cannot_be_scored_costs_its_trace_only() -> None:
    llm = PretendedLLM()
    engine = pretended(llm)

    async def work() -> Result:
        run, task = await thinking(engine, policy(warmup=4), answer=lambda _: "7")
        names = [run.request_id(trace) for trace in range(4)]
        llm.outputs([output(name, "a", rows(9.0)) for name in names])
        bad = rows(9.0)
        bad[0, 2] = np.nan
        llm.outputs([output(name, "b", bad if name == names[1] else rows(9.0)) for name in names])
        assert llm.aborted == [f"{names[1]}-internal"]
        llm.outputs([output(name, "c", rows(9.0), end="STOP") for name in names])
        return await task

    result = asyncio.run(work())
    assert "1 of 4 traces failed" in result.warnings[0]
    assert "are not finite" in result.warnings[0]
    assert "set logprob_floor" in result.warnings[0]
    assert [trace.status for trace in result.traces] == ["finished", "failed"] + ["finished"] * 2
    failed = result.traces[1]
    assert (failed.num_tokens, failed.confidence.tolist(), failed.text) == (3, [9.0], "")


def test_too_few_logprobs_fail_the_request() -> None:
    llm = PretendedLLM()

    async def feed() -> None:
        llm.outputs([output("r", "a", [[-1.0, -1.0]])])

    _, error = collect(llm, pretended(llm), feed)
    assert isinstance(error, InvalidInput)
    assert "k=2 most likely" in str(error)
    assert llm.aborted == ["r-internal"]


def test_a_dead_engine_reaches_its_runs_at_once() -> None:
    llm = PretendedLLM()
    engine = pretended(llm)

    async def work() -> None:
        run, task = await thinking(engine, policy(warmup=4), answer=lambda _: "7")
        names = [run.request_id(trace) for trace in range(4)]
        llm.outputs([output(names[0], "a", rows(9.0), end="STOP")])
        await settle(lambda: run.records[0].answer is not None)
        llm.errored = True
        llm.output_processor.propagate_error(EngineDeadError())
        await task

    with pytest.raises(EngineDied, match="when 1 of 4 traces had ended") as caught:
        asyncio.run(work())
    assert caught.value.result is not None
    assert caught.value.result.answer == "7"


def test_an_end_that_vllm_calls_an_error() -> None:
    llm = PretendedLLM()

    async def feed() -> None:
        llm.outputs([output("r", "a", rows(1.0), end="ERROR")])

    _, error = collect(llm, pretended(llm), feed)
    assert isinstance(error, EngineError)
    assert "with 'error'" in str(error)


# ---- large runs ----------------------------------------------------------------------------------


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("inside", [False, True])
def test_a_token_takes_sixteen_bytes_at_the_most(inside: bool) -> None:
    traces, steps, part = 64, 1_000, 100
    llm = PretendedLLM()
    engine = pretended(llm, inside=inside)
    confidence = np.tile(np.linspace(1.0, 9.0, part, dtype=np.float32), steps)
    llm.workers["deepconf_fetch"] = lambda names: [
        (name, confidence.tobytes(), None, None) for name in names
    ]
    before = 0
    grown: list[int] = []

    def answer(text: str) -> str:
        grown.append(resident() - before)
        return "7"

    async def work() -> Result:
        nonlocal before
        settings = policy(budget=traces, warmup=traces, window=2_048, tail=2_048)
        _, task = await thinking(engine, settings, answer=answer, keep_confidence=False)
        await settle(lambda: len(llm.names) == traces)
        gc.collect()
        before = resident()
        table = None if inside else rows(*np.linspace(1.0, 9.0, part))
        for step in range(steps):
            end = "STOP" if step == steps - 1 else None
            if end:
                grown.append(resident() - before)
            llm.outputs([output(name, "x" * part, table, end=end) for name in llm.names])
        return await task

    result = asyncio.run(work())
    assert result.tokens.generated == traces * steps * part
    # Scored in the workers, a token is its id until the end.
    assert grown[0] <= (8 if inside else 16) * traces * steps * part
    assert max(grown) <= 16 * traces * steps * part
    assert all(len(trace.text) == steps * part - 1 for trace in result.traces)
    assert all(len(trace.confidence) == 0 for trace in result.traces)
    assert all(trace.scores.num_tokens == steps * part for trace in result.traces)
    with pytest.raises(InvalidInput, match="keep_confidence"):
        result.to_arrow()


def test_thousands_of_questions_leave_nothing_behind() -> None:
    llm = PretendedLLM()
    engine = pretended(llm)
    kept: list[weakref.ref[Run]] = []

    async def one() -> None:
        run = Run(DeepThink(engine, policy(budget=2, warmup=2), answer=lambda _: "7")._task, "?")
        kept.append(weakref.ref(run))
        task = asyncio.ensure_future(run.think())
        names = [run.request_id(trace) for trace in range(2)]
        await settle(lambda: len(run.records) == 2 and names[1] in llm.names)
        llm.outputs([output(name, "ab", rows(9.0, 9.0), end="STOP") for name in names])
        await task
        llm.names.clear()

    async def work() -> int:
        for _ in range(50):
            await one()
        threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
        before = resident()
        for _ in range(2_000):
            await one()
        assert len(asyncio.all_tasks()) == 1
        end = time.monotonic() + 10
        while threading.active_count() > threads and time.monotonic() < end:
            time.sleep(0.01)
        assert threading.active_count() <= threads
        assert len(os.listdir("/proc/self/fd")) <= files
        return resident() - before

    grown = asyncio.run(work())
    gc.collect()
    assert llm.output_processor.request_states == {}
    assert engine._steps is not None
    assert not engine._steps._requests
    assert not engine._steps._batches
    assert sum(run() is not None for run in kept) == 0
    assert grown < 20e6


# ---- what is taken for granted of vLLM -----------------------------------------------------------


@pytest.mark.parametrize("width", [3, 200])  # Small arrays come in the message, large ones beside.
def test_arrays_decode_to_the_same(width: int) -> None:
    encoder, decoder = MsgpackEncoder(), MsgpackDecoder(EngineCoreOutputs)
    table = np.random.default_rng(0).normal(size=(2, width))
    sent = EngineCoreOutputs(outputs=[output("r", "ab", table), output("s", "c")])
    frames = [bytes(frame) for frame in encoder.encode(sent)]
    plain = decoder.decode(frames).outputs
    before = decoder.decoder
    _decode_arrays_at_once(SimpleNamespace(decoder=decoder))
    assert decoder.decoder is not before
    found = decoder.decode(frames).outputs
    assert found[1] == plain[1]
    for one, other in zip(found[0].new_logprobs, plain[0].new_logprobs, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one is None or one.dtype == other.dtype
    _decode_arrays_at_once(SimpleNamespace())  # One that is new to us is left in place.


class Unlike(PretendedLLM):
    """A vLLM whose inside has changed."""

    def __init__(self, change: Callable[[Any], None]) -> None:
        super().__init__()
        change(self.output_processor)


def test_this_vllm_is_as_it_is_taken_to_be() -> None:
    assert misfits(PretendedLLM()) == []


def test_what_has_changed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(processor: Any) -> None:
        processor.process_outputs = lambda outputs: None

    def gone(processor: Any) -> None:
        processor.request_states = []

    (said,) = misfits(Unlike(renamed))
    assert said.startswith("OutputProcessor.process_outputs takes ['outputs'], not ['engine_core")
    assert misfits(Unlike(gone)) == ["OutputProcessor.request_states is no dict"]
    monkeypatch.delattr(output_processor.OutputProcessor, "_update_stats_from_output")
    assert any("_update_stats_from_output" in text for text in misfits(PretendedLLM()))


def test_another_vllm_is_followed_by_its_public_interface() -> None:
    def gone(processor: Any) -> None:
        processor.external_req_ids = None

    engine = pretended(PretendedLLM(), by_step=False)
    engine._llm = Unlike(gone)
    with pytest.warns(RunWarning, match="vLLM .* is new to us .*external_req_ids is no dict"):
        engine._take_steps()
    assert engine._steps is None
    assert not isinstance(engine._llm.output_processor.process_outputs, Steps)
