"""Servers that have no room, or are away for a while, and processes that have none."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from deepconf import DeepThink
from deepconf.engines import OpenAI
from deepconf.engines.openai._client import Client, Passing
from deepconf.engines.openai._descriptors import most_connections
from deepconf.engines.openai._patience import Patience
from false_server import FalseServer
from test_openai_engine import WHOLE, run, server, warned

__all__ = ["server"]


# ---- patience ------------------------------------------------------------------------------------


def test_the_probe_has_patience(server: FalseServer) -> None:
    async def loading(request: web.Request, body: Any, tries: int) -> Any:
        if sum(server.tries.values()) < 3:
            return web.Response(status=503, headers={"Retry-After": "0"}, text="Loading model")
        return None

    server.faults.before = loading
    OpenAI(server.url).close()
    server.faults.before = None
    with OpenAI(server.url) as engine:
        server.tries.clear()
        server.faults.before = loading
        assert DeepThink(engine, WHOLE).run("?").answer == "4"


def test_the_list_of_models_has_patience(
    server: FalseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a forwarder nothing is there while the model loads."""
    server.faults.models = [{"id": "tiny", "owned_by": "vllm", "max_model_len": 512}]
    get, asked = Client.get, 0

    async def loading(self: Client, path: str) -> tuple[int, str]:
        nonlocal asked
        asked += path == "/models"
        return (503, "no upstream") if asked < 3 else await get(self, path)

    monkeypatch.setattr(Client, "get", loading)
    for model in (None, "tiny"):
        asked = 0
        with OpenAI(server.url, model) as engine:
            found = engine.capabilities
        assert (found.software, found.max_model_len) == ("vllm", 512)
        assert asked == 3


def test_patience_begins_with_the_first_refusal(server: FalseServer) -> None:
    async def late(request: web.Request, body: Any, tries: int) -> Any:
        if body["seed"] != 12 or tries > 1:
            return None
        await asyncio.sleep(0.6)
        return web.Response(status=503)

    with OpenAI(server.url, patience=0.3) as engine:
        server.faults.before = late
        with warned("refused requests 1 times"):
            result = run(engine)
    assert {trace.status for trace in result.traces} == {"finished"}


def test_pauses_end_with_patience_and_grow_where_the_server_says_none() -> None:
    async def pauses() -> None:
        patience = Patience(60.0)
        assert patience.pause(3600.0) <= 60
        assert [patience.pause(0.0) < 30.1 for _ in range(2000)] == [True] * 2000
        assert patience.pause(0.0) >= 15

    asyncio.run(pauses())


def refusing(error: Any) -> Any:
    """Of seed 12 every stream fails so."""
    original = Client.stream

    @contextlib.asynccontextmanager
    async def stream(self: Client, path: str, body: Any) -> AsyncIterator[Any]:
        if body["seed"] == 12:
            raise error()
        async with original(self, path, body) as content:
            yield content

    return stream


def test_one_that_cannot_connect_ends_no_stream_that_delivers(
    server: FalseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.delay = 0.05
    monkeypatch.setattr(Client, "stream", refusing(lambda: Passing("it is away", away=True)))
    says = "1 of 8 traces failed, .*it is away .for 0.5 seconds"
    with OpenAI(server.url, patience=0.5) as engine, warned(says):
        result = run(engine)
    assert [trace.status for trace in result.traces].count("finished") == 7


def test_connections_that_close_without_an_answer_are_refusals(server: FalseServer) -> None:
    """As of a forwarder whose server is away."""

    async def away(request: web.Request, body: Any, tries: int) -> Any:
        if body["seed"] != 12 or tries > 4:
            return None
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    with OpenAI(server.url, tries=1) as engine:
        server.faults.before = away
        with warned("was away or refused requests 4 times"):
            result = run(engine)
    assert {trace.status for trace in result.traces} == {"finished"}


# ---- room ----------------------------------------------------------------------------------------


def test_waiting_for_room_is_no_timeout_while_others_get_tokens(server: FalseServer) -> None:
    server.delay = 0.02
    with OpenAI(server.url, first_token_timeout=0.6) as engine:
        room = asyncio.Semaphore(2)

        async def queue(request: web.Request, body: Any, tries: int) -> Any:
            async with room:
                await asyncio.sleep(0.5)

        server.faults.before = queue
        result = run(engine)
    assert {(trace.status, trace.tries) for trace in result.traces} == {("finished", 1)}


def test_waiting_for_room_is_no_refusal_while_others_get_tokens(server: FalseServer) -> None:
    """As of a server that takes fewer requests at once than the policy has traces."""
    server.delay = 0.05

    async def full(request: web.Request, body: Any, tries: int) -> Any:
        return web.Response(status=429) if server.running >= 4 else None

    with OpenAI(server.url, patience=0.6) as engine:
        server.faults.before = full
        with warned("refused requests"):
            result = run(engine)
    assert {trace.status for trace in result.traces} == {"finished"}


def test_too_few_descriptors_are_no_server_that_is_away() -> None:
    client = Client("http://h/v1", None, {}, 1.0, 1.0)
    found = client._failure(OSError(24, "Too many open files"), "http://h/v1", False)
    assert isinstance(found, Passing)
    assert (found.away, found.refused) == (False, True)
    assert "ulimit -n" in str(found)
    assert "concurrency" in str(found)


def test_streams_leave_files_for_the_rest_of_the_process(
    server: FalseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.delay = 0.01
    getrlimit = resource.getrlimit
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64 + 3, getrlimit(which)[1]))
    with OpenAI(server.url) as engine:
        server.most_running = 0
        with warned("8 traces at once, and this process may have 3 connections"):
            result = run(engine)
        assert run(engine, WHOLE.replace(concurrency=3)).warnings == ()
    assert {(trace.status, trace.tries) for trace in result.traces} == {("finished", 1)}
    assert server.most_running <= 4  # It may not know yet that one is over.


@pytest.mark.parametrize(
    ("limit", "most"), [(1, 1), (256, 192), (1024, 896), (resource.RLIM_INFINITY, None)]
)
def test_how_many_connections_a_process_may_have(
    monkeypatch: pytest.MonkeyPatch, limit: int, most: int | None
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    assert most_connections() == most
