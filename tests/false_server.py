"""A server with OpenAI's interface that does what it is told, and mostly what no server should.

It runs on a thread of its own. What it does wrong are attributes of `Faults`, which tests set while
it runs. Its model is arithmetic: trace and token decide every log-probability.
"""

from __future__ import annotations

import asyncio
import json
import math
import ssl
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web

KEY = "sk-very-secret-0123456789"
MODEL = "tiny"

Own = TypeVar("Own", bound="Hosted")


@dataclass
class Faults:
    """What is to go wrong; nothing by default."""

    software: str = "test"
    max_logprobs: int = 64
    """More are refused."""
    cut_k: int | None = None
    """More are cut without a word."""
    width_of_chunk: int = 1
    usage: bool = True
    usage_off: int = 0
    token_ids: bool = False
    crowd: bool = False
    """The sampled token takes the place of the least likely alternative, as on vLLM's server."""
    after_temperature: bool = False
    ignore_seed: bool = False
    unrepeatable: bool = False
    keep_running: bool = False
    metrics: bool = True
    chat: bool = True
    models: Any = field(default_factory=lambda: [{"id": MODEL, "owned_by": "test"}])
    style: str = "content"
    """Where reasoning goes: content, reasoning, reasoning_content, deepseek, think, harmony."""
    damage: Any = None
    """Is given each chunk and its number, and may change it or give bytes to send instead."""
    before: Any = None
    """Is given each request, its body and which try of its seed it is; what it answers is sent."""
    status: int = 200
    content_type: str = "text/event-stream"
    only: Any = None
    """Of which seeds chunks are damaged; None for all but the probe's."""


