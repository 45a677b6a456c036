"""What confidence costs on a real vLLM engine: `python benches/engine.py`.

The tiny reasoner answers the same questions with 64 traces each, in turn: plain, with the
log-probabilities that deepconf asks for, and through `DeepThink`, which also scores and votes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import deepconf
from deepconf.engines import VLLM
from rich.console import Console
from rich.table import Table

TINY = Path(__file__).parent.parent / "examples" / "tiny-reasoner"
TRACES, ROUNDS = 64, 5

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


async def generate(engine: VLLM, question: str, name: str, **options: Any) -> int:
    """All traces of one question, as vLLM gives them; how many tokens there were."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    prompt = engine.prepare(question)

    async def one(seed: int) -> int:
        params = SamplingParams(
            **engine.sampling,
            seed=seed,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            **options,
        )
        tokens = 0
        async for output in engine._llm.generate(prompt, params, f"{name}-{seed}"):
            tokens += len(output.outputs[0].token_ids)
        return tokens

    return sum(await asyncio.gather(*map(one, range(TRACES))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    settings = json.loads((TINY / "deepconf.json").read_text())
    lines = (TINY / "calibration.jsonl").read_text().splitlines()[:ROUNDS]
    questions = [json.loads(line)["question"] for line in lines]
    policy = deepconf.Policy.offline(
        budget=TRACES,
        **{name: settings[name] for name in ("window", "tail", "top_logprobs")},
    )
    k = policy.top_logprobs
    found: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    with VLLM(TINY / "model", sampling=settings["sampling"]) as engine:
        think = deepconf.DeepThink(engine, policy)

        def plain(question: str, name: str) -> int:
            return engine.submit(generate(engine, question, name)).result()

        def with_logprobs(question: str, name: str) -> int:
            work = generate(engine, question, name, logprobs=k, flat_logprobs=True)
            return engine.submit(work).result()

        def through_deepthink(question: str, _: str) -> int:
            return think.run(question).tokens.generated

        ways = {
            "vLLM, plain": plain,
            f"vLLM, {k} flat log-probabilities": with_logprobs,
            "DeepThink": through_deepthink,
        }
        for way in ways.values():
            way(questions[0], f"warm-{id(way)}")
        for at, question in enumerate(questions):
            for name, way in ways.items():
                start = time.perf_counter()
                tokens = way(question, f"{name}-{at}")
                found.setdefault(name, []).append(tokens / (time.perf_counter() - start))
                counts[name] = counts.get(name, 0) + tokens
    low, high = min(counts.values()), max(counts.values())
    assert high - low <= 0.1 * high, f"the ways did different work: {counts}"
    rows = {name: statistics.median(speeds) for name, speeds in found.items()}
    if arguments.json:
        print(json.dumps({"tokens_per_second": rows}, indent=2))
        return
    first = next(iter(rows.values()))
    table = Table(title=f"{ROUNDS} questions, {TRACES} traces each", title_justify="left", box=None)
    for name in ("", "tokens/s", "of plain"):
        table.add_column(name, justify="right" if name else "left")
    for name, speed in rows.items():
        table.add_row(name, f"{speed:,.0f}", f"{speed / first:.0%}")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
