"""Thinking with confidence on a real vLLM engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY
from deepconf import DeepThink, Policy, Result
from deepconf.answers import boxed
from deepconf.engines import VLLM
from deepconf.errors import Interrupted, InvalidInput, RunWarning, SignalNeverArmed
from test_deepthink import groups, lowest

SHIPPED = [json.loads(line) for line in (TINY / "questions.jsonl").read_text().splitlines()]
QUESTIONS = [line["question"] for line in SHIPPED]
SETTINGS = json.loads((TINY / "deepconf.json").read_text())
SMALL = {name: SETTINGS[name] for name in ("window", "tail", "top_logprobs")}
WAIT = 120
MARGIN = 1e-9  # Of a mean in float64, against one in fixed point.


def check_decisions(result: Result) -> None:
    """Every decision, recomputed from the confidences that the result holds."""
    policy, s = result.policy, result.threshold
    ballots: dict[str, float] = {}
    voters = []
    warm = [lowest(t.confidence, policy.window) for t in result.traces[: policy.warmup]]
    if policy.mode == "online":
        assert s == pytest.approx(np.percentile(warm, 100 * (1 - policy.keep)), abs=MARGIN)
    else:
        s = None
        scores = np.array([bottom(trace.confidence, policy) for trace in result.traces])
        answered = [trace.answer is not None for trace in result.traces]
        threshold = np.percentile(scores[answered], 100 * (1 - policy.keep))
        assert result.threshold == pytest.approx(threshold, abs=MARGIN)
    for i, trace in enumerate(result.traces):
        assert trace.num_tokens == len(trace.confidence)
        if s is not None and i >= policy.warmup:
            below = np.flatnonzero(groups(trace.confidence, policy.window) < s - MARGIN)
            if len(below):
                assert trace.status == "stopped"
                assert trace.stop_token == below[0] + policy.window - 1
                assert not trace.voted
                continue
        assert trace.status == "finished"
        assert trace.stop_token is None
        assert trace.answer == boxed(trace.text)
        if s is not None:
            weight = lowest(trace.confidence, policy.window)
            kept = weight >= s - MARGIN
        else:
            weight = bottom(trace.confidence, policy)
            kept = weight >= threshold - MARGIN
        if trace.answer is not None:
            voters.append((i, trace.answer, weight, kept))
    assert result.vote.fallback == (sum(kept for *_, kept in voters) < policy.min_ballots)
    if not result.vote.fallback:
        voters = [voter for voter in voters if voter[-1]]
    for _, answer, weight, _ in voters:
        ballots[answer] = ballots.get(answer, 0.0) + weight
    assert [trace.trace for trace in result.traces if trace.voted] == [i for i, *_ in voters]
    assert result.vote.ballots == pytest.approx(ballots)
    assert result.answer == max(ballots, key=lambda answer: ballots[answer])


def bottom(confidence: np.ndarray, policy: Policy) -> float:
    means = np.sort(groups(confidence, policy.window))
    return float(means[: max(1, int(policy.bottom * len(means)))].mean())


@pytest.mark.parametrize("preset", ["low", "high", "offline"])
def test_decisions_are_those_of_the_recorded_confidences(tiny_engine: VLLM, preset: str) -> None:
    kind = {} if preset == "offline" else {"warmup": 8, "stop": "budget"}
    policy = Policy.preset(preset, budget=24, seed=1_000, **SMALL, **kind)
    result = DeepThink(tiny_engine, policy).run(QUESTIONS[0])
    check_decisions(result)
    assert result.reason == "budget"
    assert result.tokens.generated == sum(trace.num_tokens for trace in result.traces)
    assert result.tokens.baseline is not None
    stopped = [trace for trace in result.traces if trace.stop_token is not None]
    if preset == "offline":
        assert result.tokens.generated == result.tokens.baseline
        return
    assert stopped
    after = [trace.num_tokens - (trace.stop_token or 0) - 1 for trace in stopped]
    assert sum(after) == result.tokens.after_stop
    print(f"{preset}: tokens after the stop: {sorted(after)}")
    assert np.median(after) <= 8
    for trace in stopped:
        assert len(trace.text) == trace.num_tokens - (trace.text.endswith("}"))
    if preset == "low":
        assert result.tokens.generated < 0.8 * result.tokens.baseline


def test_consensus_aborts_the_rest(tiny_engine: VLLM, late_tokens: dict[int, int]) -> None:
    policy = Policy.offline(
        budget=16, keep=1.0, stop="consensus", consensus=0.01, min_ballots=1, **SMALL
    )
    result = DeepThink(tiny_engine, policy).run(QUESTIONS[0])
    assert tiny_engine._llm.get_num_unfinished_requests() == 0
    assert result.reason == "consensus"
    count = Counter(trace.status for trace in result.traces)
    assert count.keys() == {"finished", "aborted"}
    assert count["aborted"] >= 8
    whole = max(trace.num_tokens for trace in result.traces if trace.status == "finished")
    for number, trace in enumerate(result.traces):
        if trace.status == "aborted":
            assert 0 < trace.num_tokens < whole + 30
            assert len(trace.confidence) == trace.num_tokens - late_tokens.get(number, 0)
            assert len(trace.text) > 0
            assert not trace.voted
    assert result.timing.drain < 5


def test_several_questions_at_once(tiny_engine: VLLM) -> None:
    policy = Policy.high(budget=10, warmup=5, stop="budget", **SMALL)
    think = DeepThink(tiny_engine, policy)

    async def ask() -> list[Result]:
        return await asyncio.gather(*(think.arun(question) for question in QUESTIONS[:5]))

    results = asyncio.run(ask())
    for question, result in zip(QUESTIONS, results, strict=False):
        assert result.question == question
        check_decisions(result)
        text = "".join(trace.text for trace in result.traces)
        found = [sum(text.count(term) for term in q[:-2].split("+")) for q in QUESTIONS[:5]]
        assert QUESTIONS[int(np.argmax(found))] == question
    right = [r.answer == line["answer"] for r, line in zip(results, SHIPPED, strict=False)]
    assert sum(right) >= 3


def test_seeds_repeat_a_run_where_batches_are_the_same(tiny_engine: VLLM) -> None:
    policy = Policy.low(
        budget=5, warmup=3, concurrency=1, seed=77, stop="budget", min_ballots=1, **SMALL
    )
    one, other = (DeepThink(tiny_engine, policy).run(QUESTIONS[1]) for _ in "12")
    assert one.threshold == other.threshold
    assert one.answer == other.answer
    for a, b in zip(one.traces, other.traces, strict=True):
        assert (a.seed, a.status, a.stop_token) == (b.seed, b.status, b.stop_token)
        # How many tokens come after a stop is a matter of time.
        scored = a.scores.num_tokens
        assert scored == b.scores.num_tokens
        assert a.text[: scored - 1] == b.text[: scored - 1] != ""
        np.testing.assert_array_equal(a.confidence[:scored], b.confidence[:scored])
    assert len({trace.text for trace in one.traces}) == 5


@pytest.mark.parametrize("sampling", [{}, {"stop": ["\\boxed"]}])
def test_by_the_step_is_as_by_the_trace(
    tiny_engine: VLLM, monkeypatch: pytest.MonkeyPatch, sampling: dict[str, Any]
) -> None:
    policy = Policy.offline(budget=4, concurrency=1, entries="returned", **SMALL)
    think = DeepThink(tiny_engine, policy, sampling=sampling, answer=lambda _: "7")
    step = think.run(QUESTIONS[1])
    with monkeypatch.context() as patch:
        patch.delattr(VLLM, "generate_into")
        stream = think.run(QUESTIONS[1])
    for one, other in zip(step.traces, stream.traces, strict=True):
        assert one.status == other.status == "finished"
        assert one.text == other.text != ""
        assert ("boxed" in one.text) != bool(sampling)
        np.testing.assert_array_equal(one.confidence, other.confidence)


def test_a_window_larger_than_the_traces_is_said_loudly(tiny_engine: VLLM) -> None:
    policy = Policy.low(budget=4, warmup=3, stop="budget", **SMALL | {"window": 2_048})
    with pytest.warns(SignalNeverArmed, match="no trace reached the window of 2048 tokens"):
        result = DeepThink(tiny_engine, policy).run(QUESTIONS[0])
    assert [trace.status for trace in result.traces] == ["finished"] * 4
    assert all(trace.scores.short for trace in result.traces)


def test_a_timeout_frees_the_engine(tiny_engine: VLLM) -> None:
    think = DeepThink(tiny_engine, Policy.offline(budget=64, keep=1.0, **SMALL))

    async def limited() -> Result:
        return await think.arun(QUESTIONS[2], timeout=0.7)

    result = asyncio.run(limited())
    assert result.reason == "cancelled"
    assert tiny_engine._llm.get_num_unfinished_requests() == 0
    assert sum(trace.status == "aborted" for trace in result.traces) > 32
    assert len(result.traces) == 64


def test_ctrl_c_on_the_main_thread(tiny_engine: VLLM) -> None:
    think = DeepThink(tiny_engine, Policy.offline(budget=64, keep=1.0, **SMALL))
    timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(Interrupted) as caught:
        think.run(QUESTIONS[2])
    timer.join()
    result = caught.value.result
    assert result is not None
    assert result.reason == "cancelled"
    assert tiny_engine._llm.get_num_unfinished_requests() == 0
    again = DeepThink(tiny_engine, Policy.offline(budget=4, **SMALL)).run(QUESTIONS[2])
    assert [trace.status for trace in again.traces] == ["finished"] * 4


def test_one_trace_that_fails_costs_no_other(
    tiny_engine: VLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_request = tiny_engine._llm.add_request

    async def failing(request_id: str, prompt: Any, params: Any) -> Any:
        if params.seed == 2:
            params.allowed_token_ids = [10_000]
        return await add_request(request_id, prompt, params)

    monkeypatch.setattr(tiny_engine._llm, "add_request", failing)
    with pytest.warns(RunWarning, match="1 of 5 traces failed, .*allowed_token_ids"):
        result = DeepThink(tiny_engine, Policy.offline(budget=5, **SMALL)).run(QUESTIONS[0])
    assert Counter(trace.status for trace in result.traces) == {"finished": 4, "failed": 1}
    assert "allowed_token_ids" in (result.traces[2].error or "")


def test_what_the_engine_cannot_give_is_said_at_once(tiny_engine: VLLM) -> None:
    with pytest.raises(InvalidInput, match=r"top_logprobs=21.*max_logprobs=21"):
        DeepThink(tiny_engine, Policy.low(top_logprobs=21))
    think = DeepThink(tiny_engine, Policy.low(budget=16, **SMALL))
    with pytest.raises(InvalidInput, match="has 400 tokens"):
        think.run("1" * 400)


SCRIPT = """
import json, sys
from deepconf import DeepThink, Policy
from deepconf.engines import VLLM

