"""What confidence costs on a real vLLM engine: `python benches/engine.py`.

The tiny reasoner answers the same questions in turn: plain, as vLLM gives final outputs with their
texts and as it gives deltas; with the log-probabilities that deepconf asks for; and through
`DeepThink`, which also scores and votes, with a stream for each trace, by the step, and scored in
the engine. Beside tokens a second: the CPU time that a token takes in this process, where vLLM's
front end and deepconf are, in the engine core's and in the worker's. All traces are generated to
`--max-tokens`, so that all do the same. `--model llama` has random weights and a vocabulary of
32,000.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import statistics
import tempfile
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


Way = Callable[[str, str], int]


def ways(
    client: VLLM, inside: VLLM, policy: deepconf.Policy, only: list[str]
) -> dict[str, tuple[VLLM, Way]]:
    """How the traces of a question can be had; each returns how many tokens there were."""
    k, sequences = policy.top_logprobs, policy.budget

    def plain(kind: str, **options: Any) -> tuple[VLLM, Way]:
        return client, lambda question, name: client.submit(
            generate(client, question, name, sequences, kind, **options)
        ).result()

    def through(engine: VLLM, facade: Any) -> tuple[VLLM, Way]:
        think = deepconf.DeepThink(facade, policy, answer=lambda _: "0", keep_confidence=False)
        return engine, lambda question, _: think.run(question).tokens.generated

    flat = {"logprobs": k, "flat_logprobs": True, "detokenize": False}
    all_of_them = {
        "vLLM, final outputs": plain("FINAL_ONLY"),
        "vLLM, final outputs, no texts": plain("FINAL_ONLY", detokenize=False),
        "vLLM, deltas, no texts": plain("DELTA", detokenize=False),
        f"vLLM, deltas, {k} log-probabilities, no texts": plain("DELTA", **flat),
        "DeepThink, by the trace": through(client, Streaming(client)),
        "DeepThink, by the step": through(client, client),
        "DeepThink, in the engine": through(inside, inside),
    }
    return {name: way for name, way in all_of_them.items() if any(part in name for part in only)}


def measured(way: Callable[[], int], engine: VLLM) -> dict[str, float]:
    """Tokens, tokens a second, and microseconds of CPU a token in each process."""
    core = psutil.Process(engine._llm.engine_core.resources.engine_manager.processes[0].pid)

    def seconds() -> list[float]:
        there = [core.cpu_times(), *(child.cpu_times() for child in core.children())]
        user_system = [times.user + times.system for times in there]
        return [time.perf_counter(), time.process_time(), user_system[0], sum(user_system[1:])]

    before = seconds()
    tokens = way()
    wall, here, there, worker = (b - a for a, b in zip(before, seconds(), strict=True))
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / wall,
        "front_end": 1e6 * here / tokens,
        "engine_core": 1e6 * there / tokens,
        "worker": 1e6 * worker / tokens,
    }


def random_llama(folder: Path) -> Path:
    """A Llama of random weights, 44 million parameters, and 32,000 words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(32_000)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0", unk_token="w1")
    wrapped.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--model", choices=["tiny", "llama"], default="tiny")
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
    with contextlib.ExitStack() as running:
        model = TINY / "model"
        if arguments.model == "llama":
            model = random_llama(Path(running.enter_context(tempfile.TemporaryDirectory())))
        most = max(arguments.sequences)
        client, inside = (
            running.enter_context(
                VLLM(model, sampling=sampling, max_num_seqs=most, scoring=scoring)
            )
            for scoring in ("client", "engine")
        )
        for sequences in arguments.sequences:
            policy = deepconf.Policy.offline(budget=sequences, **shown)
            these = ways(client, inside, policy, arguments.only)
            found: dict[str, list[dict[str, float]]] = {}
            if not report:
                for name, (_, way) in these.items():
                    way(questions[0], f"warm-{name}")
            for at, question in enumerate(questions):
                for name, (engine, way) in these.items():
                    work = functools.partial(way, question, f"{sequences}-{name}-{at}")
                    found.setdefault(name, []).append(measured(work, engine))
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


_THERE = ("engine core", "worker")


def show(sequences: int, rows: dict[str, dict[str, float]]) -> None:
    first = next(iter(rows.values()))
    table = Table(title=f"{sequences} sequences", title_justify="left", box=None)
    for name in ("", "tokens/s", "of plain", "front end, µs a token", "of plain", *_THERE):
        table.add_column(name, justify="right" if name else "left")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['tokens_per_second']:,.0f}",
            f"{row['tokens_per_second'] / first['tokens_per_second']:.2f}",
            f"{row['front_end']:.1f}",
            f"{row['front_end'] / first['front_end']:.2f}",
            f"{row['engine_core']:.1f}",
            f"{row['worker']:.1f}",
        )
    Console(highlight=False, width=120).print(table)


if __name__ == "__main__":
    main()
