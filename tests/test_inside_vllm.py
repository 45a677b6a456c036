"""Scoring in the workers of a real vLLM engine."""

from __future__ import annotations

import asyncio
import json
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import TINY
from deepconf import DeepThink, Policy, Result, TraceScorer
from deepconf.engines import VLLM, Signal
from deepconf.engines.vllm import confidences
from deepconf.engines.vllm.inside._watch import Watch
from deepconf.errors import EngineDied, InvalidInput

SETTINGS = json.loads((TINY / "deepconf.json").read_text())
QUESTIONS = [
    json.loads(line)["question"] for line in (TINY / "questions.jsonl").read_text().splitlines()[:3]
]
SHOWN = {name: SETTINGS[name] for name in ("window", "tail", "top_logprobs")}
WAIT = 180


def fetched(engine: VLLM, traces: list[str]) -> dict[str, Any]:
    place = engine._inside
    assert place is not None

    async def fetch() -> dict[str, Any]:
        found = await asyncio.gather(*map(place._fetch, traces))
        return dict(zip(traces, found, strict=True))

    return engine.submit(fetch()).result(WAIT)


def known(engine: VLLM) -> int:
    """Traces that the workers know."""
    assert engine._inside is not None
    return engine.submit(engine._inside.count()).result(WAIT)


