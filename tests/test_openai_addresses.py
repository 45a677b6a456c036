"""Addresses that are none, keys, and servers of other kinds."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from deepconf.engines import OpenAI
from deepconf.errors import (
    EngineError,
    InvalidInput,
    InvalidType,
)
from false_server import KEY, MODEL, FalseServer
from test_openai_engine import run, server

__all__ = ["server"]


# ---- addresses, keys and other servers ----------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        ("localhost:8000", InvalidInput, "must be an address such as"),
        ("ftp://localhost/v1", InvalidInput, "must be an address such as"),
        ("http://", InvalidInput, "must be an address such as"),
        ("http://user:secret@localhost/v1", InvalidInput, "set api_key"),
        ("http://localhost/v1?key=secret", InvalidInput, "has a . or # in it"),
        ("http://localhost:99999/v1", InvalidInput, "is no address"),
        ("http://local host/v1", InvalidInput, "space"),
        (7, InvalidType, "base_url is a int"),
        ("http://127.0.0.1:9/v1", EngineError, "127.0.0.1:9 cannot be reached"),
        ("http://no-such-host.invalid/v1", EngineError, "no such host|cannot be reached"),
    ],
)
def test_addresses_that_are_none(url: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        OpenAI(url, "m")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"api_key": "a b"}, InvalidInput, "api_key has a space"),
        ({"api_key": "a\nb"}, InvalidInput, "api_key has a space, a line end"),
        ({"api_key": "schlüssel"}, InvalidInput, "not ASCII"),
        ({"api_key": " "}, InvalidInput, "api_key is empty"),
        ({"api_key": 7}, InvalidType, "api_key is a int"),
        ({"headers": {"X-A": "ü"}}, InvalidInput, r"headers\['X-A'\] has a letter"),
        ({"headers": {"X A": "a"}}, InvalidInput, "is no name of a header"),
        ({"sampling": {"n": 2}}, InvalidInput, r"sampling\['n'\] cannot be set"),
        ({"sampling": {"x": float("nan")}}, InvalidInput, "cannot be sent as JSON"),
        ({"sampling": [1]}, InvalidType, "sampling=.1.: must be a mapping"),
        ({"chat": "yes"}, InvalidInput, "chat='yes'"),
        ({"tries": 0}, InvalidInput, "tries=0"),
        ({"patience": -1}, InvalidInput, "patience=-1"),
        ({"token_timeout": "1"}, InvalidType, "token_timeout='1'"),
    ],
)
def test_arguments_that_cannot_be(
    server: FalseServer, arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        OpenAI(server.url, **arguments)
    assert "schl" not in str(caught.value)


def test_a_wrong_path_a_page_and_a_wrong_model_are_told(server: FalseServer) -> None:
    with pytest.raises(InvalidInput, match=r"lists no models \(status 404.*often ends in /v1"):
        OpenAI(server.root)
    with pytest.raises(InvalidInput, match=r"status 404.*is base_url right. It often ends in /v1"):
        OpenAI(server.root, MODEL)
    with pytest.raises(InvalidInput, match=r"model='other': http.* has 'tiny'"):
        OpenAI(server.url, "other")
    server.faults.models = [{"id": "a"}, {"id": "b"}]
    with pytest.raises(InvalidInput, match=r"model=None: http.* has 'a', 'b'"):
        OpenAI(server.url)
    server.faults.models = web.Response(text="<html>hello</html>", content_type="text/html")
    with pytest.raises(InvalidInput, match=r"lists no models .status 200, '<html>hello"):
        OpenAI(server.url)


def test_a_key_goes_to_its_server_only_and_into_no_message(
    server: FalseServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def guard(request: web.Request, body: Any, tries: int) -> Any:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            given = request.headers.get("Authorization")
            return web.json_response({"error": f"wrong key {given}"}, status=401)
        return None

    caplog.set_level(logging.DEBUG)
    server.faults.before = guard
    with pytest.raises(InvalidInput, match=r"status 401: .*it wants an API key"):
        OpenAI(server.url)
    with pytest.raises(InvalidInput, match="does not take this API key") as caught:
        OpenAI(server.url, api_key="sk-other")
    assert "sk-other" not in str(caught.value)
    with OpenAI(server.url, api_key=KEY, headers={"X-Team": "blue"}) as engine:
        result = run(engine)
        shown = [repr(engine), str(engine.capabilities), repr(result), str(result.summary())]
        shown += [json.dumps(engine.settings()), str(result.metadata), caplog.text]
        assert not any(KEY in text for text in shown)
    assert server.headers[-1]["X-Team"] == "blue"


def test_a_redirect_is_not_followed(server: FalseServer) -> None:
    with FalseServer() as other:

        async def elsewhere(request: web.Request, body: Any, tries: int) -> Any:
            raise web.HTTPTemporaryRedirect(f"{other.url}/chat/completions?key={KEY}")

        server.faults.before = elsewhere
        with pytest.raises(EngineError, match=r"redirects to .*, which is not followed") as caught:
            OpenAI(server.url, api_key=KEY)
        assert KEY not in str(caught.value)
        assert other.bodies == []


def raw(answer: bytes) -> Any:
    """An answer that no library would send."""

    async def before(request: web.Request, body: Any, tries: int) -> Any:
        assert request.transport is not None
        request.transport.write(answer)
        await asyncio.sleep(0.05)
        request.transport.close()
        return web.Response()

    return before


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\xff\r\n\r\n", "answers with|speak"),
        (
            b"HTTP/1.1 429 No\r\nRetry-After: \xff\xfe\r\nContent-Length: 0\r\n\r\n",
            "status 429|closed",
        ),
        (b"HTTP/1.1 200 OK\r\nno header at all\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", "does not speak HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        (b"", "closed the connection without an answer"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 500\r\n\r\nda",
            "the stream was cut",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            "the stream was cut|does not speak HTTP",
        ),
    ],
)
def test_answers_that_are_no_http(server: FalseServer, answer: bytes, says: str) -> None:
    server.faults.before = raw(answer)
    with pytest.raises(EngineError, match=says):
        OpenAI(server.url, patience=0.3)


def test_a_server_that_takes_connections_and_never_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deepconf.engines.openai._client._SHORT", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(EngineError, match="no answer in time"):
            OpenAI(f"http://127.0.0.1:{silent.getsockname()[1]}/v1")


STOPS = """
import sys
from deepconf import DeepThink, Policy
from deepconf.engines import OpenAI
small = {"window": 4, "tail": 4, "top_logprobs": 10}
policy = Policy.low(budget=128, warmup=6, min_ballots=1, stop="budget", **small)
with OpenAI(sys.argv[1], api_key=sys.argv[2]) as engine:
    result = DeepThink(engine, policy).run("2+2=?")
    print(result.answer, sum(trace.status == "stopped" for trace in result.traces), result.warnings)
