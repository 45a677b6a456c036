"""A little chaos in every run of the tests; `make soak` has more (see chaos.py)."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import chaos
import pytest
from conftest import TINY
from deepconf import DeepThink, Policy, Result, Trace
from deepconf.deepthink import Thinking
from deepconf.engines import VLLM
from endurance import tasks
from recorded_engine import RecordedEngine, recorded
from test_deepthink_vllm import QUESTIONS, SMALL


@pytest.mark.parametrize("strikes", [("kill", "engine", "term"), ("disk", "hup", "int")])
def test_an_evaluation_that_is_struck_carries_on(strikes: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("vllm", exc_type=ModuleNotFoundError)
    assert TINY == chaos.TINY
    out = tmp_path / "run.jsonl"
    dice = random.Random(str(strikes))
    for strike in strikes:
        chaos.play(out, strike, dice)
        chaos.damage(out, dice)
    chaos.finish(out)


def figures(result: Result) -> None:
    """What a result says, reckoned anew from its traces."""
    tokens = result.tokens
    assert tokens.generated == sum(trace.num_tokens for trace in result.traces)
    after = [t.num_tokens - t.stop_token - 1 for t in result.traces if t.stop_token is not None]
    assert tokens.after_stop == sum(after)
    assert result.vote.num_voters == sum(trace.voted for trace in result.traces)
    ballots: dict[str, float] = {}
    for trace in result.traces:
        assert len(trace.confidence) <= trace.num_tokens
        assert (trace.error is None) or trace.status == "failed" or trace.answer is None
        if trace.voted:
            assert trace.answer is not None
            assert trace.status == "finished"
            weight = trace.scores.lowest_group
            ballots[trace.answer] = ballots.get(trace.answer, 0.0) + weight
    assert result.vote.ballots == pytest.approx(ballots)
    assert result.answer == max(ballots, key=lambda a: ballots[a], default=None)
    if result.reason in ("cancelled", "engine_died"):
        assert tokens.saved is None


@pytest.mark.parametrize("seed", range(3))
def test_runs_that_are_disturbed_leave_nothing_behind(tiny_engine: VLLM, seed: int) -> None:
    dice = random.Random(seed)

    def extract(text: str) -> str | None:
        if dice.random() < 0.1:
            raise KeyError("unlucky")
        time.sleep(dice.choice([0.0, 0.0, 0.02]))
        return text[text.find("{") + 1 : -1] if "{" in text else None

    def on_trace(trace: Trace) -> None:
        time.sleep(dice.choice([0.0, 0.0, 0.05]))
        if dice.random() < 0.1:
            raise ValueError("a callback that fails")

    def begin() -> Thinking:
        budget = dice.randint(4, 16)
        concurrency = dice.choice([None, 3])
        policy = Policy.high(budget=budget, warmup=4, concurrency=concurrency, **SMALL)
        think = DeepThink(tiny_engine, policy, answer=extract, on_trace=on_trace, math=False)
        return think.start(dice.choice(QUESTIONS))

    async def disturbed() -> list[Any]:
        handles = [begin() for _ in range(6)]

        async def one(handle: Thinking) -> Any:
            end = dice.choice(["wait", "wait", "cancel", "task", "task"])
            if end == "wait":
                return await handle
            if end == "cancel":
                asyncio.get_running_loop().call_later(dice.uniform(0, 2), handle.cancel)
                return await handle
            with pytest.raises((asyncio.TimeoutError, TimeoutError)):
                await asyncio.wait_for(_awaited(handle), dice.uniform(0.01, 0.5))
            return await asyncio.to_thread(handle.result, 30)

        return await asyncio.gather(*(one(handle) for handle in handles))

    threads, files = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Extractors and callbacks that fail are warned of.
        results = asyncio.run(disturbed())
    for result in results:
        figures(result)
    assert tiny_engine._llm.get_num_unfinished_requests() == 0
    assert tiny_engine.submit(tasks()).result(10) == []
    gc.collect()
    end = time.monotonic() + 10
    while len(left := _ours(threads)) and time.monotonic() < end:
        time.sleep(0.05)
    assert left == []
    assert len(os.listdir("/proc/self/fd")) <= files + 2


async def _awaited(handle: Thinking) -> Result:
    return await handle


def _ours(before: set[threading.Thread]) -> list[str]:
    return [t.name for t in threading.enumerate() if t not in before and "deepconf" in t.name]


def test_helpers_that_are_killed_while_they_compare_cost_no_trace() -> None:
    pytest.importorskip("math_verify")
    me = chaos.psutil.Process()
    killed = 0

    def on_trace(trace: Trace) -> None:
        nonlocal killed
        for helper in chaos.engines(me.children(), "_helpers"):
            helper.kill()
            killed += 1

    traces = [recorded(9.0, rf"\sqrt{{{3 * i + 2}}}+x^{i % 7 + 2}") for i in range(24)]
    policy = Policy.offline(budget=24, window=4, tail=4, keep=1.0)
    with RecordedEngine(traces) as recording, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Comparisons that came to nothing are warned of.
        result = DeepThink(recording, policy, math=True, on_trace=on_trace).run("?")
    assert killed > 0
    assert [trace.status for trace in result.traces] == ["finished"] * 24
    assert len(result.vote.ballots) == result.vote.num_voters == 24
