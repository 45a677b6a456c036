"""The engine that drives a server, against vLLM's own on the tiny reasoner."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import deepconf
import numpy as np
import pytest
from aiohttp import web
from conftest import TINY
from deepconf import DeepThink, Policy, Result
from deepconf.commands import app
from deepconf.engines import VLLM, OpenAI
from deepconf.errors import EngineDied, InvalidInput, RunWarning
from false_server import Hosted
from test_deepthink_vllm import QUESTIONS, SETTINGS, SHIPPED, SMALL, check_decisions
from typer.testing import CliRunner

WAIT = 300
# The tiny reasoner has no chat template: what was asked is all there is.
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


class Server:
    """vLLM's server in processes of its own, which can be killed and started again."""

    def __init__(self, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._options = options
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the server)
        self._process: subprocess.Popen[bytes] | None = None
        self.begin()

    def begin(self) -> None:
        module = "vllm.entrypoints.openai.api_server"
        command = [sys.executable, "-m", module, "--model", str(TINY / "model"), "--port"]
        command += [str(self.port), "--host", "127.0.0.1", "--served-model-name", "tiny"]
        command += ["--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill"]
        command += ["--chat-template", TEMPLATE, *self._options]
        self._process = subprocess.Popen(
            command,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )

    def ready(self) -> None:
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.url}/models", timeout=5).close()
                return
            assert self._process is not None
            if self._process.poll() is not None:
                break
            time.sleep(0.2)
        self._log.seek(0)
        raise AssertionError(self._log.read()[-4000:].decode(errors="replace"))

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        self._log.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pytest.importorskip("vllm", exc_type=ModuleNotFoundError)
    running = Server("--max-logprobs", "11")
    try:
        running.ready()
        yield running
    finally:
        running.close()


@pytest.fixture
def engine(server: Server) -> Iterator[OpenAI]:
    server.ready()
    with OpenAI(server.url, sampling=SETTINGS["sampling"], patience=3 * WAIT) as made:
        yield made


