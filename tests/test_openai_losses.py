"""What a server does that would be a wrong result or a lost trace, were it not looked for."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import pytest
from aiohttp import web
from deepconf import DeepThink
from deepconf.commands import app
from deepconf.engines import OpenAI
from deepconf.engines.base import Signal
from deepconf.engines.openai._client import Client
from deepconf.engines.openai._events import Events
from deepconf.engines.openai._request import Request
from deepconf.errors import EngineError, InvalidInput, RunWarning
from false_server import KEY, FalseServer, content
from test_openai_engine import WHOLE, run, server, warned
from test_openai_faults import at, repeat_whole
from typer.testing import CliRunner

__all__ = ["server"]


# ---- what would be wrong without a word ---------------------------------------------------------


def test_a_text_without_log_probabilities_at_the_end_needs_a_count(server: FalseServer) -> None:
    def bare(chunk: Any, number: int) -> Any:
        if chunk["choices"][0]["finish_reason"]:
            chunk["choices"][0] |= {"logprobs": None, "delta": {"content": " \\boxed{5}"}}
        return chunk

    with OpenAI(server.url) as engine:
        server.faults.usage, server.faults.damage, server.faults.only = False, bare, (12,)
        with warned("1 of 8 traces failed, .*missing at the end, where a text of 9 bytes"):
            run(engine)


def test_lost_entries_show_in_the_text_and_uncounted_tokens_are_said(server: FalseServer) -> None:
    def lose(chunk: Any, number: int) -> Any:
        content(chunk).pop()
        return chunk

    server.faults.usage, server.faults.width_of_chunk = False, 6
    with OpenAI(server.url) as engine:
        with warned("neither token counts nor token ids"):
            run(engine)
        server.faults.damage, server.faults.only = lose, (12,)
        with warned("1 of 8 traces failed, .* the text .*: tokens are missing"):
            run(engine)


def test_a_masked_sampled_token_does_not_count(server: FalseServer) -> None:
    change = at(5, lambda chunk: content(chunk)[0].update(logprob=-9999.0))
    with OpenAI(server.url) as engine:
        server.faults.damage, server.faults.only = change, (12,)
        with warned("1 of 8 traces failed, .*-9999.* set logprob_floor"):
            run(engine, WHOLE.replace(entries="returned"))
        assert run(engine).warnings == ()


@pytest.mark.parametrize("mark", [["</think>"], ["</", "think", ">"]])
def test_thoughts_that_the_prompt_begins_are_no_answer(
    server: FalseServer, mark: list[str]
) -> None:
    words = server.words
    thoughts = [" maybe", " \\boxed{7}", "?"]
    server.words = lambda seed: [*thoughts, *words(seed)[:-2], *mark, *words(seed)[-2:]]  # type: ignore[method-assign]
    with OpenAI(server.url) as engine:
        assert run(engine).answer == "4"
        cut = DeepThink(engine, WHOLE, sampling={"max_tokens": 12})
        with warned("none of the 8 traces .* has an answer"):
            assert cut.run("?").answer is None


def test_completions_in_the_place_of_chats_are_said(server: FalseServer) -> None:
    server.faults.chat = False
    with OpenAI(server.url) as engine, warned("refuses chat .*there is no chat template"):
        run(engine)

    async def strict(request: web.Request, body: Any, tries: int) -> Any:
        return web.Response(status=400, text="seed: extra fields not permitted")

    server.faults.chat, server.faults.before = True, strict
    bodies = len(server.bodies)
    with pytest.raises(InvalidInput, match="seed: extra fields"):
        OpenAI(server.url)
    assert len(server.bodies) == bodies + 1


# ---- traces that need not be lost ---------------------------------------------------------------


def answering(server: FalseServer, end: bytes, cut: int, *, hang: bool = False) -> Any:
    """Answers with the events before `cut`, and this; then it hangs, or closes the connection."""

    async def before(request: web.Request, body: Any, tries: int) -> Any:
        if body["seed"] < 10:
            return None
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in list(server._events(body, True, body["top_logprobs"]))[:cut]:
            await response.write(event)
        await response.write(end)
        if hang:
            await asyncio.sleep(20)
        assert request.transport is not None
        request.transport.close()
        return response

    return before


ERROR = b'data: {"error": {"message": "no usage", "code": 500}}\n\n'


@pytest.mark.parametrize(
    ("cut", "end"), [(-1, b""), (-1, b"data: [DONE]\n\n"), (-2, b""), (-2, ERROR)]
)
def test_what_fails_behind_the_end_costs_no_trace(
    server: FalseServer, cut: int, end: bytes
) -> None:
    with OpenAI(server.url, tries=1) as engine:
        server.faults.before = answering(server, end, cut)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RunWarning)
            result = run(engine)
    assert {(trace.status, trace.tries) for trace in result.traces} == {("finished", 1)}
    assert result.answer == "4"


def test_a_trace_that_is_over_is_finished_though_its_stream_stays_open(
    server: FalseServer,
) -> None:
    with OpenAI(server.url) as engine:
        server.faults.before = answering(server, b"", -2, hang=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RunWarning)
            result = DeepThink(engine, WHOLE).run("?", timeout=3)
    assert {trace.status for trace in result.traces} == {"finished"}
    assert result.answer == "4"


def test_a_stop_of_a_trace_that_is_over_leaves_it_finished(server: FalseServer) -> None:
    async def stopped(engine: OpenAI) -> Any:
        whole = asyncio.ensure_future(
            engine.generate_into(
                lambda step: (),
                engine.prepare("?"),
                trace=0,
                request_id="one",
                seed=12,
                signal=Signal(top_logprobs=10),
            )
        )
        await asyncio.sleep(0.4)
        await engine.abort(["one"])
        return await whole

    with OpenAI(server.url) as engine:
        DeepThink(engine, WHOLE)
        server.faults.before = answering(server, b"", -2, hang=True)
        ending = engine.submit(stopped(engine)).result(5)
    assert (ending.finish_reason, ending.text) == ("finished", "".join(server.words(12)))


def test_tokens_before_an_error_in_one_read_are_lost_ones(server: FalseServer) -> None:
    async def fails(request: web.Request, body: Any, tries: int) -> Any:
        if body["seed"] not in (12, 13) or tries > 1:
            return None
        if body["seed"] == 13:
            return web.Response(status=500, text="boom")
        events = list(server._events(body, True, body["top_logprobs"]))[:4]
        return web.Response(body=b"".join(events) + ERROR, content_type="text/event-stream")

    with OpenAI(server.url) as engine:
        server.faults.before = fails
        with warned("2 of 8 traces broke off .*: 4 tokens"):
            result = run(engine)
    assert [(t.tries, t.lost_tokens) for t in result.traces[1:4]] == [(1, 0), (2, 4), (2, 0)]


def test_tokens_of_a_chunk_that_gives_a_trace_up_are_lost_ones(server: FalseServer) -> None:
    def give_up(chunk: Any, number: int) -> Any:
        if number == 1 and server.tries[12] == 1:
            chunk["choices"][0]["finish_reason"] = "abort"
        return chunk

    with OpenAI(server.url) as engine:
        server.faults.width_of_chunk, server.faults.damage, server.faults.only = 5, give_up, (12,)
        with warned("1 of 8 traces broke off .*: 10 tokens"):
            result = run(engine)
    assert [(t.tries, t.lost_tokens) for t in result.traces[1:4]] == [(1, 0), (2, 10), (1, 0)]


def test_endless_empty_data_lines_are_an_error() -> None:
    events = Events("http://x")
    feeds = (list(events.feed(b"data:\n" * 2730)) for _ in range(1000))
    with pytest.raises(EngineError, match="more than 8 MiB"):
        any(feeds)


def test_few_alternatives_may_be_alike(server: FalseServer) -> None:
    def coarse(chunk: Any, number: int) -> Any:
        for token in content(chunk):
            token["logprob"] = 0.0
            for place, entry in enumerate(token["top_logprobs"]):
                entry["logprob"] = -18.0 * place
        return chunk

    server.tokens = 200
    with OpenAI(server.url) as engine:
        server.faults.width_of_chunk, server.faults.damage = 5, coarse
        result = run(engine, WHOLE.replace(top_logprobs=2))
    assert {trace.status for trace in result.traces} == {"finished"}


def test_few_alternatives_that_are_alike_in_every_chunk_are_repeated(server: FalseServer) -> None:
    server.tokens = 200
    with OpenAI(server.url) as engine:
        server.faults.width_of_chunk = 5
        assert run(engine, WHOLE.replace(top_logprobs=3)).warnings == ()
        server.faults.damage = lambda chunk, _: repeat_whole(chunk) or chunk
        server.faults.only = (12,)
        with warned("1 of 8 traces failed, .* is the same .*: they are repeated .at token 8"):
            run(engine, WHOLE.replace(top_logprobs=3))


def test_a_try_that_ends_as_it_is_overdue_leaves_no_trace_deaf(
    server: FalseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Request._try

    async def attempt(self: Request) -> None:
        try:
            await original(self)
        finally:
            asyncio.get_running_loop().call_soon(self.overdue)

    async def hang(request: web.Request, body: Any, tries: int) -> Any:
        if body["seed"] < 10:
            return None
        if tries == 1:
            return web.Response(status=500)
        return await asyncio.sleep(20)

    monkeypatch.setattr(Request, "_try", attempt)
    with OpenAI(server.url, tries=2, first_token_timeout=0.5) as engine:
        server.faults.before = hang
        with pytest.raises(EngineError, match=r"first token .*`concurrency`.*try 2 of 2"):
            run(engine, WHOLE.replace(budget=2))


# ---- keys ---------------------------------------------------------------------------------------


def test_parts_of_headers_are_secrets(server: FalseServer) -> None:
    async def guard(request: web.Request, body: Any, tries: int) -> Any:
        return web.json_response({"error": "x" * 295 + f" not {KEY}"}, status=400)

    with OpenAI(server.url, headers={"X-Auth": f"Token {KEY}"}) as engine:
        end = engine._client.redacted(f"of {KEY} and Token")
        assert end == "of [key] and Token"
        assert engine._client.quoted("x" * 295 + f" not {KEY}").count("sk-") == 0
    server.faults.before = guard
    with pytest.raises(InvalidInput, match="status 400") as caught:
        OpenAI(server.url, api_key=KEY)
    assert "sk-" not in str(caught.value)


def test_the_key_does_not_go_to_metrics(
    server: FalseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []

    async def metrics(self: Client, path: str) -> Any:
        assert self._session is None or "Authorization" not in self._session.headers
        sent.append(path)
        return await original(self, path)

    original = Client.get
    monkeypatch.setattr(Client, "get", metrics)
    with OpenAI(server.url, api_key=KEY):
        assert f"{server.root}/metrics" in sent


def test_no_exception_behind_ours_has_the_key(server: FalseServer) -> None:
    async def broken(request: web.Request, body: Any, tries: int) -> Any:
        assert request.transport is not None
        request.transport.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        return web.Response()

    server.faults.before = broken
    with pytest.raises(EngineError, match="does not speak HTTP") as caught:
        OpenAI(server.url, api_key=KEY)
    error: BaseException | None = caught.value
    while error is not None:
        assert not type(error).__module__.startswith("aiohttp"), repr(error)
        error = error.__context__


@pytest.mark.parametrize("url", ["http://u:{}@h:x/v1", "u:{}@h/v1", "http://u:{}@[h/v1"])
def test_addresses_with_a_password_are_not_shown(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        OpenAI(url.format(KEY), "m")
    assert KEY not in str(caught.value)
    shown = CliRunner().invoke(app, ["think", "?", "--url", url.format(KEY), "--model", "m"])
    assert shown.exit_code != 0
    assert KEY not in shown.output + shown.stderr
