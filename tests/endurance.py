"""Endurance: a thousand questions with 256 traces each through one vLLM engine.

`python tests/endurance.py --questions 1000 --scoring engine` (`make soak`) asks two at a time, the
traces cut at `--max-tokens`, with a callback that is slow now and then. Every tenth of the way it
looks at what there is: memory by process, file handles, threads, tasks, objects, requests that
deepconf, vLLM and its workers still know. After the first tenth nothing of this process may grow,
and no request may be left. At last the engine is killed in the middle of a question, and what was
finished must be in the error's result.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import time
import warnings
from collections import Counter
from pathlib import Path

import deepconf
import psutil
from chaos import TINY, WAIT, Broken
from deepconf import DeepThink, Policy, Result, Trace
from deepconf.engines import VLLM
from deepconf.errors import EngineDied

LINES = (TINY / "questions.jsonl").read_text().splitlines()
QUESTIONS = [json.loads(line)["question"] for line in LINES]
# What may come and go: threads of pools, handles of sockets, objects between two collections.
MARGINS = {"threads": 4, "file handles": 8, "objects": 2_000, "front end, MB": 32}


async def tasks() -> list[str]:
    """What deepconf has under way on this event loop."""
    codes = (getattr(task.get_coro(), "cr_code", None) for task in asyncio.all_tasks())
    package = str(Path(deepconf.__file__).parent)
    return [code.co_name for code in codes if code and code.co_filename.startswith(package)]


def look(engine: VLLM) -> dict[str, int]:
    """What there is while no question is asked."""
    me = psutil.Process()
    children = me.children(recursive=True)
    inside = 0 if engine._inside is None else engine.submit(engine._inside.count()).result(WAIT)
    found = {
        "requests": len(engine._steps._requests) + engine._llm.get_num_unfinished_requests(),
        "watched": inside,
        "tasks": len(engine.submit(tasks()).result(WAIT)),
        "threads": me.num_threads(),
        "file handles": sum(process.num_fds() for process in (me, *children)),
        "front end, MB": me.memory_info().rss >> 20,
    }
    for child in children:
        kind = child.name().partition("::")[2]
        if kind:
            name = f"{kind.lower()}, MB"
            found[name] = found.get(name, 0) + (child.memory_info().rss >> 20)
    gc.collect()
    return found | {"objects": len(gc.get_objects())}


def check(result: Result, budget: int) -> None:
    """Every trace is there, and has come to an end of its own or by the policy."""
    if len(result.traces) != budget and result.reason != "consensus":
        raise Broken(f"{len(result.traces)} traces: {result!r}")
    count = Counter(trace.status for trace in result.traces)
    if not count.keys() <= {"finished", "length", "stopped", "aborted"}:
        raise Broken(f"{count}: {result!r}")
    if result.tokens.generated != sum(trace.num_tokens for trace in result.traces):
        raise Broken(f"{result.tokens} is not what the traces have")


def unchanged(first: dict[str, int], now: dict[str, int]) -> None:
    for name in ("requests", "watched", "tasks"):
        if now[name]:
            raise Broken(f"{now[name]} {name} are left behind")
    for name, margin in MARGINS.items():
        if now[name] > first[name] + margin:
            raise Broken(f"{name}: {first[name]} after the first tenth, {now[name]} now")


async def last(think: DeepThink, engine: VLLM, ended: Counter[str]) -> None:
    """The engine is killed in the middle."""
    ended.clear()
    asked = asyncio.ensure_future(think.arun(QUESTIONS[0]))
    while ended["finished"] + ended["length"] < 8:
        await asyncio.sleep(0.01)
    for child in psutil.Process().children(recursive=True):
        if "EngineCore" in child.name():
            child.kill()
    began = time.monotonic()
    try:
        await asked
    except EngineDied as error:
        count = Counter(trace.status for trace in error.result.traces)
        if count["finished"] + count["length"] < 8:
            raise Broken(f"finished traces are lost: {count}") from None
        print(f"killed: {error} ({time.monotonic() - began:.1f} s later); {dict(count)}")
    else:
        raise Broken("a dead engine went unnoticed")


async def rounds(engine: VLLM, options: argparse.Namespace) -> None:
    settings = json.loads((TINY / "deepconf.json").read_text())
    shown = {name: settings[name] for name in ("tail", "top_logprobs")}
    dice, ended = random.Random(options.seed), Counter[str]()

    def on_trace(trace: Trace) -> None:
        ended[trace.status] += 1
        if dice.random() < 0.002:
            time.sleep(0.5)

    window = max(2, min(16, options.max_tokens // 2))
    policy = Policy.low(budget=options.traces, warmup=16, window=window, **shown)
    sampling = {"max_tokens": options.max_tokens}
    think = DeepThink(
        engine, policy, sampling=sampling, keep_confidence=False, on_trace=on_trace,
        # Traces are cut before they have an answer; so that they vote.
        answer=lambda text: text[-1:] or None,
    )  # fmt: skip
    first: dict[str, int] | None = None
    step = max(2, options.questions // 10)
    began, tokens = time.monotonic(), 0
    for number in range(0, options.questions, 2):
        two = [QUESTIONS[(number + i) % len(QUESTIONS)] for i in range(2)]
        for result in await asyncio.gather(*map(think.arun, two)):
            check(result, options.traces)
            tokens += result.tokens.generated
        if (number + 2) % step == 0:
            now = look(engine)
            seconds = time.monotonic() - began
            print(f"{number + 2} questions, {tokens:,} tokens, {seconds:.0f} s: {now}", flush=True)
            first = first or now
            unchanged(first, now)
    await last(think, engine, ended)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=1_000)
    parser.add_argument("--traces", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--scoring", choices=["client", "engine"], default="client")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # vLLM's own, and that a callback is slow.
    settings = json.loads((TINY / "deepconf.json").read_text())
    engine = VLLM(
        TINY / "model",
        sampling=settings["sampling"],
        scoring=options.scoring,
        max_num_seqs=options.traces,
    )
    with engine:
        asyncio.run(rounds(engine, options))
    print(f"{options.questions} questions of {options.traces} traces: sound")


if __name__ == "__main__":
    main()
