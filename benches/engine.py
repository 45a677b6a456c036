"""What confidence costs on a real vLLM engine: `python benches/engine.py`.

The tiny reasoner answers the same questions in turn: plain, as vLLM gives final outputs with their
texts and as it gives deltas; with the log-probabilities that deepconf asks for; and through
`DeepThink`, which also scores and votes, with a stream for each trace and by the step. Beside
tokens a second: the CPU time that a token takes in this process, where vLLM's front end and
deepconf are, and in the engine core's. All traces are generated to `--max-tokens`, so that all do
the same.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepconf
import psutil
from deepconf.engines import VLLM
from rich.console import Console
from rich.table import Table

TINY = Path(__file__).parent.parent / "examples" / "tiny-reasoner"

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


class Streaming:
    """An engine that is not asked for steps."""

    def __init__(self, engine: VLLM) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        if name == "generate_into":
            raise AttributeError(name)
        return getattr(self._engine, name)


async def generate(
    engine: VLLM, question: str, name: str, sequences: int, kind: str, **options: Any
) -> int:
    """All traces of one question, as vLLM gives them; how many tokens there were."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    prompt = engine.prepare(question)

    async def one(seed: int) -> int:
        params = SamplingParams(
            **engine.sampling, seed=seed, output_kind=RequestOutputKind[kind], **options
        )
        tokens = 0
        async for output in engine._llm.generate(prompt, params, f"{name}-{seed}"):
            tokens += len(output.outputs[0].token_ids)
        return tokens

    return sum(await asyncio.gather(*map(one, range(sequences))))


def ways(
    engine: VLLM, policy: deepconf.Policy, only: list[str]
) -> dict[str, Callable[[str, str], int]]:
    """How the traces of a question can be had; each returns how many tokens there were."""
    k, sequences = policy.top_logprobs, policy.budget

    def plain(kind: str, **options: Any) -> Callable[[str, str], int]:
        return lambda question, name: engine.submit(
            generate(engine, question, name, sequences, kind, **options)
        ).result()

    def through(engine: Any) -> Callable[[str, str], int]:
        think = deepconf.DeepThink(engine, policy, answer=lambda _: "0")
        return lambda question, _: think.run(question).tokens.generated

    flat = {"logprobs": k, "flat_logprobs": True, "detokenize": False}
    all_of_them = {
        "vLLM, final outputs": plain("FINAL_ONLY"),
        "vLLM, final outputs, no texts": plain("FINAL_ONLY", detokenize=False),
        "vLLM, deltas, no texts": plain("DELTA", detokenize=False),
        f"vLLM, deltas, {k} log-probabilities, no texts": plain("DELTA", **flat),
        "DeepThink, by the trace": through(Streaming(engine)),
        "DeepThink, by the step": through(engine),
    }
    return {name: way for name, way in all_of_them.items() if any(part in name for part in only)}


def measured(way: Callable[[], int], core: psutil.Process) -> dict[str, float]:
    """Tokens, tokens a second, and microseconds of CPU a token here and in the engine core."""

    def seconds() -> tuple[float, float, float]:
        times = core.cpu_times()
        return time.perf_counter(), time.process_time(), times.user + times.system

    before = seconds()
    tokens = way()
    wall, here, there = (b - a for a, b in zip(before, seconds(), strict=True))
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / wall,
        "front_end": 1e6 * here / tokens,
        "engine_core": 1e6 * there / tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--sequences", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names")
    arguments = parser.parse_args()
    settings = json.loads((TINY / "deepconf.json").read_text())
    lines = (TINY / "calibration.jsonl").read_text().splitlines()[: arguments.rounds]
    questions = [json.loads(line)["question"] for line in lines]
    sampling = settings["sampling"] | {"max_tokens": arguments.max_tokens, "ignore_eos": True}
    shown = {name: settings[name] for name in ("window", "tail", "top_logprobs")}
    report: dict[int, dict[str, dict[str, float]]] = {}
    with VLLM(TINY / "model", sampling=sampling, max_num_seqs=max(arguments.sequences)) as engine:
        core = psutil.Process(engine._llm.engine_core.resources.engine_manager.processes[0].pid)
        for sequences in arguments.sequences:
            policy = deepconf.Policy.offline(budget=sequences, **shown)
            found: dict[str, list[dict[str, float]]] = {}
            if not report:
                for name, way in ways(engine, policy, arguments.only).items():
                    way(questions[0], f"warm-{name}")
            for at, question in enumerate(questions):
                for name, way in ways(engine, policy, arguments.only).items():
                    work = functools.partial(way, question, f"{sequences}-{name}-{at}")
                    found.setdefault(name, []).append(measured(work, core))
            assert len({one["tokens"] for each in found.values() for one in each}) == 1
            report[sequences] = {
                name: {what: statistics.median(one[what] for one in each) for what in each[0]}
                for name, each in found.items()
            }
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    for sequences, rows in report.items():
        show(sequences, rows)


def show(sequences: int, rows: dict[str, dict[str, float]]) -> None:
    first = next(iter(rows.values()))
    table = Table(title=f"{sequences} sequences", title_justify="left", box=None)
    for name in ("", "tokens/s", "of plain", "front end, µs a token", "of plain", "engine core"):
        table.add_column(name, justify="right" if name else "left")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['tokens_per_second']:,.0f}",
            f"{row['tokens_per_second'] / first['tokens_per_second']:.2f}",
            f"{row['front_end']:.1f}",
            f"{row['front_end'] / first['front_end']:.2f}",
            f"{row['engine_core']:.1f}",
        )
    Console(highlight=False, width=120).print(table)


if __name__ == "__main__":
    main()