def generated(engine: VLLM, requests: list[tuple[Watch | None, dict[str, Any]]]) -> list[Any]:
    """All at once, through vLLM's own interface, with its log-probabilities beside."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    prompt = engine.prepare(QUESTIONS[0])

    async def one(number: int, watch: Watch | None, sampling: dict[str, Any]) -> Any:
        await asyncio.sleep(0.01 * (number % 7))  # So that they come and go at different times.
        params = SamplingParams(
            **{**engine.sampling, **sampling},
            logprobs=20 if watch is None else max(2, watch.top_logprobs),
            flat_logprobs=True,
            extra_args=None if watch is None else watch.as_extra_args(),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        async for output in engine._llm.generate(prompt, params, f"inside-{number}"):
            last = output
        return last.outputs[0]

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(one(i, *request) for i, request in enumerate(requests)))

    return engine.submit(all_of_them()).result(WAIT)


def check(watch: Watch, output: Any, found: Any, lag: int = 1, atol: float = 0.0) -> bool:
    """What was found against vLLM's own log-probabilities of that request; whether it stopped.

    Decided is `lag` steps later, and then a token is forced.
    """
    expected = confidences(output, k=watch.top_logprobs, logprob_floor=watch.logprob_floor)
    values, stop, count = found.confidence, found.stop_token, len(output.token_ids)
    scorer = TraceScorer(window=watch.window, threshold=watch.threshold)
    assert (found.error, stop) == (None, scorer.extend(values))
    forced = len(values) < count
    if forced:
        assert len(values) == count - 1
        assert stop + 1 < count <= stop + 1 + lag
        assert (output.finish_reason, output.token_ids[-1]) == ("stop", watch.stop_token)
    else:
        assert stop is None or count <= stop + 1 + lag
        # A string is found when more is on its way.
        assert isinstance(output.stop_reason, str) or len(values) < count + lag
    n = count - forced
    np.testing.assert_allclose(values[:n], expected[:n], rtol=0, atol=atol)
    return forced


# ---- the numbers ---------------------------------------------------------------------------------

MASKS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"min_tokens": 120},
    {"bad_words": ["7", "="]},
    {"logit_bias": {3: 4.0, 5: -100.0}},
    {"allowed_token_ids": [*range(20)]},
    {"top_k": 3, "top_p": 0.8},
    {"max_tokens": 9},
    {"stop": ["=1"], "detokenize": True},
]


def test_confidences_are_those_of_vllms_log_probabilities(inside_engine: VLLM) -> None:
    eos = inside_engine._tokenizer.eos_token_id
    requests: list[tuple[Watch | None, dict[str, Any]]] = []
    for number in range(60):
        k, window, threshold = [(20, 16, 14.7), (5, 8, 9.0), (10, 16, None)][number % 3]
        floor = [None, -12.0][number % 2]
        watch = Watch(f"w{number}", k, window, floor, threshold, eos)
        sampling = {"seed": number, "detokenize": False, **MASKS[number % len(MASKS)]}
        requests.append((None if number % 11 == 10 else watch, sampling))
    outputs = generated(inside_engine, requests)
    ours = [watch for watch, _ in requests if watch is not None]
    found = fetched(inside_engine, [watch.trace for watch in ours])
    stopped = 0
    for (watch, _), output in zip(requests, outputs, strict=True):
        if watch is not None:
            stopped += check(watch, output, found[watch.trace])
    assert stopped > 5
    assert len({len(output.token_ids) for output in outputs}) > 10
    assert known(inside_engine) == 0


def test_requests_that_make_no_sense_are_refused_alone(inside_engine: VLLM) -> None:
    bad = Watch("bad", 1, 16)
    with pytest.raises(Exception, match="deepconf_top_logprobs=1: must be an integer of at least"):
        generated(inside_engine, [(bad, {"seed": 0})])
    assert known(inside_engine) == 0


# ---- whole runs ----------------------------------------------------------------------------------


def thought(engine: VLLM, policy: Policy, **options: Any) -> list[Result]:
    think = DeepThink(engine, policy, **options)
    return [think.run(question, timeout=WAIT) for question in QUESTIONS]


def both(engine: VLLM, policy: Policy, **options: Any) -> Iterator[tuple[Result, Result]]:
    """The same runs, scored in this process and in the workers."""
    place, engine._inside, engine._wanted = engine._inside, None, "client"
    client = thought(engine, policy, **options)
    engine._inside, engine._wanted = place, "engine"
    return zip(client, thought(engine, policy, **options), strict=True)


@pytest.mark.parametrize("name", ["low", "high", "offline"])
@pytest.mark.parametrize("keep_confidence", [True, False])
def test_runs_are_the_same_wherever_they_are_scored(
    inside_engine: VLLM, name: str, keep_confidence: bool
) -> None:
    online = {} if name == "offline" else {"warmup": 8, "stop": "budget"}
    policy = Policy.preset(name, budget=24, **online, **SHOWN)
    stopped = 0
    for client, engine in both(inside_engine, policy, keep_confidence=keep_confidence):
        assert (engine.answer, engine.threshold) == (client.answer, client.threshold)
        assert engine.vote.ballots == client.vote.ballots
        for one, other in zip(client.traces, engine.traces, strict=True):
            stop = one.stop_token
            assert (other.status, other.stop_token) == (one.status, stop)
            assert (other.answer, other.voted) == (one.answer, one.voted)
            upto = None if stop is None else stop + 1
            np.testing.assert_array_equal(other.confidence[:upto], one.confidence[:upto])
            if stop is None:
                assert (other.text, other.num_tokens) == (one.text, one.num_tokens)
                assert other.scores == one.scores
            else:  # The token that was forced.
                stopped += 1
                assert other.num_tokens == stop + 2
        assert engine.tokens.after_stop == sum(t.status == "stopped" for t in engine.traces)
        assert engine.warnings == client.warnings
    assert (stopped > 0) == (name != "offline")
    assert known(inside_engine) == 0


def test_traces_that_are_aborted_are_known_as_far_as_they_came(
    inside_engine: VLLM, late_tokens: dict[int, int]
) -> None:
    policy = Policy.low(budget=48, warmup=8, consensus=0.6, **SHOWN)
    aborted = 0
    for question in QUESTIONS:
        late_tokens.clear()
        result = DeepThink(inside_engine, policy).run(question, timeout=WAIT)
        for number, trace in enumerate(result.traces):
            if trace.status == "aborted":
                aborted += 1
                assert len(trace.confidence) == trace.num_tokens - late_tokens.get(number, 0)
    assert aborted > 0
    assert known(inside_engine) == 0


def test_a_run_that_is_cut_short_leaves_nothing_behind(inside_engine: VLLM) -> None:
    think = DeepThink(inside_engine, Policy.offline(budget=32, **SHOWN))
    result = think.run(QUESTIONS[0], timeout=0.3)
    assert result.reason == "cancelled"
    assert known(inside_engine) == 0


@pytest.mark.filterwarnings("ignore:none of the:deepconf.errors.RunWarning")
def test_strings_that_stop_are_found_as_ever(inside_engine: VLLM) -> None:
    policy = Policy.offline(budget=8, **SHOWN)
    for client, engine in both(inside_engine, policy, sampling={"stop": ["=1", "+2"]}):
        assert [t.text for t in engine.traces] == [t.text for t in client.traces]
        for one, other in zip(client.traces, engine.traces, strict=True):
            np.testing.assert_array_equal(other.confidence, one.confidence)
    assert known(inside_engine) == 0


@pytest.mark.filterwarnings("ignore:none of the:deepconf.errors.RunWarning")
@pytest.mark.parametrize(
    "sampling",
    [{"skip_special_tokens": False}, {"ignore_eos": True, "stop_token_ids": [4]}, {"stop": ["=1"]}],
)
def test_no_text_has_the_token_that_was_forced(
    inside_engine: VLLM, sampling: dict[str, Any]
) -> None:
    policy = Policy.low(budget=24, warmup=8, stop="budget", **{**SHOWN, "window": 8})
    stopped = 0
    options = {"include_stop_str_in_output": True, **sampling}
    for client, engine in both(inside_engine, policy, sampling=options):
        assert [t.text for t in engine.traces] == [t.text for t in client.traces]
        stopped += sum(t.status == "stopped" for t in engine.traces)
    assert stopped > 0


def test_more_log_probabilities_than_the_engine_returns_can_be_counted(inside_engine: VLLM) -> None:
    policy = Policy.offline(budget=2, **{**SHOWN, "top_logprobs": 25})
    result = DeepThink(inside_engine, policy).run(QUESTIONS[0], timeout=WAIT)
    assert all(len(trace.confidence) == trace.num_tokens for trace in result.traces)


def test_a_callback_that_fails_costs_its_trace_alone(
    inside_engine: VLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = inside_engine._inside
    assert place is not None
    plain = place.hand_over

    async def failing(request: Any, take: Any) -> bool:
        if request.trace == 1:
            raise RuntimeError("broken")
        return await plain(request, take)

    monkeypatch.setattr(place, "hand_over", failing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = DeepThink(inside_engine, Policy.offline(budget=4, **SHOWN)).run(QUESTIONS[0])
    assert [trace.status for trace in result.traces].count("failed") == 1
    assert known(inside_engine) == 0


# ---- what cannot be scored there -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "sampling", "message"),
    [
        ({"entries": "returned"}, {}, "entries='returned': a token is scored before it is sampled"),
        ({"mode": "online"}, {"ignore_eos": True}, "ignore_eos=True: no token of this model ends"),
        ({}, {"structured_outputs": {"regex": "[0-9]+"}}, "structured_outputs: a grammar does not"),
    ],
)
def test_runs_that_cannot_be_scored_there(
    inside_engine: VLLM, policy: Any, sampling: Any, message: str
) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    if "structured_outputs" in sampling:
        regex = StructuredOutputsParams(**sampling["structured_outputs"])
        sampling = {"structured_outputs": regex}
    online = {"mode": "online", "warmup": 2} if "mode" in policy else {}
    settings = Policy.offline(**{"budget": 4, **SHOWN, **policy, **online})
    with pytest.raises(
        InvalidInput, match=f"scoring='engine' is not possible for this run: {message}"
    ):
        DeepThink(inside_engine, settings, sampling=sampling)


def test_sampling_that_makes_no_sense_is_said_first(inside_engine: VLLM) -> None:
    settings = Policy.offline(budget=4, mode="online", warmup=2, **SHOWN)
    with pytest.raises(InvalidInput, match="'int' object is not iterable"):
        DeepThink(inside_engine, settings, sampling={"ignore_eos": True, "stop_token_ids": 5})


def test_a_trace_that_may_not_stop_needs_no_token_that_ends_it(inside_engine: VLLM) -> None:
    policy = Policy.offline(budget=2, **SHOWN)
    sampling = {"ignore_eos": True, "max_tokens": 20}
    think = DeepThink(inside_engine, policy, sampling=sampling, answer=lambda _: "0")
    result = think.run(QUESTIONS[0], timeout=WAIT)
    assert [len(trace.confidence) for trace in result.traces] == [20, 20]


def test_auto_scores_such_runs_here(inside_engine: VLLM) -> None:
    inside_engine._wanted = "auto"
    assert inside_engine.scoring == "engine"
    policy = Policy.offline(budget=2, entries="returned", **SHOWN)
    result = DeepThink(inside_engine, policy).run(QUESTIONS[0], timeout=WAIT)
    assert all(len(trace.confidence) == trace.num_tokens for trace in result.traces)
    assert known(inside_engine) == 0


def test_a_token_of_ones_own_can_end_a_trace(inside_engine: VLLM) -> None:
    inside_engine.check(Signal(10), {"ignore_eos": True, "stop_token_ids": [4]})
    place = inside_engine._inside
    assert place is not None
    asked = place.params("a", Signal(10), {"ignore_eos": True, "stop_token_ids": [4]})
    assert (asked["stop_token_ids"], asked["extra_args"]["deepconf_stop_token"]) == ([4], 4)


@pytest.mark.parametrize("scoring", ["worker", None])
def test_scoring_that_there_is_not(scoring: Any) -> None:
    with pytest.raises(InvalidInput, match=f"scoring={scoring!r}: must be 'client', 'engine' or"):
        VLLM(TINY / "model", scoring=scoring)


def test_an_engine_that_cannot_score_says_so_before_it_starts() -> None:
    began = time.monotonic()
    with pytest.raises(InvalidInput, match=r"^scoring='engine' is not possible here: worker_ext"):
        VLLM(TINY / "model", scoring="engine", worker_extension_cls="some.Extension")
    assert time.monotonic() - began < 30


# ---- a small cache, prompts in parts, a worker that dies -----------------------------------------


def crowded(max_tokens: int, **engine_args: Any) -> VLLM:
    """An engine that reads prompts in parts, and whose cache does not hold all it admits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What vLLM imports warns of itself.
        return VLLM(
            TINY / "model",
            sampling={**SETTINGS["sampling"], "max_tokens": max_tokens},
            scoring="engine",
            enable_chunked_prefill=True,
            enable_prefix_caching=False,
            disable_log_stats=False,
            **engine_args,
        )