class Hosted:
    """An aiohttp application on a thread of its own, which can die and start again.

    A context manager. `_start` begins it, once it is made.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self._transports: set[Any] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._port: int | None = None

    def _route(self, router: web.UrlDispatcher) -> None:
        """Says what is answered by what."""
        raise NotImplementedError

    def _start(self) -> None:
        self._ready.clear()
        self._alive = True
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._open())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._rest())

    async def _rest(self) -> None:
        for transport in list(self._transports):
            transport.abort()  # As when a process is killed.
        await self._runner.cleanup()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _open(self) -> None:
        app = web.Application()
        self._route(app.router)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(
            self._runner,
            "127.0.0.1",
            self._port or 0,
            ssl_context=self.tls,
            backlog=1024,
            reuse_address=True,
        )
        await site.start()
        server: Any = site._server
        self._port = server.sockets[0].getsockname()[1]

    def die(self) -> None:
        """Ends it soon; of any thread, its own too."""
        if self._alive:
            self._alive = False
            self._loop.call_soon_threadsafe(self._loop.stop)

    def stop(self) -> None:
        self.die()
        self._thread.join()

    def restart(self) -> None:
        """At the same address."""
        self._start()

    @property
    def root(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.close()


class FalseServer(Hosted):
    """The server; a context manager.

    Attributes:
        faults: what it does wrong.
        bodies: what was asked for.
        headers: with which headers.
        tries: how often each seed was asked for.
        closed: streams that were closed before their end.
        running, most_running: streams that are open, and were at once.
    """

    def __init__(
        self,
        tokens: int = 24,
        answer: str = "4",
        delay: float = 0.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(tls)
        self.tokens = tokens
        self.answer = answer
        self.delay = delay
        self.faults = Faults()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.tries: Counter[Any] = Counter()
        self.closed = self.running = self.most_running = 0
        self._lingering = 0
        self._start()

    def _route(self, router: web.UrlDispatcher) -> None:
        router.add_get("/v1/models", self._models)
        router.add_get("/metrics", self._metrics)
        router.add_post("/v1/chat/completions", self._complete)
        router.add_post("/v1/completions", self._complete)

    # ---- what it answers ---------------------------------------------------------------------

    async def _models(self, _: web.Request) -> web.StreamResponse:
        if self.faults.models is None:
            return web.Response(status=404, text="<html>nothing here</html>")
        if isinstance(self.faults.models, web.Response):
            return self.faults.models
        return web.json_response({"object": "list", "data": self.faults.models})

    async def _metrics(self, _: web.Request) -> web.StreamResponse:
        if not self.faults.metrics:
            return web.Response(status=404)
        running = self.running + self._lingering
        text = f'# HELP x\nvllm:num_requests_running{{engine="0",model_name="m"}} {running}.0\n'
        return web.Response(text=text)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        self._transports.add(request.transport)
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(request.headers)
        seed = body.get("seed")
        self.tries[seed] += 1
        faults, chat = self.faults, "messages" in body
        if chat and not faults.chat:
            return _error(400, "there is no chat template")
        k = body.get("top_logprobs") if chat else body.get("logprobs")
        if k is not None and k > faults.max_logprobs:
            return _error(400, f"Requested sample logprobs of {k}, above {faults.max_logprobs}")
        if faults.before is not None:
            answer = await faults.before(request, body, self.tries[seed])
            if answer is not None:
                return answer
        headers = {"Content-Type": faults.content_type}
        response = web.StreamResponse(status=faults.status, headers=headers)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        whole = False
        try:
            await response.prepare(request)
            for event in self._events(body, chat, k):
                await response.write(event)
                if self.delay:
                    await asyncio.sleep(self.delay)
            whole = True
            await response.write_eof()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._transports.discard(request.transport)
            self.running -= 1
            self.closed += not whole
            if not whole and faults.keep_running:
                self._lingering += 1
        return response

    def _events(self, body: dict[str, Any], chat: bool, k: int | None) -> Any:
        faults, most = self.faults, body.get("max_tokens", 10_000)
        seed = 0 if faults.ignore_seed else body.get("seed") or 0
        if faults.unrepeatable:
            seed += sum(self.tries.values()) * 1_000
        words = self.words(seed)
        reason = "stop" if len(words) <= most else "length"
        words = words[:most]
        heat = body.get("temperature", 1.0) if faults.after_temperature else 1.0
        count = 0
        for number, start in enumerate(range(0, len(words), faults.width_of_chunk)):
            part = words[start : start + faults.width_of_chunk]
            tokens = [self._token(seed, start + i, word, k, heat) for i, word in enumerate(part)]
            count += len(part)
            chunk = self._chunk(part, tokens, start, chat)
            if start + len(part) == len(words):
                chunk["choices"][0]["finish_reason"] = reason
            damaged = faults.only is None and body.get("seed", 9) > 3
            if faults.damage is not None and (damaged or seed in (faults.only or ())):
                chunk = faults.damage(chunk, number)
            if isinstance(chunk, bytes):
                yield chunk
            elif chunk is not None:
                yield _event(chunk)
        if faults.usage:
            used = {"prompt_tokens": 3, "completion_tokens": count + faults.usage_off}
            yield _event({"choices": [], "usage": used})
        yield b"data: [DONE]\n\n"

    def words(self, seed: int) -> list[str]:
        """The tokens of a trace: thoughts, and the answer."""
        thoughts = [f" w{(seed * 7 + i * i) % 89}" for i in range(self.tokens - 2)]
        return [*thoughts, f" \\boxed{{{self.answer}}}", "."]

    def logprobs(self, seed: int, at: int, k: int, heat: float = 1.0) -> tuple[float, list[float]]:
        """The sampled token's, and the k likeliest."""
        sharp = (1.0 + seed % 6 * 0.4 + ((seed * 31 + at * 17) % 23) / 7) / heat
        weights = [math.exp(-sharp * j) for j in range(100)]
        logs = [math.log(w / sum(weights)) for w in weights]
        rank = 0 if (seed + at) % 5 else (seed + at) % 40
        return logs[rank], logs[:k]

    def _token(self, seed: int, at: int, word: str, k: int | None, heat: float) -> dict[str, Any]:
        if k is None:
            return {"token": word, "logprob": -1.0, "top_logprobs": []}
        k = min(k, self.faults.cut_k or k)
        own, likely = self.logprobs(seed, at, k, heat)
        if self.faults.crowd:  # The sampled token first, then the others, as many as fit.
            likely = [own, *(p for p in likely if p != own)][:k]
        tops = [{"token": f"t{j}", "logprob": p, "bytes": [116]} for j, p in enumerate(likely)]
        return {"token": word, "logprob": own, "bytes": [32], "top_logprobs": tops}

    def _chunk(
        self, words: list[str], tokens: list[dict[str, Any]], start: int, chat: bool
    ) -> dict[str, Any]:
        text = "".join(words)
        choice: dict[str, Any] = {"index": 0, "finish_reason": None}
        if self.faults.token_ids:
            choice["token_ids"] = list(range(len(words)))
        if chat:
            choice |= {"delta": {"content": text}, "logprobs": {"content": tokens}}
            thinking = start + len(words) < self.tokens - 1
            self._style(choice, text, tokens, thinking, start)
        else:
            choice |= {
                "text": text,
                "logprobs": {
                    "tokens": [token["token"] for token in tokens],
                    "token_logprobs": [token["logprob"] for token in tokens],
                    "top_logprobs": [_as_dict(token) for token in tokens],
                },
            }
        return {"id": "x", "object": "chunk", "model": MODEL, "choices": [choice]}

    def _style(
        self, choice: dict[str, Any], text: str, tokens: Any, thinking: bool, start: int
    ) -> None:
        style = self.faults.style
        if style in ("reasoning", "reasoning_content", "deepseek") and thinking:
            name = "reasoning_content" if style == "deepseek" else style
            choice["delta"] = {name: text, "content": None}
            if style == "deepseek":
                choice["logprobs"] = {"content": None, "reasoning_content": tokens}
        elif style == "think":
            last = start == self.tokens - 3
            before, after = "<think>" if not start else "", "</think>" if last else ""
            choice["delta"]["content"] = before + text + after
            tokens[0]["token"] = before + tokens[0]["token"] + after
        elif style == "harmony":
            last = start == self.tokens - 3
            before = "<|channel|>analysis<|message|>" if not start else ""
            after = "<|end|><|start|>assistant<|channel|>final<|message|>" if last else ""
            choice["delta"]["content"] = before + text + after
            tokens[0]["token"] = before + tokens[0]["token"] + after


# ---- damage to chunks ---------------------------------------------------------------------------


def content(chunk: Any) -> Any:
    choice = chunk["choices"][0]
    return choice["logprobs"]["content"] if choice["logprobs"] else []


def lose_logprobs(chunk: Any) -> None:
    chunk["choices"][0]["logprobs"] = None


def hide_reasoning(chunk: Any) -> None:
    chunk["choices"][0] |= {"delta": {"reasoning_content": "hm"}, "logprobs": None}


# ---- parts of answers ----------------------------------------------------------------------------


def _as_dict(token: dict[str, Any]) -> dict[str, float]:
    """With the sampled token, as completions have it."""
    found = {each["token"]: each["logprob"] for each in token["top_logprobs"]}
    if token["logprob"] not in found.values():
        found[token["token"]] = token["logprob"]
    return found


def _event(chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status)