"""


def test_tls_to_a_server_that_is_trusted(tmp_path: Path) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with FalseServer(tokens=60, delay=0.01, tls=context) as server:
        found = subprocess.run(  # The certificates that are trusted are read once.
            [sys.executable, "-c", STOPS, server.url, KEY],
            env={**os.environ, "SSL_CERT_FILE": str(tmp_path / "ca.pem")},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert server.headers[-1]["Authorization"] == f"Bearer {KEY}"
        assert server.most_running > 64
        end = time.monotonic() + 5
        while server.running and time.monotonic() < end:
            time.sleep(0.01)
        answer, stopped, warnings = found.stdout.split()
        assert (answer, warnings) == ("4", "()"), found.stderr
        assert server.closed - 1 == int(stopped) > 6  # The probe stops one, too.


def test_a_list_of_models_without_an_end(server: FalseServer) -> None:
    server.faults.models = web.Response(text=" " * (5 << 20))
    with pytest.raises(EngineError, match="answers with more than 4 MiB"):
        OpenAI(server.url)


def test_tls_that_is_not_trusted(server: FalseServer) -> None:
    with pytest.raises(EngineError, match="TLS fails"):
        OpenAI(server.url.replace("http:", "https:"), MODEL)  # It speaks plain HTTP.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)

    async def serve() -> asyncio.Server:
        return await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0, ssl=context)

    loop = asyncio.new_event_loop()
    listening = loop.run_until_complete(serve())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises(EngineError, match=r"TLS fails: .*certificate"):
            OpenAI(f"https://127.0.0.1:{port}/v1", MODEL)
    finally:
        loop.call_soon_threadsafe(listening.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