def test_preemption_and_prompts_in_parts_and_death() -> None:
    engine = crowded(
        150,
        num_gpu_blocks_override=14,
        max_model_len=256,
        max_num_seqs=24,
        max_num_batched_tokens=32,
    )
    with engine:
        eos = engine._tokenizer.eos_token_id
        watches = [Watch(f"w{i}", 10, 16, None, [None, 14.7][i % 2], eos) for i in range(40)]
        outputs = generated(engine, [(watch, {"detokenize": False}) for watch in watches])
        found = fetched(engine, [watch.trace for watch in watches])
        stopped = [
            check(watch, output, found[watch.trace])
            for watch, output in zip(watches, outputs, strict=True)
        ]
        assert 0 < sum(stopped) < len(watches)
        assert preemptions(engine) > 0
        assert known(engine) == 0
        # Some are finished when the worker is killed.
        policy = Policy.offline(budget=40, concurrency=8, seed=None, **SHOWN)
        ended: list[Any] = []
        (core,) = engine._llm.engine_core.resources.engine_manager.processes

        def kill(trace: Any) -> None:
            ended.append(trace)
            if len(ended) == 5:
                engine_core = psutil.Process(core.pid)
                for worker in engine_core.children() or [engine_core]:
                    worker.kill()

        with pytest.raises(EngineDied) as raised:
            DeepThink(engine, policy, on_trace=kill).run(QUESTIONS[0], timeout=WAIT)
        result = raised.value.result
        assert result is not None
        whole = [trace for trace in result.traces if trace.status == "finished"]
        assert len(whole) >= 5
        assert all(len(trace.confidence) == trace.num_tokens for trace in whole)


def preemptions(engine: VLLM) -> int:
    """How often the scheduler has preempted a request, by vLLM's own metrics."""
    from vllm.v1.metrics.reader import get_metrics_snapshot

    return sum(
        int(metric.value)
        for metric in get_metrics_snapshot()
        if metric.name == "vllm:num_preemptions"
    )