def main():
    settings = json.loads(sys.argv[2])
    sampling = {"max_tokens": 320, "ignore_eos": False}
    with VLLM(sys.argv[1], sampling=sampling) as engine:
        seen = []
        def on_trace(trace):
            seen.append(trace)
            if len(seen) == 8:
                print("ready", flush=True)
        policy = Policy.offline(budget=5_000, keep=1.0, concurrency=32, **settings)
        try:
            DeepThink(engine, policy, on_trace=on_trace).run(sys.argv[3])
        except KeyboardInterrupt as interrupted:
            result = interrupted.result
        print("result", json.dumps(result.summary()), flush=True)
        left = engine._llm.get_num_unfinished_requests()
        again = DeepThink(engine, policy.replace(budget=2)).run(sys.argv[3])
        print("after", json.dumps([left, again.reason]), flush=True)

if __name__ == "__main__":
    main()
"""


def test_ctrl_c_in_a_script_brings_what_is_finished(tmp_path: Path) -> None:
    pytest.importorskip("vllm", exc_type=ModuleNotFoundError)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = [sys.executable, script, TINY / "model", json.dumps(SMALL), QUESTIONS[0]]
    said: dict[str, Any] = {}
    with (
        open(tmp_path / "stderr", "w+") as stderr,
        subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
        ) as process,
    ):
        assert process.stdout is not None
        interrupted = 0.0
        for line in process.stdout:
            kind, _, rest = line.partition(" ")
            if kind.strip() == "ready":
                os.killpg(process.pid, signal.SIGINT)
                interrupted = time.perf_counter()
            elif kind in ("result", "after"):
                said[kind] = json.loads(rest)
                said.setdefault("seconds", time.perf_counter() - interrupted)
        assert process.wait(WAIT) == 0
        stderr.seek(0)
        assert "Traceback" not in stderr.read()
    result = said["result"]
    assert result["reason"] == "cancelled"
    assert said["seconds"] < 10
    count = Counter(trace["status"] for trace in result["traces"])
    assert count["finished"] >= 8
    assert count["aborted"] == 32
    assert count.keys() == {"finished", "aborted"}
    assert result["num_voters"] >= 1
    assert result["answer"] is not None
    assert said["after"] == [0, "budget"]
