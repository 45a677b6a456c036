"""The engine that drives a server, against one of our own: what is right, and what it finds out."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepconf
import numpy as np
import pytest
from deepconf import DeepThink, Policy, Result
from deepconf.engines import OpenAI
from deepconf.engines.base import Chunk, Signal
from deepconf.engines.openai._channels import final_part
from deepconf.errors import (
    EngineDied,
    EngineError,
    InvalidInput,
    MissingExtra,
    RunWarning,
)
from deepconf.evaluate import evaluate
from false_server import KEY, MODEL, FalseServer, hide_reasoning, lose_logprobs

SMALL: dict[str, Any] = {"window": 4, "tail": 4, "top_logprobs": 10}
# Every trace to its end.
WHOLE = Policy.offline(budget=8, keep=1.0, min_ballots=1, seed=10, **SMALL)
QUICK: dict[str, Any] = {"patience": 0.4, "token_timeout": 0.5, "first_token_timeout": 0.5}


@pytest.fixture
def server() -> Iterator[FalseServer]:
    with FalseServer() as made:
        yield made


def run(engine: OpenAI, policy: Policy = WHOLE, **options: Any) -> Result:
    return DeepThink(engine, policy, **options).run("2+2=?")


@contextlib.contextmanager
def warned(says: str) -> Iterator[None]:
    """One of the warnings says so."""
    with pytest.warns(RunWarning) as caught:
        yield
    texts = [str(warning.message) for warning in caught]
    assert any(re.search(says, text) for text in texts), texts


def threads() -> int:
    return sum(thread.name == "deepconf-openai" for thread in threading.enumerate())


# ---- what is right ------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("entries", ["topk", "returned"])
@pytest.mark.parametrize("width", [1, 5])
def test_confidences_are_those_of_the_log_probabilities(
    server: FalseServer, chat: bool, entries: Any, width: int
) -> None:
    server.faults.width_of_chunk = width
    policy = WHOLE.replace(entries=entries)
    with OpenAI(server.url, MODEL, chat=chat) as engine:
        result = run(engine, policy)
    assert result.answer == "4"
    assert result.warnings == ()
    for trace in result.traces:
        assert trace.status == "finished"
        assert trace.text == "".join(server.words(trace.seed or 0))
        for at, found in enumerate(trace.confidence):
            own, likely = server.logprobs(trace.seed or 0, at, 10)
            counted = [*likely, own] if entries == "returned" and own < likely[-1] else likely
            assert found == np.float32(-np.mean(counted))


def test_what_was_found_stands_in_the_engine_the_result_and_its_summary(
    server: FalseServer,
) -> None:
    server.faults.models = [{"id": MODEL, "owned_by": "vllm", "max_model_len": 512}]
    server.faults.token_ids = True
    with OpenAI(server.url + "/") as engine:  # The only model.
        found = engine.capabilities
        assert engine.model == MODEL
        result = run(engine)
    assert found.server == server.url
    assert (found.interface, found.top_logprobs, found.software) == ("chat", 21, "vllm")
    assert (found.usage, found.token_ids, found.seed) == (True, True, "repeats")
    assert (found.raw, found.abort, found.max_model_len) == (True, True, 512)
    assert result.capabilities == found.as_dict()
    assert json.loads(json.dumps(result.summary()))["capabilities"] == found.as_dict()
    assert "seeds repeat a trace" in str(found)
    assert server.bodies[-1]["return_token_ids"] is True


def test_one_more_log_probability_than_counts_makes_sure_of_the_others(
    server: FalseServer,
) -> None:
    server.faults.crowd = True
    with OpenAI(server.url) as engine:
        result = run(engine)
        assert server.bodies[-1]["top_logprobs"] == 11
    assert result.warnings == ()
    server.faults.max_logprobs = 10
    with OpenAI(server.url) as engine, warned(r"at \d+ of 192 tokens the"):
        crowded = run(engine)
    assert server.bodies[-1]["top_logprobs"] == 10
    exact = np.concatenate([trace.confidence for trace in result.traces])
    other = np.concatenate([trace.confidence for trace in crowded.traces])
    assert 0 < (exact != other).sum() < len(exact) / 2


def test_a_run_stops_traces_and_closes_their_connections(server: FalseServer) -> None:
    server.delay = 0.01
    server.tokens = 60
    policy = Policy.low(budget=24, warmup=6, min_ballots=1, stop="budget", **SMALL)
    with OpenAI(server.url) as engine:
        server.closed = 0
        result = run(engine, policy)
        stopped = [trace for trace in result.traces if trace.status == "stopped"]
        assert len(stopped) >= 6
        end = time.monotonic() + 5
        while (server.closed < len(stopped) or server.running) and time.monotonic() < end:
            time.sleep(0.02)
        assert server.closed == len(stopped)
        assert server.running == 0
    for trace in stopped:
        assert trace.num_tokens - (trace.stop_token or 0) - 1 <= 2
        assert 0 < len(trace.text) < 60 * 5
    assert not engine._running


def test_seeds_are_asked_for_and_none_where_there_is_none(server: FalseServer) -> None:
    with OpenAI(server.url, sampling={"temperature": 0.6, "top_k": 7}) as engine:
        server.bodies.clear()
        run(engine, WHOLE, sampling={"temperature": 0.9})
        asked = server.bodies[1:]
        assert {body["seed"] for body in asked} == set(range(10, 18))
        assert {(body["temperature"], body["top_k"]) for body in asked} == {(0.9, 7)}
        assert engine.settings({"top_k": 1})["sampling"] == {"temperature": 0.6, "top_k": 1}
        server.bodies.clear()
        server.faults.unrepeatable = True
        run(engine, WHOLE.replace(seed=None))
        assert all("seed" not in body for body in server.bodies[1:])


def test_a_stream_is_as_the_steps(server: FalseServer) -> None:
    signal = Signal(top_logprobs=10)

    async def follow(engine: OpenAI) -> list[Chunk]:
        options: Any = {"request_id": "one", "seed": 5, "signal": signal}
        return [chunk async for chunk in engine.stream(engine.prepare("?"), **options)]

    with OpenAI(server.url) as engine:
        chunks = engine.submit(follow(engine)).result(10)
    confidence = np.concatenate([chunk.confidence for chunk in chunks])
    expected = [-np.mean(server.logprobs(5, at, 10)[1]) for at in range(24)]
    np.testing.assert_array_equal(confidence, np.float32(expected))
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert (chunks[-1].finish_reason, chunks[-1].text) == ("finished", "".join(server.words(5)))


def test_hundreds_of_streams_at_once(server: FalseServer) -> None:
    server.delay = 0.08  # So that none has ended before the last begins.
    with OpenAI(server.url) as engine:
        result = run(engine, WHOLE.replace(budget=300))
    assert server.most_running == 300
    assert {trace.status for trace in result.traces} == {"finished"}
    assert result.tokens.generated == 300 * 24


def test_several_questions_and_policies_at_once(server: FalseServer, tmp_path: Path) -> None:
    questions = [{"id": f"q{i}", "question": f"{i}?", "answer": "4"} for i in range(4)]
    policies = {"low": Policy.low(budget=6, warmup=3, **SMALL), "offline": WHOLE}
    out = tmp_path / "run.jsonl"
    with OpenAI(server.url, api_key=KEY) as engine:
        report = evaluate(engine, questions, policies, out, record=tmp_path / "t.parquet")
        assert report.complete
        assert any(server.url in note and "chat completions" in note for note in report.notes)
        assert evaluate(engine, questions, policies, out).complete
        header = json.loads(out.read_text().splitlines()[0])
        assert header["capabilities"] == engine.capabilities.as_dict()
    for file in tmp_path.iterdir():
        assert KEY.encode() not in file.read_bytes()
    # The same model elsewhere carries on.
    with FalseServer() as other, OpenAI(other.url) as engine:
        assert evaluate(engine, questions, policies, out).complete
        more = [*questions, {"id": "q4", "question": "4?", "answer": "4"}]
        with pytest.raises(OSError, match="holds another run"):
            evaluate(engine, more, policies, out)


# ---- reasoning ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "style", ["reasoning", "reasoning_content", "deepseek", "think", "harmony"]
)
def test_answers_are_those_of_the_final_channel(server: FalseServer, style: str) -> None:
    thoughts = server.words
    server.faults.style = style
    # What is thought of on the way is no answer.
    server.words = lambda seed: [" \\boxed{7}", *thoughts(seed)[1:]]  # type: ignore[method-assign]
    with OpenAI(server.url) as engine:
        result = run(engine)
        assert engine.capabilities.reasoning is (None if style in ("think", "harmony") else True)
        assert {trace.answer for trace in result.traces} == {"4"}
        assert all("boxed{7}" in trace.text for trace in result.traces)
        assert all(trace.num_tokens == 24 for trace in result.traces)
        expected = [-np.mean(server.logprobs(10, at, 10)[1]) for at in range(24)]
        np.testing.assert_array_equal(result.traces[0].confidence, np.float32(expected))
        # Cut while it thinks, it has no answer yet.
        cut = DeepThink(engine, WHOLE, sampling={"max_tokens": 20})
        with warned("none of the 8 traces .* has an answer"):
            result = cut.run("?")
    assert {trace.status for trace in result.traces} == {"length"}


def test_final_parts() -> None:
    for text, final in {
        "": "",
        "4": "4",
        "so</think>4": "4",
        "<think>a</think>b</think>4": "4",
        " <think>never ends": "",
        "analysis says so, assistantfinal4": "4",
        "analysis alone": "analysis alone",
        "<|channel|>final<|message|>4<|end|>": "4",
        "<|start|>assistant<|channel|>analysis<|message|>hm": "",
        "I <think> so": "I <think> so",
    }.items():
        assert final_part(text) == final, text


# ---- what the probe finds -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "error", "says"),
    [
        ({"cut_k": 1}, EngineError, "gives 1 log-probabilities a token, asked for 21"),
        ({"max_logprobs": 1}, EngineError, "status 400: .*Requested sample logprobs of 2"),
        ({"models": []}, InvalidInput, "model='tiny': .* has "),
        (
            {"models": [{"id": f"m{i}"} for i in range(90)] + [{"id": "tiny-2"}]},
            InvalidInput,
            "model='tiny': http.* has 'tiny-2' and 90 more",
        ),
        ({"content_type": "text/html"}, EngineError, "answers with text/html where a stream"),
        ({"content_type": "application/json"}, EngineError, "answers with application/json"),
        ({"damage": lambda chunk, _: lose_logprobs(chunk) or chunk}, EngineError, "no log-prob"),
        ({"damage": lambda chunk, _: hide_reasoning(chunk) or chunk}, EngineError, "reasoning_con"),
        ({"damage": lambda chunk, _: None}, EngineError, "ended without a finish_reason"),
        ({"damage": lambda *_: b"data: [DONE]\n\n"}, EngineError, "without a finish_reason"),
    ],
)
def test_what_the_probe_refuses(
    server: FalseServer, faults: dict[str, Any], error: type[Exception], says: str
) -> None:
    vars(server.faults).update(faults)
    server.faults.only = (1, 2, 3)
    before = threads()
    with pytest.raises(error, match=says):
        OpenAI(server.url, MODEL)
    assert threads() == before


def test_an_empty_answer_is_an_error(server: FalseServer) -> None:
    def empty(chunk: Any, number: int) -> Any:
        if number:
            return None
        chunk["choices"][0] |= {"finish_reason": "stop", "logprobs": None, "delta": {}}
        return chunk

    server.faults.damage, server.faults.only, server.faults.usage = empty, (1, 2, 3), False
    with pytest.raises(EngineError, match="an empty answer: it has no token and no text"):
        OpenAI(server.url)


@pytest.mark.parametrize(
    ("faults", "field", "value"),
    [
        ({"ignore_seed": True}, "seed", "ignored"),
        ({"unrepeatable": True}, "seed", "differs"),
        ({"after_temperature": True}, "raw", False),
        ({"keep_running": True}, "abort", False),
        ({"metrics": False}, "abort", None),
        ({"usage": False}, "usage", False),
        ({"cut_k": 5}, "top_logprobs", 5),
        ({"max_logprobs": 20}, "top_logprobs", 20),
        ({"chat": False}, "interface", "completions"),
        ({"models": None}, "software", None),
    ],
)
def test_what_the_probe_finds(
    server: FalseServer,
    monkeypatch: pytest.MonkeyPatch,
    faults: dict[str, Any],
    field: str,
    value: Any,
) -> None:
    monkeypatch.setattr("deepconf.engines.openai._probe._NOTICE", 0.5)
    server.delay = 0.002
    server.tokens = 100
    vars(server.faults).update(faults)
    with OpenAI(server.url, MODEL) as engine:
        assert getattr(engine.capabilities, field) == value


def test_more_than_the_server_gives_is_refused_before_anything_runs(server: FalseServer) -> None:
    server.faults.cut_k = 5
    with OpenAI(server.url) as engine:
        with pytest.raises(InvalidInput, match=r"top_logprobs=10: http\S+ gives 5 a token"):
            run(engine)
        assert run(engine, WHOLE.replace(top_logprobs=4)).warnings == ()
    server.faults.cut_k, server.faults.max_logprobs = None, 30
    with OpenAI(server.url) as engine:
        with pytest.raises(InvalidInput, match=r"gives 21 a token.*it says: .*logprobs of 40"):
            run(engine, WHOLE.replace(top_logprobs=40))
        assert run(engine, WHOLE.replace(top_logprobs=30)).answer == "4"


def test_seeds_that_are_ignored_are_said(server: FalseServer) -> None:
    server.faults.ignore_seed = True
    with OpenAI(server.url) as engine, warned("all 8 traces .* are equal"):
        run(engine)


@pytest.mark.parametrize(
    ("fault", "says"),
    [("after_temperature", "from after the temperature"), ("keep_running", "goes on generating")],
)
def test_what_spoils_a_run_is_said(
    server: FalseServer, monkeypatch: pytest.MonkeyPatch, fault: str, says: str
) -> None:
    setattr(server.faults, fault, True)
    monkeypatch.setattr("deepconf.engines.openai._probe._NOTICE", 0.5)
    server.delay, server.tokens = 0.002, 80
    policy = Policy.low(budget=24, warmup=6, min_ballots=1, stop="budget", **SMALL)
    with OpenAI(server.url) as engine, warned(says):
        run(engine, policy)


def test_messages_need_chat_completions(server: FalseServer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}]
    with OpenAI(server.url) as engine:
        assert DeepThink(engine, WHOLE).run(messages).answer == "4"
        assert server.bodies[-1]["messages"] == messages
    with OpenAI(server.url, chat=False) as engine:
        think = DeepThink(engine, WHOLE)
        with pytest.raises(InvalidInput, match="chat messages need chat completions"):
            think.run(messages)
    server.faults.chat = False
    with pytest.raises(InvalidInput, match="there is no chat template"):
        OpenAI(server.url, chat_template_kwargs={"enable_thinking": True})


# ---- its own life -------------------------------------------------------------------------------


def test_a_closed_engine_says_so(server: FalseServer) -> None:
    engine = OpenAI(server.url)
    think = DeepThink(engine, WHOLE)
    engine.close()
    engine.close()
    with pytest.raises(EngineDied, match="the engine is closed"):
        think.run("?")


def test_closing_in_the_middle_of_a_run(server: FalseServer) -> None:
    server.delay = 0.05
    engine = OpenAI(server.url)
    thinking = DeepThink(engine, WHOLE).start("?")
    time.sleep(0.3)
    engine.close()
    with pytest.raises(EngineError):
        thinking.result(5)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"aiohttp.*the extra http of deepconf-rs"):
        OpenAI("http://localhost/v1")


def test_the_engine_is_exported() -> None:
    assert deepconf.engines.OpenAI is OpenAI
