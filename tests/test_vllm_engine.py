"""The vLLM engine, on a real one."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import os
import shutil
import signal as signals
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import TINY
from deepconf.engines import VLLM, Chunk, Signal
from deepconf.engines.base import as_messages, result_of
from deepconf.engines.vllm import confidences, settings_of
from deepconf.engines.vllm._arguments import FREE, check_sampling
from deepconf.engines.vllm._checks import check_hub, main_guard
from deepconf.engines.vllm._prompts import Prompts
from deepconf.errors import (
    DeepConfError,
    EngineError,
    InvalidInput,
    InvalidType,
    MissingExtra,
)

QUESTION = json.loads((TINY / "questions.jsonl").read_text().splitlines()[0])["question"]
WAIT = 120

# ---- helpers -------------------------------------------------------------------------------------


async def follow(
    engine: VLLM,
    seed: int | None = 0,
    signal: Signal = Signal(10),  # noqa: B008
    *,
    name: str | None = None,
    each: Callable[[int, Chunk], Awaitable[None]] | None = None,
    sampling: dict[str, Any] | None = None,
) -> list[Chunk]:
    """All chunks of one trace."""
    chunks: list[Chunk] = []
    stream = engine.stream(
        engine.prepare(QUESTION),
        request_id=name or f"seed-{seed}",
        seed=seed,
        signal=signal,
        sampling=sampling,
    )
    async for chunk in stream:
        chunks.append(chunk)
        if each is not None:
            await each(len(chunks), chunk)
    return chunks


def run(engine: VLLM, *args: Any, **options: Any) -> list[Chunk]:
    return engine.submit(follow(engine, *args, **options)).result(WAIT)


def values(chunks: list[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.confidence for chunk in chunks])


def text(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def tokens(chunks: list[Chunk]) -> int:
    return sum(chunk.num_tokens for chunk in chunks)


def raw(engine: VLLM, seed: int, k: int, *, flat: bool = False) -> Any:
    """The finished request, as vLLM itself gives it."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    async def generate() -> Any:
        params = SamplingParams(
            **engine.sampling,
            seed=seed,
            logprobs=k,
            flat_logprobs=flat,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        async for output in engine._llm.generate(QUESTION, params, f"raw-{seed}-{k}-{flat}"):
            last = output
        return last

    return engine.submit(generate()).result(WAIT)


def oracle(rows: Any, k: int, entries: str) -> np.ndarray:
    """Token confidences of vLLM's dicts, by the definition."""

    def counted(row: Any) -> list[float]:
        return [e.logprob for e in row.values() if entries == "returned" or e.rank <= k]

    return np.array([-np.mean(counted(row)) for row in rows])


# ---- generating ----------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", ["topk", "returned"])
@pytest.mark.parametrize("k", [2, 3, 10])
def test_confidences_are_those_of_the_dict_form(tiny_engine: VLLM, k: int, entries: Any) -> None:
    seed = 7
    chunks = run(tiny_engine, seed, Signal(k, entries))
    whole = raw(tiny_engine, seed, k).outputs[0]
    assert text(chunks) == whole.text
    assert tokens(chunks) == len(whole.token_ids) == len(values(chunks))
    assert values(chunks).dtype == np.float32
    np.testing.assert_allclose(values(chunks), oracle(whole.logprobs, k, entries), rtol=1e-5)


def test_the_sampled_token_counts_only_when_asked(tiny_engine: VLLM) -> None:
    rows = raw(tiny_engine, 7, 2).outputs[0].logprobs
    outside = np.array([len(row) == 3 for row in rows])
    assert 0 < outside.sum() < len(rows)
    top = values(run(tiny_engine, 7, Signal(2, "topk")))
    returned = values(run(tiny_engine, 7, Signal(2, "returned")))
    np.testing.assert_array_equal(top != returned, outside)


def test_a_chunk_has_what_is_new(tiny_engine: VLLM) -> None:
    chunks = run(tiny_engine)
    assert len(chunks) > 20
    assert all(len(chunk.confidence) == chunk.num_tokens for chunk in chunks)
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "finished"
    assert text(chunks[:-1]) == ""
    assert "\\boxed{" in text(chunks)
    assert "<eos>" not in text(chunks)


def test_chunks_merged_for_a_slow_reader_lose_nothing(tiny_engine: VLLM) -> None:
    async def slowly(_: int, __: Chunk) -> None:
        await asyncio.sleep(0.1)

    for entries in ("topk", "returned"):
        signal = Signal(2, entries)
        merged = run(tiny_engine, 3, signal, each=slowly)
        single = run(tiny_engine, 3, signal)
        assert max(chunk.num_tokens for chunk in merged) > 1
        assert text(merged) == text(single)
        np.testing.assert_array_equal(values(merged), values(single))


def test_seeds_repeat_and_differ(tiny_engine: VLLM) -> None:
    first, again, other = (run(tiny_engine, seed) for seed in (11, 11, 12))
    assert text(first) == text(again) != text(other)
    np.testing.assert_array_equal(values(first), values(again))


def test_many_traces_at_once(tiny_engine: VLLM) -> None:
    async def all_of_them() -> list[list[Chunk]]:
        return await asyncio.gather(*(follow(tiny_engine, seed) for seed in range(64)))

    traces = tiny_engine.submit(all_of_them()).result(WAIT)
    assert {chunks[-1].finish_reason for chunks in traces} <= {"finished", "length"}
    assert len({text(chunks) for chunks in traces}) > 32
    for chunks in traces:
        assert len(text(chunks)) == tokens(chunks) - (chunks[-1].finish_reason == "finished")


def test_a_prompt_is_not_used_up(tiny_engine: VLLM) -> None:
    prompt = tiny_engine.prepare(QUESTION)
    assert len(prompt["prompt_token_ids"]) == len(QUESTION)
    before = json.dumps(prompt)
    run(tiny_engine)
    assert json.dumps(prompt) == before


def test_length(tiny_engine: VLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = text(run(tiny_engine))
    monkeypatch.setitem(tiny_engine._sampling, "max_tokens", 9)
    chunks = run(tiny_engine)
    assert (tokens(chunks), chunks[-1].finish_reason) == (9, "length")
    assert text(chunks) == whole[:9]


def test_stop_strings(tiny_engine: VLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tiny_engine)
    monkeypatch.setitem(tiny_engine._sampling, "stop", ["\\boxed"])
    chunks = run(tiny_engine)
    assert chunks[-1].finish_reason == "finished"
    assert text(chunks) == text(whole).split("\\boxed")[0]
    assert tokens(chunks) == len(text(chunks)) + len("\\boxed") == len(values(chunks))
    np.testing.assert_array_equal(values(chunks), values(whole)[: tokens(chunks)])


@pytest.mark.parametrize("included", [False, True])
def test_a_stop_token_is_no_text(
    tiny_engine: VLLM, monkeypatch: pytest.MonkeyPatch, included: bool
) -> None:
    whole = text(run(tiny_engine))
    equals = tiny_engine._tokenizer.encode("=")
    monkeypatch.setitem(tiny_engine._sampling, "stop_token_ids", equals)
    monkeypatch.setitem(tiny_engine._sampling, "include_stop_str_in_output", included)
    chunks = run(tiny_engine)
    place = whole.index("=")
    assert text(chunks) == whole[: place + included]
    assert (tokens(chunks), chunks[-1].finish_reason) == (place + 1, "finished")


def test_repetition_is_a_trace_cut_short(
    tiny_engine: VLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.sampling_params import RepetitionDetectionParams

    zeros = tiny_engine._tokenizer.encode("0")
    monkeypatch.setitem(tiny_engine._sampling, "allowed_token_ids", zeros)
    detection = RepetitionDetectionParams(max_pattern_size=1, min_count=4)
    monkeypatch.setitem(tiny_engine._sampling, "repetition_detection", detection)
    chunks = run(tiny_engine)
    assert (text(chunks), chunks[-1].finish_reason) == ("0000", "length")


def test_masked_sampling_leaves_raw_logprobs(
    tiny_engine: VLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = values(run(tiny_engine))
    monkeypatch.setitem(
        tiny_engine._sampling, "allowed_token_ids", tiny_engine._tokenizer.encode("0")
    )
    monkeypatch.setitem(tiny_engine._sampling, "max_tokens", 1)
    np.testing.assert_allclose(values(run(tiny_engine)), free[:1], rtol=1e-5)


def test_an_error_in_the_engine_is_an_engine_error(
    tiny_engine: VLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiny_engine._sampling, "allowed_token_ids", [10_000])
    with pytest.raises(EngineError, match=r"seed-0.*allowed_token_ids") as raised:
        run(tiny_engine)
    assert raised.value.__cause__ is not None


def test_an_unknown_end_is_an_engine_error(
    tiny_engine: VLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def generate(*_: Any) -> Any:
        yield SimpleNamespace(outputs=[SimpleNamespace(finish_reason="error", token_ids=[])])

    monkeypatch.setattr(tiny_engine._llm, "generate", generate)
    with pytest.raises(EngineError, match="'error'"):
        run(tiny_engine)


# ---- aborting ------------------------------------------------------------------------------------


def test_abort_midway(tiny_engine: VLLM) -> None:
    async def abort(count: int, _: Chunk) -> None:
        if count == 5:
            await tiny_engine.abort(["midway"])

    whole = run(tiny_engine)
    chunks = run(tiny_engine, name="midway", each=abort)
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "aborted"
    assert 5 <= tokens(chunks) < tokens(whole) // 2
    assert text(chunks) == text(whole)[: tokens(chunks)]
    np.testing.assert_array_equal(values(chunks), values(whole)[: len(values(chunks))])


def test_abort_right_behind_the_launch(tiny_engine: VLLM) -> None:
    async def abort_at_once() -> list[Chunk]:
        task = asyncio.ensure_future(follow(tiny_engine, name="at-once"))
        await asyncio.sleep(0)  # The stream has begun, nothing has come of it.
        await tiny_engine.abort(["at-once"])
        return await task

    chunks = tiny_engine.submit(abort_at_once()).result(WAIT)
    assert (tokens(chunks), text(chunks), chunks[-1].finish_reason) == (0, "", "aborted")


def test_abort_of_many_and_of_none(tiny_engine: VLLM) -> None:
    names = [f"many-{i}" for i in range(32)]

    async def abort_all() -> list[list[Chunk]]:
        tasks = [
            asyncio.ensure_future(follow(tiny_engine, i, name=name)) for i, name in enumerate(names)
        ]
        await asyncio.sleep(0.5)
        await tiny_engine.abort(["unknown", *names])
        await tiny_engine.abort(names)
        await tiny_engine.abort([])
        return await asyncio.gather(*tasks)

    traces = tiny_engine.submit(abort_all()).result(WAIT)
    assert {chunks[-1].finish_reason for chunks in traces} <= {"aborted", "finished"}
    assert sum(chunks[-1].finish_reason == "aborted" for chunks in traces) > 16
    assert tiny_engine._llm.get_num_unfinished_requests() == 0


def test_a_stream_that_is_left_is_aborted(tiny_engine: VLLM) -> None:
    async def leave() -> int:
        stream = tiny_engine.stream(
            tiny_engine.prepare(QUESTION), request_id="left", seed=0, signal=Signal(10)
        )
        await anext(stream)
        await stream.aclose()
        return tiny_engine._llm.get_num_unfinished_requests()

    assert tiny_engine.submit(leave()).result(WAIT) == 0


# ---- tokens after an abort -----------------------------------------------------------------------


def test_tokens_that_come_after_an_abort_are_counted(
    tiny_engine: VLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = tiny_engine._llm.output_processor
    counting, came, lag = processor.process_outputs, {"tokens": 0}, [0.2]

    def lagging(outputs: Any, *args: Any, **options: Any) -> Any:
        time.sleep(lag[0])  # Longer than a step takes, so that some are always on their way.
        came["tokens"] += sum(len(output.new_token_ids) for output in outputs)
        return counting(outputs, *args, **options)

    monkeypatch.setattr(processor, "process_outputs", lagging)
    names = [f"late-{i}" for i in range(8)]
    options = {"max_tokens": 300, "ignore_eos": True}

    async def abort_all() -> tuple[int, dict[str, int], dict[str, int]]:
        tasks = [
            asyncio.ensure_future(follow(tiny_engine, i, name=name, sampling=options))
            for i, name in enumerate(names)
        ]
        while not came["tokens"]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        await tiny_engine.abort(names)
        lag[0] = 0.0
        traces = await asyncio.gather(*tasks)
        late = await tiny_engine.late_tokens(names)
        return sum(map(tokens, traces)), late, await tiny_engine.late_tokens(names)

    seen, late, again = tiny_engine.submit(abort_all()).result(WAIT)
    assert set(late) <= set(names)
    assert 0 < sum(late.values()) == came["tokens"] - seen
    assert again == {}
    assert tiny_engine._steps is not None
    assert not set(names) & {*tiny_engine._steps._aborted.values(), *tiny_engine._steps._late}


def test_a_request_that_nobody_aborted_has_no_late_tokens(tiny_engine: VLLM) -> None:
    run(tiny_engine, name="whole")
    assert tiny_engine.submit(tiny_engine.late_tokens(["whole", "none"])).result(WAIT) == {}


# ---- a run's own sampling, and settings ----------------------------------------------------------


def test_sampling_of_a_run_goes_over_that_of_the_engine(tiny_engine: VLLM) -> None:
    whole = text(run(tiny_engine))
    chunks = run(tiny_engine, sampling={"max_tokens": 9})
    assert (text(chunks), chunks[-1].finish_reason) == (whole[:9], "length")
    assert text(run(tiny_engine)) == whole
    tiny_engine.check(Signal(5), {"max_tokens": 9})
    for wrong, says in [
        ({"seed": 1}, r"sampling\['seed'\] cannot be set"),
        ({"temprature": 1.0}, "near it: temperature"),
        ({"temperature": 9.0}, "temperature must be in"),
        ({"stop_token_ids": [99]}, "stop_token_ids.*99"),
    ]:
        with pytest.raises(InvalidInput, match=says):
            tiny_engine.check(Signal(5), wrong)


def test_without_a_seed_the_engine_draws_for_itself(tiny_engine: VLLM) -> None:
    drawn = {text(run(tiny_engine, None)) for _ in range(4)}
    assert len(drawn) > 1


def test_a_seed_that_vllm_cannot_take_fails_its_trace_alone(tiny_engine: VLLM) -> None:
    with pytest.raises(DeepConfError):
        run(tiny_engine, 2**64)
    assert text(run(tiny_engine))


def test_settings_hold_what_results_depend_on() -> None:
    free = {"gpu_memory_utilization": 0.8, "tensor_parallel_size": 8, "max_num_seqs": 4}
    base = settings_of(sampling={"top_p": 0.9})
    assert settings_of(sampling={"top_p": 0.9}, engine_args=free) == base
    for other in (
        settings_of(sampling={"top_p": 0.8}),
        settings_of(sampling={"top_p": 0.9}, chat=False),
        settings_of(sampling={"top_p": 0.9}, chat_template_kwargs={"enable_thinking": False}),
        settings_of(sampling={"top_p": 0.9}, engine_args={"dtype": "bfloat16"}),
        settings_of(sampling={"top_p": 0.9}, engine_args={"something_new": 1}),
    ):
        assert other != base
    found = settings_of(engine_args={"tokenizer": Path("t"), "logits_processors": [Path], "a": {1}})
    assert json.loads(json.dumps(found)) == found
    assert found["engine"]["logits_processors"] == ["pathlib:Path"]
    with pytest.raises(InvalidInput, match=r"engine_args\['hf_overrides'\]="):
        settings_of(engine_args={"hf_overrides": lambda config: config})


def test_what_is_left_out_of_settings_is_vllms() -> None:
    pytest.importorskip("vllm", exc_type=ModuleNotFoundError)
    from vllm.engine.arg_utils import AsyncEngineArgs

    fields = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    assert FREE - fields == {"scoring"}  # Which is our own.


def test_settings_of_an_engine_are_as_it_was_given_them(tiny_engine: VLLM) -> None:
    given = json.loads((TINY / "deepconf.json").read_text())["sampling"]
    assert tiny_engine.settings() == settings_of(sampling=given)
    assert tiny_engine.settings({"top_k": 5}) == settings_of(sampling={**given, "top_k": 5})


# ---- as a large model needs it -------------------------------------------------------------------


def test_vllm_takes_its_own_batch_sizes(tiny_engine: VLLM) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    _, sequences = EngineArgs.get_batch_defaults(1)
    scheduler = tiny_engine._llm.vllm_config.scheduler_config
    assert scheduler.max_num_seqs == sequences[UsageContext.LLM_CLASS] > 128


def test_a_budget_beyond_the_cache_is_said(tiny_engine: VLLM) -> None:
    prompt = tiny_engine.prepare(QUESTION)
    assert tiny_engine.misfit(64, prompt) is None
    said = tiny_engine.misfit(10**7, prompt)
    assert said is not None
    fit = int(said.split("concurrency=")[1].split()[0])
    assert tiny_engine.misfit(fit, prompt) is None
    assert tiny_engine.misfit(fit + 1, prompt)
    assert tiny_engine.misfit(fit + 1, prompt, {"max_tokens": 1}) is None


def test_the_heap_is_frozen_while_an_engine_is_up(tiny_engine: VLLM) -> None:
    assert gc.get_freeze_count() > 100_000
    assert gc.isenabled()


# ---- chat ----------------------------------------------------------------------------------------


def test_a_tokenizer_that_formats_chats_in_code_is_used(
    tiny_engine: VLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.renderers.deepseek_v32 import DeepseekV32Renderer
    from vllm.tokenizers.deepseek_v32 import get_deepseek_v32_tokenizer

    tokenizer = get_deepseek_v32_tokenizer(tiny_engine._tokenizer)
    renderer = DeepseekV32Renderer(tiny_engine._llm.vllm_config, tokenizer)
    monkeypatch.setattr(tiny_engine._llm, "renderer", renderer)
    auto, always, never = (
        Prompts("m", tiny_engine._llm, chat, {}) for chat in ("auto", True, False)
    )
    own = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], tokenize=False, add_generation_prompt=True
    )
    expected = tiny_engine._tokenizer.encode(own, add_special_tokens=False)
    assert auto.prepare(QUESTION) == always.prepare(QUESTION)
    assert auto.prepare(QUESTION)["prompt_token_ids"] == expected
    assert never.prepare(QUESTION) == tiny_engine.prepare(QUESTION)


def test_parts_that_are_no_text_are_refused(tiny_engine: VLLM) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    words = {"type": "text", "text": "1+2=?"}
    for content in ([words, image], [image], [3], {"type": "text"}, 3):
        with pytest.raises(InvalidInput, match=r"message 0 of the question, part .* only text"):
            tiny_engine.prepare([{"role": "user", "content": content}])


# ---- its own thread ------------------------------------------------------------------------------


def test_waiting_on_the_engines_own_thread_is_an_error(tiny_engine: VLLM) -> None:
    async def close() -> None:
        tiny_engine.close()

    async def wait_for_another() -> None:
        result_of(tiny_engine.submit(asyncio.sleep(0)))

    with pytest.raises(EngineError, match=r"close\(\) was called on the engine's own thread"):
        tiny_engine.submit(close()).result(WAIT)
    with pytest.raises(EngineError, match="own thread cannot wait"):
        tiny_engine.submit(wait_for_another()).result(WAIT)
    assert text(run(tiny_engine))


# ---- what can be asked for -----------------------------------------------------------------------


def test_check(tiny_engine: VLLM) -> None:
    tiny_engine.check(Signal(20))
    with pytest.raises(InvalidInput, match=r"top_logprobs=21: .*VLLM\(\.\.\., max_logprobs=21\)"):
        tiny_engine.check(Signal(21))
    with pytest.raises(InvalidInput, match=r"top_logprobs=40: .*only 26 tokens in its vocabulary"):
        tiny_engine.check(Signal(40))


def test_prepare_says_what_does_not_fit(tiny_engine: VLLM) -> None:
    assert len(tiny_engine.prepare("1" * 383)["prompt_token_ids"]) == 383
    with pytest.raises(InvalidInput, match="has 384 tokens: must be between 1 and 383"):
        tiny_engine.prepare("1" * 384)
    with pytest.raises(InvalidInput, match="has 0 tokens"):
        tiny_engine.prepare("")
    with pytest.raises(InvalidInput, match="has none"):
        tiny_engine.prepare([{"role": "user", "content": QUESTION}])
    with pytest.raises(InvalidInput, match=r"message 1 of the question is \{'role': 'user'\}"):
        tiny_engine.prepare([{"role": "user", "content": "1"}, {"role": "user"}])
    with pytest.raises(InvalidInput, match="no messages"):
        tiny_engine.prepare([])
    for wrong in (3, None, b"1*2=?"):
        with pytest.raises(InvalidType, match=f"is a {type(wrong).__name__}: must be a string"):
            tiny_engine.prepare(wrong)  # type: ignore[arg-type]


def test_chat_needs_a_template(tiny_engine: VLLM) -> None:
    llm = tiny_engine._llm
    with pytest.raises(InvalidInput, match=r"chat=True: .* has no chat template, set chat=False"):
        Prompts("m", llm, True, {})
    auto, never = Prompts("m", llm, "auto", {}), Prompts("m", llm, False, {})
    assert auto.prepare(QUESTION) == never.prepare(QUESTION)


def test_sampling_in_force(tiny_engine: VLLM) -> None:
    assert tiny_engine.sampling == {"temperature": 1.0, "top_p": 1.0, "max_tokens": 320}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logprobs_mode": "processed_logprobs"}, "set logprobs_mode='raw_logprobs'"),
        ({"chat": "yes"}, "chat='yes': must be 'auto', True or False"),
        *(
            ({"sampling": {name: value}}, rf"sampling\['{name}'\] cannot be set: ")
            for name, value in {
                "n": 2,
                "seed": 1,
                "logprobs": 5,
                "logprob_token_ids": [1],
                "prompt_logprobs": 1,
                "flat_logprobs": False,
                "output_kind": 0,
                "detokenize": True,
            }.items()
        ),
        ({"sampling": {"temprature": 1.0}}, r"sampling\['temprature'\].*near it: temperature"),
        ({"sampling": {"temperature": 9.0}}, r"sampling=.*temperature must be in \[0, 2\]"),
        ({"sampling": {"max_tokens": "9"}}, "sampling=.*'9'"),
        ({"max_modle_len": 9}, "does not take these engine arguments: .*max_modle_len"),
        ({"max_model_len": 10**6}, "(?s)does not take these engine arguments: .*1000000"),
    ],
)
def test_constructor_errors(
    tiny_engine: VLLM, options: dict[str, Any], message: str
) -> None:  # With vLLM imported already, these take no time.
    with pytest.raises(InvalidInput, match=message):
        VLLM(TINY / "model", **options)


def test_sampling_that_does_not_suit_the_model(tiny_engine: VLLM) -> None:
    config, tokenizer = tiny_engine._llm.vllm_config, tiny_engine._tokenizer
    check_sampling({"stop_token_ids": [25]}, config, tokenizer)
    with pytest.raises(InvalidInput, match=r"stop_token_ids.*99"):
        check_sampling({"stop_token_ids": [99]}, config, tokenizer)


@pytest.mark.parametrize("model", ["/no/such", "./such", "../such", "~/no/such", "a/b/c", "", " "])
def test_missing_model(model: str) -> None:
    with pytest.raises(InvalidInput, match="no such folder"):
        VLLM(model)


def test_a_mistyped_model_is_answered_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm", exc_type=ModuleNotFoundError)
    (tmp_path / "reasoner").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="there is no such folder here; near it: reasoner"):
        VLLM("resoner")
    with pytest.raises(InvalidInput, match="nor such a model in the cache, and HF_HUB_OFFLINE"):
        VLLM("nobody/nothing")


class Hub:
    """The hub, as it answers or does not."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.asked: list[str] = []

    def __call__(self) -> Hub:
        return self

    def model_info(self, name: str, timeout: float) -> None:
        self.asked.append(name)
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("error", "says"),
    [(None, None), (ConnectionError("no route"), "the hub cannot be reached: ConnectionError")],
)
def test_the_hub_is_asked_before_vllm_looks_for_long(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, says: str | None
) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    hub = Hub(error)
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    if says is None:
        check_hub("nobody/nothing")
    else:
        with pytest.raises(InvalidInput, match=says):
            check_hub("nobody/nothing")
    check_hub("s3://bucket/model")  # Others than the hub have such names.
    check_hub(str(TINY))
    assert hub.asked == ["nobody/nothing"]


def test_a_process_that_imports_an_unguarded_script_ends_on_one_line(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "from deepconf.engines import VLLM\n"
        "if __name__ == '__main__':\n"
        "    child = multiprocessing.get_context('spawn').Process(target=print)\n"
        "    child.start(); child.join(); sys.exit(child.exitcode)\n"
        "VLLM('model')\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("error: vLLM's processes import the main script")
    assert f"in {script}, put what is to be run below if __name__ ==" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unguarded_script_is_named_where_vllm_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "script.py"
    main = SimpleNamespace(__file__=str(script), __spec__=None)
    monkeypatch.setitem(sys.modules, "__main__", main)  # type: ignore[arg-type]
    script.write_text("from deepconf.engines import VLLM\nVLLM('model')\n")
    assert f"in {script}, put what is to be run below" in main_guard()
    script.write_text("if __name__ == '__main__':\n    VLLM('model')\n")
    assert main_guard() == ""


def test_sampling_among_the_engine_arguments_is_told_where_to_go() -> None:
    pytest.importorskip("vllm", exc_type=ModuleNotFoundError)
    with pytest.raises(InvalidInput, match=r"write VLLM\(\.\.\., sampling=dict\(temperature=0\.5"):
        VLLM(TINY / "model", temperature=0.5)
    with pytest.raises(InvalidInput, match="is no sampling parameter of vLLM; there are"):
        VLLM(TINY / "model", sampling={"xyz": 1})


def test_the_log_of_vllm_is_no_result(tiny_engine: VLLM) -> None:
    import logging

    assert os.environ["VLLM_LOGGING_STREAM"] == "ext://sys.stderr"
    handlers = logging.getLogger("vllm").handlers
    assert handlers
    assert all(getattr(each, "stream", None) is not sys.stdout for each in handlers)


def test_several_questions_are_told_how_they_are_asked() -> None:
    with pytest.raises(InvalidInput, match=r"is 2 strings: .* asked one by one, or at once by"):
        as_messages(["1+1=?", "2+2=?"])  # type: ignore[list-item]


def test_missing_model_as_a_path() -> None:
    with pytest.raises(InvalidInput, match="no such folder"):
        VLLM(Path("such"))


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"the folder has no config\.json"):
        VLLM(tmp_path)


def test_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtra, match=r"pip install 'vllm.*extra vllm of deepconf-rs"):
        VLLM("organisation/name")


def test_vllm_is_imported_late() -> None:
    script = """
        import sys
        import deepconf.engines
        try:
            deepconf.engines.VLLM("/no/such/model")
        except deepconf.InvalidInput:
            print(sorted({"vllm", "torch", "transformers"} & sys.modules.keys()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# ---- confidences ---------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", ["topk", "returned"])
def test_confidences_of_outputs(tiny_engine: VLLM, entries: Any) -> None:
    flat, dicts = (raw(tiny_engine, 7, 3, flat=flat) for flat in (True, False))
    expected = oracle(dicts.outputs[0].logprobs, 3, entries)
    for request in (flat, dicts):
        for output in (request, request.outputs[0], request.outputs[0].logprobs):
            for k in (None, 3):
                found = confidences(output, k=k, entries=entries)
                assert found.dtype == np.float32
                np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_confidences_with_a_floor(tiny_engine: VLLM) -> None:
    output = raw(tiny_engine, 7, 3)
    clipped = [
        -np.mean([max(e.logprob, -2.0) for e in row.values() if e.rank <= 3])
        for row in output.outputs[0].logprobs
    ]
    found = confidences(output, logprob_floor=-2.0)
    np.testing.assert_allclose(found, clipped, rtol=1e-5)
    assert (found < confidences(output)).any()


def test_confidences_of_nothing() -> None:
    from vllm.logprobs import FlatLogprobs

    for logprobs in (FlatLogprobs(), []):
        assert confidences(logprobs).shape == (0,)


def test_confidences_says_what_is_wrong(tiny_engine: VLLM) -> None:
    output = raw(tiny_engine, 7, 3)
    with pytest.raises(InvalidInput, match="entries='top': must be 'topk' or 'returned'"):
        confidences(output, entries="top")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="k=0: must be at least 2"):
        confidences(output, k=0)
    with pytest.raises(InvalidInput, match="k=5"):
        confidences(output, k=5)
    output.outputs.append(output.outputs[0])
    with pytest.raises(InvalidInput, match=r"2 completions: pass one of output\.outputs"):
        confidences(output)
    output.outputs[0].logprobs = None
    with pytest.raises(InvalidInput, match=r"SamplingParams\(logprobs=20\)"):
        confidences(output.outputs[0])
    for wrong in (None, "text", 3, np.ones((2, 3))):
        with pytest.raises(InvalidType, match="must be a CompletionOutput"):
            confidences(wrong)


# ---- a life of its own ---------------------------------------------------------------------------

LIFE = """
import json, os, signal, sys, time, warnings

from deepconf.engines import VLLM, Signal


def say(**what):
    print(json.dumps(what), flush=True)


async def ask(engine, prompt):
    stream = engine.stream(prompt, request_id="r", seed=0, signal=Signal(5))
    chunks = [chunk async for chunk in stream]
    return "".join(chunk.text for chunk in chunks)


def error_of(call):
    try:
        call()
    except BaseException as error:
        return type(error).__name__, str(error)


def main():
    engine = VLLM(sys.argv[1], sampling={"max_tokens": 20}, chat_template_kwargs={"mark": "+"})
    question = "1*2"
    prompts = [
        engine.prepare(question),
        engine.prepare([{"role": "user", "content": question}, {"role": "user", "content": "3"}]),
    ]
    say(prompts=[engine._tokenizer.decode(p["prompt_token_ids"]) for p in prompts])
    refused = error_of(lambda: engine.prepare([{"role": "system", "content": ""}]))
    say(refused=refused)
    say(before=engine.submit(ask(engine, prompts[0])).result(60))
    try:
        say(ready=True)
        time.sleep(60)
    except KeyboardInterrupt:
        say(interrupted=True)
    time.sleep(1)  # For the engine to die, should it.
    say(after=engine.submit(ask(engine, prompts[0])).result(60))

    engine._sampling |= {"max_tokens": 300, "ignore_eos": True}
    dying = engine.submit(ask(engine, prompts[0]))
    time.sleep(0.1)
    for process in engine._llm.engine_core.resources.engine_manager.processes:
        os.kill(process.pid, signal.SIGKILL)
    say(dying=error_of(lambda: dying.result(60)))
    say(dead=error_of(lambda: engine.submit(ask(engine, prompts[0])).result(60)))
    say(abort=error_of(lambda: engine.submit(engine.abort(["r"])).result(60)))
    engine.close()
    engine.close()
    say(closed=error_of(lambda: engine.submit(ask(engine, prompts[0]))))


if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process says that starts an engine, is interrupted, kills the engine and closes it."""
    folder = tmp_path_factory.mktemp("life")
    model = shutil.copytree(TINY / "model", folder / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["chat_template"] = (
        "{% for m in messages %}"
        "{% if m.role != 'user' %}{{ raise_exception('only users') }}{% endif %}"
        "{{ m.content }}{{ mark }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}=?{% endif %}"
    )
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    script = folder / "life.py"
    script.write_text(LIFE)
    said: dict[str, Any] = {}
    with (
        open(folder / "stderr", "w+") as stderr,
        subprocess.Popen(
            [sys.executable, script, model],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith("{"):  # vLLM's own.
                continue
            said |= json.loads(line)
            if "ready" in line:
                os.killpg(process.pid, signals.SIGINT)
        said["exit"] = process.wait(WAIT)
        stderr.seek(0)
        said["stderr"] = stderr.read()
    return said


def test_chat_template(life: dict[str, Any]) -> None:
    assert life["prompts"] == ["1*2+=?", "1*2+3+=?"]
    assert life["refused"][0] == "InvalidInput"
    assert "only users" in life["refused"][1]


def test_ctrl_c_leaves_the_engine_alone(life: dict[str, Any]) -> None:
    assert life["interrupted"]
    assert life["after"] == life["before"] != ""


def test_a_dead_engine_is_an_engine_error(life: dict[str, Any]) -> None:
    assert life["dying"][0] == life["dead"][0] == "EngineDied"
    assert "EngineDeadError" in life["dead"][1]
    assert life["abort"] is None


def test_closing_twice(life: dict[str, Any]) -> None:
    assert life["closed"] == ["EngineDied", "the engine is closed"]
    assert life["exit"] == 0
    assert "was destroyed but it is pending" not in life["stderr"]
    assert "Exception ignored" not in life["stderr"]
