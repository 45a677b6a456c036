"""What a server's tokens cost this process: `python benches/server.py`.

A server in a process of its own answers instantly, with chunks that it has made before: one token
with its log-probabilities each, as vLLM's server writes them. All streams are open at once. In turn
they are read and thrown away, which is what the client library takes; decoded and thrown away; and
followed by `DeepThink`, which checks, scores and votes. The confidences that come out are compared
with those that the server's numbers have.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import deepconf
import numpy as np
import psutil
from deepconf.engines import OpenAI
from rich.console import Console
from rich.table import Table

PACE = 20.0
"""Tokens a second of each stream, of a server that does not answer at once."""
DIFFERENT = 61
"""Chunks that are made before; token i of a trace is chunk seed + i modulo this."""


# ---- the server ----------------------------------------------------------------------------------


def logprobs(at: int, k: int) -> list[float]:
    """Of the k likeliest tokens at this place, float32 as of a model."""
    sharp = 0.5 + (at % DIFFERENT) / 20
    total = math.log(sum(math.exp(-sharp * j) for j in range(200)))
    return [float(np.float32(-sharp * j - total)) for j in range(k)]


def chunk(at: int, k: int) -> bytes:
    """An event with one token, as HTTP sends it."""

    def token(j: int, logprob: float) -> dict[str, Any]:
        name = f" word{j}"
        return {"token": name, "logprob": logprob, "bytes": [*name.encode()]}

    tops = [token(j, logprob) for j, logprob in enumerate(logprobs(at, k))]
    choice = {
        "index": 0,
        "delta": {"content": f" word{at}"},
        "logprobs": {"content": [{**tops[0], "token": f" word{at}", "top_logprobs": tops}]},
        "finish_reason": None,
        "token_ids": None,
    }
    return sent({"id": "chatcmpl-0123456789abcdef0123456789abcdef", "choices": [choice]})


def sent(event: Any) -> bytes:
    text = b"[DONE]" if event is None else json.dumps(event).encode()
    data = b"data: " + text + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def serve(port: Any, most: int) -> None:
    """Answers every request at once, for ever."""
    chunks: dict[int, list[bytes]] = {}

    def made(k: int) -> list[bytes]:
        return chunks.setdefault(k, [chunk(at, k) for at in range(DIFFERENT)])

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"GET"):
                    models = json.dumps({"data": [{"id": "instant", "owned_by": "bench"}]}).encode()
                    found = b"200 OK" if b"/models" in head else b"404 Not Found"
                    writer.write(
                        b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (found, len(models))
                    )
                    writer.write(models)
                    continue
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                pieces, first = made(body["top_logprobs"]), body.get("seed", 0)
                tokens = min(body["max_tokens"], most)
                await stream(writer, pieces, first, tokens, body.get("pace", 0.0))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def stream(
        writer: asyncio.StreamWriter, pieces: list[bytes], first: int, tokens: int, pace: float
    ) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
        for at in range(first, first + tokens):
            writer.write(pieces[at % DIFFERENT])
            await writer.drain()
            # The others' turn: one token of each at a time.
            await asyncio.sleep(1 / pace if pace else 0)
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
        usage = {"choices": [], "usage": {"completion_tokens": tokens}}
        writer.write(sent(end) + sent(usage) + sent(None) + b"0\r\n\r\n")
        await writer.drain()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=4096)
        port.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    asyncio.run(main())


# ---- who reads -----------------------------------------------------------------------------------


def request(k: int, tokens: int) -> dict[str, Any]:
    return {"model": "instant", "messages": [], "top_logprobs": k, "max_tokens": tokens}


async def read(url: str, streams: int, k: int, tokens: int, decode: bool) -> int:
    """Reads all streams at once; how many tokens there were."""
    import aiohttp
    from deepconf.engines.openai._events import Events

    async def one(session: aiohttp.ClientSession) -> int:
        events, count = Events(url), 0
        async with session.post(url, json=request(k, tokens)) as response:
            async for data in response.content.iter_any():
                if not decode:
                    count += data.count(b'"top_logprobs"')
                    continue
                for found in events.feed(data):
                    for choice in found.choices or ():
                        count += len((choice.logprobs and choice.logprobs.content) or ())
        return count

    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        return sum(await asyncio.gather(*(one(session) for _ in range(streams))))


def plain(url: str, streams: int, k: int, tokens: int, *, decode: bool) -> int:
    return asyncio.run(read(url, streams, k, tokens, decode))


def through(engine: OpenAI, streams: int, k: int, tokens: int, pace: float = 0.0) -> int:
    """A run, whose confidences are looked at."""
    policy = deepconf.Policy.offline(budget=streams, keep=1.0, top_logprobs=k, window=64, tail=64)
    think = deepconf.DeepThink(
        engine, policy, answer=lambda _: "0", sampling={"max_tokens": tokens, "pace": pace}
    )
    with np.errstate(all="raise"):
        result = think.run("?")
    each = np.float32([-np.mean(logprobs(at, k)) for at in range(DIFFERENT)])
    for trace in result.traces:
        assert trace.status == "length", trace
        places = (np.arange(tokens) + (trace.seed or 0)) % DIFFERENT
        np.testing.assert_array_equal(trace.confidence, each[places])
    return result.tokens.generated


def measured(work: Callable[[], int]) -> dict[str, float]:
    """Tokens a second, and microseconds of CPU a token in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / wall,
        "microseconds": 1e6 * cpu / tokens,
    }


