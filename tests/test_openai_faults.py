"""A server that says what cannot be right, that fails, and that is slow."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from deepconf import DeepThink
from deepconf.engines import OpenAI
from deepconf.errors import (
    EngineDied,
    EngineError,
    InvalidInput,
    RunWarning,
)
from false_server import KEY, FalseServer, content, hide_reasoning, lose_logprobs
from test_openai_engine import QUICK, WHOLE, run, server, warned

__all__ = ["server"]


# ---- what a server says that cannot be right ----------------------------------------------------


def at(number: int, change: Any) -> Any:
    """Damages one chunk."""

    def damage(chunk: Any, place: int) -> Any:
        if place == number:
            changed = change(chunk)
            return chunk if changed is None else changed
        return chunk

    return damage


def repeat(chunk: Any) -> None:
    first, *rest = content(chunk)
    for token in rest:
        token["top_logprobs"] = first["top_logprobs"]


def mask(chunk: Any, logprob: float) -> None:
    """Of eleven, the last two, of which one counts."""
    for token in content(chunk)[0]["top_logprobs"][9:]:
        token["logprob"] = logprob


def repeat_whole(chunk: Any) -> None:
    first, *rest = content(chunk)
    for token in rest:
        token.update(first)


VIOLATIONS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "alternatives repeated": (
        {"width_of_chunk": 4},
        at(2, repeat),
        r"choices\[0\]\.top_logprobs (lacks the sampled token|is the same as).*token \d+",
    ),
    "whole entries repeated": (
        {"width_of_chunk": 4},
        at(2, repeat_whole),
        r"choices\[0\]\.top_logprobs is the same as .* \(at token 9, ' w",
    ),
    "an entry lost": (
        {"width_of_chunk": 4, "usage": False},
        at(
            2,
            lambda chunk: (
                content(chunk).pop()
                and chunk["choices"][0]["delta"].update(
                    content=chunk["choices"][0]["delta"]["content"] * 30
                )
            ),
        ),
        r"choices\[0\]\.logprobs has \d+ bytes in its tokens and the text",
    ),
    "an entry lost, with usage": (
        {"width_of_chunk": 4},
        at(2, lambda chunk: content(chunk).pop() and None),
        r"usage\.completion_tokens is 24, and there were log-probabilities of 23 tokens",
    ),
    "an entry lost, with token ids": (
        {"width_of_chunk": 4, "token_ids": True, "usage": False},
        at(2, lambda chunk: content(chunk).pop() and None),
        r"choices\[0\]\.token_ids has 4 tokens, and there are log-probabilities of 3",
    ),
    "no entries": (
        {},
        at(5, lose_logprobs),
        r"choices\[0\]\.delta\.content has a text and no log-probabilities .*\(at token 5 ",
    ),
    "reasoning without entries": (
        {},
        at(5, hide_reasoning),
        r"choices\[0\]\.delta\.reasoning_content has a text and no log-probabilities",
    ),
    "no alternatives": (
        {},
        at(5, lambda chunk: content(chunk)[0].update(top_logprobs=[], logprob=-9999.0)),
        r"top_logprobs is empty: .* \(at token 5, ",
    ),
    "k cut": (
        {},
        at(
            5,
            lambda chunk: content(chunk)[0].update(
                top_logprobs=content(chunk)[0]["top_logprobs"][:5]
            ),
        ),
        r"top_logprobs has 5 of the 11 that were asked for",
    ),
    "masked": (
        {},
        at(5, lambda chunk: mask(chunk, -9999.0)),
        r"top_logprobs has the log-probability -9999, which .* set logprob_floor.*token 5, ",
    ),
    "probabilities": (
        {},
        at(5, lambda chunk: content(chunk)[0]["top_logprobs"][0].update(logprob=0.7)),
        r"top_logprobs has the entry 0\.7: log-probabilities are at most 0",
    ),
    "null": (
        {},
        at(5, lambda chunk: content(chunk)[0]["top_logprobs"][3].update(logprob=None)),
        r"no chunk of a completion: .*float.*null.*top_logprobs\[",
    ),
    "NaN": (
        {},
        at(5, lambda chunk: content(chunk)[0]["top_logprobs"][3].update(logprob=float("nan"))),
        "no chunk of a completion",
    ),
    "infinite": (
        {},
        at(5, lambda chunk: content(chunk)[0]["top_logprobs"][3].update(logprob=-np.inf)),
        "no chunk of a completion",
    ),
    "too negative": (
        {},
        at(5, lambda chunk: mask(chunk, -1e300)),
        r"-1e\+300",
    ),
    "no sampled": (
        {},
        at(5, lambda chunk: content(chunk)[0].update(logprob=None)),
        r"choices\[0\]\.logprob is missing \(at token 5",
    ),
    "counted before the end": (
        {},
        at(5, lambda chunk: chunk["choices"][0].update(finish_reason="stop")),
        "choices goes on behind a finish_reason",
    ),
    "another choice": (
        {},
        at(5, lambda chunk: chunk["choices"][0].update(index=1)),
        "choices has index 1, and one was asked for",
    ),
    "an unknown end": (
        {},
        at(5, lambda chunk: chunk["choices"][0].update(finish_reason="tired")),
        "finish_reason is 'tired': what it means",
    ),
    "filtered": (
        {},
        at(5, lambda chunk: chunk["choices"][0].update(finish_reason="content_filter")),
        "ended the trace by 'content_filter'",
    ),
    "no JSON": ({}, at(5, lambda chunk: b"data: {]\n\n"), "no chunk of a completion: not JSON"),
    "no UTF-8": (
        {},
        at(5, lambda chunk: b'data: {"choices": [{"text": "\xff\xfe"}]}\n\n'),
        "no chunk of a completion",
    ),
    "another form": ({}, at(5, lambda chunk: b"data: [1, 2]\n\n"), "no chunk of a completion"),
    "a huge event": (
        {},
        at(5, lambda chunk: b"data: " + b" " * (100 << 20)),
        "an event of the stream has more than 8 MiB",
    ),
    "huge events without an end": (
        {},
        at(5, lambda chunk: (b"data: " + b" " * 1000 + b"\n") * 10_000),
        "an event of the stream has more than 8 MiB",
    ),
}


@pytest.mark.parametrize(("faults", "damage", "says"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_what_cannot_be_right_is_an_error_that_names_server_field_and_token(
    server: FalseServer, faults: dict[str, Any], damage: Any, says: str
) -> None:
    with OpenAI(server.url, tries=2) as engine:
        vars(server.faults).update(faults)
        server.faults.damage, server.faults.only = damage, (12,)
        with warned("1 of 8 traces failed"):
            result = run(engine)
    [failed] = [trace for trace in result.traces if trace.status == "failed"]
    assert failed.seed == 12
    assert failed.error is not None
    assert failed.error.startswith(f"{server.url}/chat/completions: ")
    assert re.search(says, failed.error), failed.error
    assert result.answer == "4"
    assert not engine._running


def test_a_floor_makes_masked_tokens_count(server: FalseServer) -> None:
    change = at(5, lambda chunk: mask(chunk, -9999.0))
    with OpenAI(server.url) as engine:
        server.faults.damage, server.faults.only = change, (12,)
        result = run(engine, WHOLE.replace(logprob_floor=-20.0))
    _, likely = server.logprobs(12, 5, 11)
    row = [*likely[:9], -9999.0]
    assert result.traces[2].confidence[5] == np.float32(-np.mean(np.maximum(row, -20.0)))


def test_the_end_token_may_be_counted_and_not_shown(server: FalseServer) -> None:
    server.faults.usage_off = 1
    with pytest.raises(EngineError, match="is 17, and there were log-probabilities of 16 tokens"):
        OpenAI(server.url)  # A trace that is cut has no end token.
    server.faults.usage_off = 0
    with OpenAI(server.url) as engine:
        think = DeepThink(engine, WHOLE)
        server.faults.usage_off = 1
        assert {trace.status for trace in think.run("?").traces} == {"finished"}
        server.faults.usage_off = 2
        with pytest.raises(EngineError, match="is 26, and there were log-probabilities of 24 tok"):
            think.run("?")


def test_ends_that_are_not_the_last_event(server: FalseServer) -> None:
    def late(chunk: Any, number: int) -> Any:
        """The reason of the end comes by itself, as on OpenAI's and llama.cpp's servers."""
        if chunk["choices"][0]["finish_reason"] is None:
            return chunk
        chunk["choices"][0]["finish_reason"] = None
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "logprobs": None}]}
        events = [b": a comment\r\n\r\nevent: x\r\nid: 1\r\ndata:", json.dumps(chunk).encode()]
        events += [b"\r\n\r\n", b"data: " + json.dumps(end).encode() + b"\n\n", b"\n\n"]
        return b"".join(events)

    with OpenAI(server.url) as engine:
        server.faults.damage = late
        result = run(engine)
    assert {trace.num_tokens for trace in result.traces} == {24}
    assert result.answer == "4"


# ---- failures that pass -------------------------------------------------------------------------


def test_a_trace_that_breaks_off_begins_anew_under_its_number(server: FalseServer) -> None:
    whole = {seed: server.words(seed) for seed in range(10, 18)}

    def break_off(chunk: Any, number: int) -> Any:
        return chunk if number < 6 or server.tries[12] > 2 else b"data: [DONE]\n\n"

    with OpenAI(server.url) as engine:
        server.faults.damage, server.faults.only = break_off, (12,)
        with warned(r"1 of 8 traces broke off .* 2 times in all: 12 tok"):
            result = run(engine)
    assert server.tries[12] == 3
    trace = result.traces[2]
    assert (trace.status, trace.tries, trace.lost_tokens) == ("finished", 3, 12)
    assert trace.text == "".join(whole[12])
    assert len(trace.confidence) == trace.num_tokens == 24
    assert (result.tokens.generated, result.tokens.lost) == (8 * 24, 12)
    assert sum(other.tries for other in result.traces) == 8 + 2


def test_a_trace_that_always_breaks_off_fails_and_costs_no_other(server: FalseServer) -> None:
    with OpenAI(server.url, tries=2) as engine:
        server.faults.damage = lambda chunk, n: chunk if n < 6 else b"data: [DONE]\n\n"
        server.faults.only = (12,)
        with pytest.warns(RunWarning) as caught:
            result = run(engine)
    assert any(
        "in the middle of the trace, after 6 tokens (try 2 of 2)" in str(w.message) for w in caught
    )
    assert [trace.status for trace in result.traces].count("finished") == 7
    assert result.traces[2].status == "failed"
    assert server.tries[12] == 2


@pytest.mark.parametrize("status", [429, 503])
def test_what_is_refused_is_asked_for_again(server: FalseServer, status: int) -> None:
    async def busy(request: web.Request, body: Any, tries: int) -> Any:
        if body["seed"] < 10 or tries > 2:
            return None
        return web.Response(status=status, headers={"Retry-After": "0"}, text="busy")

    with OpenAI(server.url) as engine:
        server.faults.before = busy
        with warned("was away or refused requests 16 times: tried again"):
            result = run(engine)
    assert {trace.status for trace in result.traces} == {"finished"}
    assert result.tokens.lost == 0


def test_patience_ends(server: FalseServer) -> None:
    async def busy(request: web.Request, body: Any, tries: int) -> Any:
        if body["seed"] != 12:
            return None
        return web.Response(status=503, headers={"Retry-After": "0"}, text=f"full, {KEY}")

    with OpenAI(server.url, api_key=KEY, patience=0.5) as engine:
        server.faults.before = busy
        with warned("1 of 8 traces failed, .*status 503: 'full, .key.'"):
            result = run(engine)
    assert result.traces[2].error is not None
    assert "for 0.5 seconds it was tried again" in result.traces[2].error


@pytest.mark.parametrize("where", ["first", "between", "comments"])
def test_what_does_not_come_in_time_is_tried_again(server: FalseServer, where: str) -> None:
    async def hang(request: web.Request, body: Any, tries: int) -> Any:
        if body["seed"] != 12 or tries > 1:
            return None
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        if where != "first":
            await response.prepare(request)
            for event in list(server._events(body, True, 11))[: 3 if where == "between" else 0]:
                await response.write(event)
        for _ in range(300):
            if where == "comments":
                await response.write(b": still here\n\n")
            await asyncio.sleep(0.01)
        return response

    with OpenAI(server.url, **{**QUICK, "patience": 60.0}) as engine:
        server.faults.before = hang
        with warned(f"1 of 8 traces broke off .*: {3 if where == 'between' else 0} tokens"):
            result = run(engine)
    assert {trace.status for trace in result.traces} == {"finished"}
    assert server.tries[12] == 2


def test_an_endless_stream_is_ended(server: FalseServer) -> None:
    with OpenAI(server.url, sampling={"max_tokens": 20}) as engine:
        original = server._events

        def endless(body: Any, chat: bool, k: Any) -> Any:
            if body["seed"] == 12:
                body = {**body, "max_tokens": 1_000_000}
                server.tokens = 24
                events = [e for e in original(body, chat, k) if b'finish_reason": null' in e]
                while True:
                    yield from events
            else:
                yield from original(body, chat, k)

        server._events = endless  # type: ignore[method-assign]
        with warned("1 of 8 traces failed, .*behind 20 tokens"):
            run(engine, WHOLE, answer=lambda text: "4")


def test_a_server_that_restarts_costs_no_trace(server: FalseServer) -> None:
    server.delay, server.tokens = 0.02, 30
    ended: list[int] = []
    with OpenAI(server.url) as engine:

        def restart() -> None:
            while len(ended) < 4:
                time.sleep(0.01)
            server.stop()
            time.sleep(0.2)
            server.restart()

        worker = threading.Thread(target=restart)
        worker.start()
        policy = WHOLE.replace(budget=12, concurrency=4)
        think = DeepThink(engine, policy, on_trace=lambda trace: ended.append(trace.trace))
        with pytest.warns(RunWarning):
            result = think.run("?")
        worker.join()
    assert {trace.status for trace in result.traces} == {"finished"}
    assert {trace.num_tokens for trace in result.traces} == {30}
    assert result.tokens.lost > 0
    assert max(trace.tries for trace in result.traces) == 2


def test_a_server_that_is_gone_ends_the_run_with_what_is_finished(server: FalseServer) -> None:
    server.delay, server.tokens = 0.01, 40
    ended: list[int] = []

    def gone(trace: Any) -> None:
        ended.append(trace.trace)
        if len(ended) == 4:
            server.stop()

    with OpenAI(server.url, **{**QUICK, "patience": 1.0}) as engine:
        think = DeepThink(engine, WHOLE.replace(budget=12, concurrency=4), on_trace=gone)
        with pytest.raises(EngineDied, match=r"cannot be reached.*for 1 seconds") as caught:
            think.run("?")
    assert caught.value.result is not None
    done = [trace for trace in caught.value.result.traces if trace.status == "finished"]
    assert len(done) >= 4


def test_an_error_in_the_middle_of_a_stream(server: FalseServer) -> None:
    error = f'data: {{"error": {{"message": "engine is dead, {KEY}", "code": 500}}}}\n\n'.encode()
    with OpenAI(server.url, tries=2, api_key=KEY) as engine:
        server.faults.damage, server.faults.only = at(3, lambda chunk: error), (12,)
        with warned("failed in the middle of a stream: .*engine is dead"):
            result = run(engine)
    assert result.traces[2].status == "failed"
    assert "engine is dead, [key]" in (result.traces[2].error or "")


def test_a_refusal_as_an_event_is_one(server: FalseServer) -> None:
    """As vLLM's server refuses what its engine finds wrong."""
    error = b'data: {"error": {"message": "logprobs of 21 are too many", "code": 400}}\n\n'
    original = server._events

    def refusing(body: Any, chat: bool, k: Any) -> Any:
        yield from [error] if k > 11 else original(body, chat, k)

    server._events = refusing  # type: ignore[method-assign]
    with OpenAI(server.url) as engine:
        assert engine.capabilities.top_logprobs == 11
        assert run(engine).warnings == ()
        with pytest.raises(InvalidInput, match=r"gives 11 a token.*status 400: .logprobs of 21"):
            run(engine, WHOLE.replace(top_logprobs=20))


def test_a_run_that_is_cancelled_while_it_waits_is_over_at_once(server: FalseServer) -> None:
    async def busy(request: web.Request, body: Any, tries: int) -> Any:
        if body["seed"] < 12:
            return None
        return web.Response(status=429, headers={"Retry-After": "3600"})

    with OpenAI(server.url) as engine:
        server.faults.before = busy
        start = time.monotonic()
        with warned("refused requests 6 times"):
            result = DeepThink(engine, WHOLE).run("?", timeout=0.5)
        assert time.monotonic() - start < 3
    assert [trace.status for trace in result.traces] == ["finished"] * 2 + ["aborted"] * 6