def counted(server: Server, name: str) -> float:
    """What the server says itself, by the name of one of its metrics."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics").read().decode()
    lines = [line for line in text.splitlines() if line.startswith(f"vllm:{name}{{")]
    assert lines, name
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def running(server: Server) -> float:
    return counted(server, "num_requests_running")


def test_the_probe_finds_what_vllm_gives(engine: OpenAI) -> None:
    found = engine.capabilities
    assert (found.model, found.software, found.interface) == ("tiny", "vllm", "chat")
    assert (found.top_logprobs, found.usage, found.token_ids) == (11, True, True)
    assert (found.raw, found.abort, found.max_model_len) == (True, True, 384)
    assert found.seed in ("repeats", "differs")


@pytest.mark.parametrize(
    ("chat", "entries"), [(True, "topk"), (True, "returned"), (False, "returned")]
)
def test_the_same_seeds_give_the_same_traces_as_in_process(
    server: Server, tiny_engine: VLLM, chat: bool, entries: Any
) -> None:
    # One at a time: vLLM's numbers depend on what else is in a batch.
    policy = Policy.offline(budget=2, min_ballots=1, concurrency=1, entries=entries, **SMALL)
    here = DeepThink(tiny_engine, policy).run(QUESTIONS[1])
    with OpenAI(server.url, sampling=SETTINGS["sampling"], chat=chat) as engine:
        there = DeepThink(engine, policy).run(QUESTIONS[1])
    assert there.answer == here.answer
    assert there.warnings == here.warnings == ()
    for one, other in zip(there.traces, here.traces, strict=True):
        assert (one.seed, one.status, one.text) == (other.seed, other.status, other.text)
        np.testing.assert_array_equal(one.confidence, other.confidence)


def test_decisions_are_those_of_the_confidences(engine: OpenAI, server: Server) -> None:
    policy = Policy.low(budget=24, warmup=8, stop="budget", seed=1_000, **SMALL)
    result = DeepThink(engine, policy).run(QUESTIONS[0])
    check_decisions(result)
    stopped = [trace for trace in result.traces if trace.stop_token is not None]
    assert stopped
    # How soon a stop takes effect is a matter of the server's front end, which may lag behind.
    assert result.tokens.baseline is not None
    assert result.tokens.generated < result.tokens.baseline
    end = time.monotonic() + 5
    while running(server) and time.monotonic() < end:
        time.sleep(0.05)
    assert running(server) == 0


def test_the_prompt_of_a_question_is_computed_once(engine: OpenAI, server: Server) -> None:
    """As docs/servers.md says how to see."""
    names = ("prefix_cache_queries_total", "prefix_cache_hits_total")
    policy = Policy.offline(budget=8, min_ballots=1, concurrency=4, **SMALL)
    think = DeepThink(engine, policy, sampling={"max_tokens": 4}, answer=lambda _: "7")
    before = [counted(server, name) for name in names]
    think.run("12*3+" * 60 + "1=?")
    time.sleep(0.1)
    queries, hits = (counted(server, n) - b for n, b in zip(names, before, strict=True))
    assert queries == 8 * 303
    assert hits >= 4 * 256


def test_stop_strings_and_lengths(engine: OpenAI) -> None:
    policy = Policy.offline(budget=4, min_ballots=1, **SMALL)
    stopped = DeepThink(engine, policy, sampling={"stop": ["\\boxed"]}, answer=lambda _: "7")
    for trace in stopped.run(QUESTIONS[1]).traces:
        assert trace.status == "finished"
        assert "boxed" not in trace.text
    cut = DeepThink(engine, policy, sampling={"max_tokens": 20}, answer=lambda _: "7")
    for trace in cut.run(QUESTIONS[1]).traces:
        assert (trace.status, trace.num_tokens) == ("length", 20)


def test_the_command_line_asks_it(server: Server, tmp_path: Path) -> None:
    questions = tmp_path / "two.jsonl"
    questions.write_text("".join(f"{json.dumps(line)}\n" for line in SHIPPED[:2]))
    out, small = tmp_path / "run.jsonl", ["--budget", "8", "--window", "32", "--top-logprobs", "10"]
    common = ["eval", questions, "--url", server.url, "--out", out, "-p", "offline", *small]
    result = CliRunner().invoke(app, [str(word) for word in [*common, "--max-tokens", 320]])
    assert result.exit_code == 0, result.output
    assert f"note: tiny at {server.url}, chat completions" in " ".join(result.output.split())
    header, *records = map(json.loads, out.read_text().splitlines())
    assert header["capabilities"]["software"] == "vllm"
    assert [trace["status"] for trace in records[0]["result"]["traces"]] == ["finished"] * 8


def test_what_vllm_refuses_is_told_in_its_words(engine: OpenAI) -> None:
    with pytest.raises(InvalidInput, match=r"top_logprobs=12: .* gives 11 a token.*max-logprobs"):
        DeepThink(engine, Policy.offline(**SMALL | {"top_logprobs": 12}))
    with pytest.raises(InvalidInput, match=r"status 400: .*temperature"):
        DeepThink(engine, Policy.offline(**SMALL), sampling={"temperature": -1.0})
    think = DeepThink(engine, Policy.offline(budget=4, **SMALL))
    with pytest.raises(deepconf.EngineError, match=r"every trace failed.*status 400"):
        think.run("1" * 400)


class Gate(Hosted):
    """Stands before a server, kills it in the middle of some traces, and starts it again.

    However fast the server or this process is: of the answers after the first 20 only a part
    passes, and when eight of them are held all dies.
    """

    WHOLE, PART, HELD = 20, 32_768, 8

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server
        self._asked = self._held = 0
        self._start()

    def _route(self, router: web.UrlDispatcher) -> None:
        router.add_route("*", "/{path:.*}", self._pass)

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        self._transports.add(request.transport)
        self._asked += request.method == "POST"
        left = self.PART if self._asked > self.WHOLE and self._held < self.HELD else None
        headers = {"Content-Type": request.content_type}
        there = f"http://127.0.0.1:{self._server.port}{request.path_qs}"
        async with (
            aiohttp.ClientSession(read_bufsize=1 << 24) as session,
            session.request(
                request.method, there, data=await request.read(), headers=headers
            ) as answer,
        ):
            back = web.StreamResponse(status=answer.status)
            back.content_type = answer.content_type
            await back.prepare(request)
            async for part in answer.content.iter_any():
                await back.write(part[:left])
                if left is not None and (left := max(0, left - len(part))) == 0:
                    self._held += 1
                    if self._held == self.HELD:
                        threading.Thread(target=self._strike).start()
                    await asyncio.sleep(WAIT)  # Until all dies.
            return back

    def _strike(self) -> None:
        self.stop()
        self._server.kill()
        self._server.begin()
        self._server.ready()
        self.restart()


def test_a_server_that_is_killed_and_started_again_costs_no_trace(server: Server) -> None:
    server.ready()
    policy = Policy.offline(budget=48, concurrency=16, keep=1.0, **SMALL)
    with (
        Gate(server) as gate,
        OpenAI(gate.url, sampling=SETTINGS["sampling"], patience=3 * WAIT) as engine,
        pytest.warns(RunWarning) as caught,
    ):
        result = DeepThink(engine, policy).run(QUESTIONS[2])
    check(result, caught)


def check(result: Result, caught: Any) -> None:
    assert Counter(trace.status for trace in result.traces) == {"finished": 48}
    again = [trace for trace in result.traces if trace.tries > 1]
    assert len(again) >= Gate.HELD
    assert result.tokens.lost == sum(trace.lost_tokens for trace in again) > 0
    assert {trace.tries for trace in again} == {2}
    said = [str(warning.message) for warning in caught]
    assert any(f"{len(again)} of 48 traces broke off and began anew" in text for text in said)
    assert any("was away or refused requests" in text for text in said)
    for trace in result.traces:
        assert len(trace.confidence) == trace.num_tokens


def test_a_server_that_stays_away(server: Server, tmp_path: Path) -> None:
    server.ready()
    sampling: dict[str, Any] = SETTINGS["sampling"]
    with OpenAI(server.url, sampling=sampling, patience=2.0) as engine:
        ended: list[str] = []

        def gone(trace: Any) -> None:
            ended.append(trace.status)
            if len(ended) == 8:
                server.kill()

        # More than it can answer while it is struck.
        policy = Policy.offline(budget=2_000, concurrency=16, keep=1.0, **SMALL)
        think = DeepThink(engine, policy, on_trace=gone)
        with pytest.raises(EngineDied, match="cannot be reached") as caught:
            think.run(QUESTIONS[2])
    result = caught.value.result
    assert result is not None
    count = Counter(trace.status for trace in result.traces)
    assert count["finished"] >= 8
    assert json.dumps(result.summary())