def memory(base: str, streams: int, k: int, tokens: int, found: Any) -> None:
    """The most memory that a run takes beyond what there was, bytes; in a process of its own."""
    process = psutil.Process()
    with OpenAI(base, "instant", chat=True) as engine:
        through(engine, 8, k, 8)
        before = most = process.memory_info().rss
        done = threading.Event()

        def look() -> None:
            nonlocal most
            while not done.wait(0.02):
                most = max(most, process.memory_info().rss)

        looking = threading.Thread(target=look)
        looking.start()
        through(engine, streams, k, tokens, PACE)
        done.set()
        looking.join()
    found.value = most - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--streams", type=int, nargs="+", default=[32, 512])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--top-logprobs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    k, tokens = arguments.top_logprobs, arguments.tokens
    processes = multiprocessing.get_context("spawn")
    port = processes.Value("i", 0)
    server = processes.Process(target=serve, args=(port, 1 << 20), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.01)
    base = f"http://127.0.0.1:{port.value}/v1"
    report: dict[str, Any] = {}
    with OpenAI(base, "instant", chat=True) as engine:
        for streams in arguments.streams:
            url = f"{base}/chat/completions"
            ways: dict[str, Callable[[], int]] = {
                "aiohttp, bytes only": partial(plain, url, streams, k + 1, tokens, decode=False),
                "aiohttp, decoded": partial(plain, url, streams, k + 1, tokens, decode=True),
                "DeepThink": partial(through, engine, streams, k, tokens),
                f"DeepThink, {PACE:g} tokens/s each": partial(
                    through, engine, streams, k, tokens, PACE
                ),
            }
            found: dict[str, list[dict[str, float]]] = {}
            for _ in range(arguments.rounds):
                for name, way in ways.items():
                    found.setdefault(name, []).append(measured(way))
            assert {one["tokens"] for each in found.values() for one in each} == {streams * tokens}
            report[str(streams)] = {
                name: {what: statistics.median(one[what] for one in each) for what in each[0]}
                for name, each in found.items()
            }
            for length in (tokens, 4 * tokens):
                taken = processes.Value("q", 0)
                run = processes.Process(target=memory, args=(base, streams, k, length, taken))
                run.start()
                run.join()
                report[str(streams)].setdefault("memory", {})[str(length)] = taken.value
    server.terminate()
    server.join()
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    for streams, rows in report.items():
        show(int(streams), rows)


def show(streams: int, rows: dict[str, dict[str, float]]) -> None:
    taken = rows.pop("memory")
    table = Table(title=f"{streams} streams at once", title_justify="left", box=None)
    for name in ("", "tokens/s", "µs of CPU a token"):
        table.add_column(name, justify="right" if name else "left")
    for name, row in rows.items():
        table.add_row(name, f"{row['tokens_per_second']:,.0f}", f"{row['microseconds']:.1f}")
    console = Console(highlight=False, width=120)
    console.print(table)
    sizes = (f"{size / 1e6:.1f} MB with {tokens} tokens each" for tokens, size in taken.items())
    console.print(f"memory of a run at {PACE:g} tokens/s each: {', '.join(sizes)}\n")


if __name__ == "__main__":
    main()
