"""What confidence costs on a real vLLM engine: `python benches/engine.py`.

The tiny reasoner answers the same questions in turn: plain, as vLLM gives final outputs with their
texts and as it gives deltas; with the log-probabilities that deepconf asks for; through
`DeepThink`, which also scores and votes, with a stream for each trace, by the step, and scored in
the engine; and with the authors' logits processor (`reference_processor.py`) in vLLM's worker,
which decides on stops and gives out no scores: by itself, and with the log-probabilities from which
their package scores afterwards. That is not in it, nor is a vote. Three engines: vLLM's own,
one that scores, one with the authors' processor; only those that are used are started.

Beside tokens a second: the CPU time that a token takes in this process, where vLLM's front end and
deepconf are, in the engine core's and in the worker's. All traces are generated to `--max-tokens`,
so that all do the same. Before, all who score are held against vLLM's own log-probabilities, and
the authors' processor, with a threshold, against where these say that traces end (`check`).
`--model llama` has random weights and a vocabulary of 32,000.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import math
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepconf
import numpy as np
import psutil
from deepconf.engines import VLLM
from deepconf.engines.vllm import confidences
from rich.console import Console
from rich.table import Table

TINY = Path(__file__).parent.parent / "examples" / "tiny-reasoner"
CHECKED = 32
"""Traces that are looked at before anything is timed."""
REST = 1.5
"""Seconds before each measurement: a worker of vLLM's spins for one after its last step, and would
take the core from that of another engine."""
ENGINES: dict[str, dict[str, Any]] = {
    "client": {"scoring": "client"},
    "inside": {"scoring": "engine"},
    "reference": {"logits_processors": ["reference_processor:Processor"]},
}

Way = Callable[[VLLM, str, str], int]
"""Has an engine answer a question, under a name for its requests; how many tokens there were."""
Rows = dict[str, dict[str, float]]

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
    engine: VLLM,
    question: str,
    name: str,
    sequences: int,
    kind: str,
    take: Callable[[Any], Any] = lambda completion: len(completion.token_ids),
    **options: Any,
) -> list[list[Any]]:
    """All traces of one question, as vLLM gives them; of each what `take` finds in its outputs."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    prompt, output_kind = engine.prepare(question), RequestOutputKind[kind]

    async def one(seed: int) -> list[Any]:
        params = SamplingParams(**engine.sampling | options, seed=seed, output_kind=output_kind)
        outputs = engine._llm.generate(prompt, params, f"{name}-{seed}")
        return [take(output.outputs[0]) async for output in outputs]

    return await asyncio.gather(*map(one, range(sequences)))


def ways(policy: deepconf.Policy, only: list[str]) -> dict[str, tuple[str, Way]]:
    """How the traces of a question can be had, each with the engine that it takes."""

    def plain(kind: str, **options: Any) -> Way:
        def way(engine: VLLM, question: str, name: str) -> int:
            traces = generate(engine, question, name, policy.budget, kind, **options)
            return sum(map(sum, engine.submit(traces).result()))

        return way

    def through(facade: Callable[[VLLM], Any] = lambda engine: engine) -> Way:
        def way(engine: VLLM, question: str, _: str) -> int:
            return think(facade(engine), policy).run(question).tokens.generated

        return way

    k = policy.top_logprobs
    flat = {"logprobs": k, "flat_logprobs": True, "detokenize": False}
    theirs = reference(policy, threshold=-math.inf, end=0)
    all_of_them = {
        "vLLM, final outputs": ("client", plain("FINAL_ONLY")),
        "vLLM, final outputs, no texts": ("client", plain("FINAL_ONLY", detokenize=False)),
        "vLLM, deltas, no texts": ("client", plain("DELTA", detokenize=False)),
        f"vLLM, deltas, {k} log-probabilities, no texts": ("client", plain("DELTA", **flat)),
        "DeepThink, by the trace": ("client", through(Streaming)),
        "DeepThink, by the step": ("client", through()),
        "DeepThink, in the engine": ("inside", through()),
        "reference, final outputs": ("reference", plain("FINAL_ONLY", **theirs)),
        f"reference, {k} log-probabilities": (
            "reference",
            plain("FINAL_ONLY", logprobs=k, **theirs),
        ),
    }
    return {name: way for name, way in all_of_them.items() if any(part in name for part in only)}


def think(engine: Any, policy: deepconf.Policy, **options: Any) -> deepconf.DeepThink:
    kept = {"answer": lambda _: "0", "keep_confidence": False}
    return deepconf.DeepThink(engine, policy, **kept, **options)


def reference(policy: deepconf.Policy, threshold: float, end: int) -> dict[str, Any]:
    """What the authors' processor asks of a request, by their names."""
    extra = {"conf_group_size": policy.window, "conf_topk": policy.top_logprobs}
    return {"extra_args": {**extra, "conf_threshold": threshold, "eos_token_id": end}}


def check(engines: dict[str, VLLM], question: str, policy: deepconf.Policy) -> None:
    """Holds all who score against vLLM's own log-probabilities, on traces that end by themselves.

    `DeepThink` must find the same lowest groups, and the authors' processor must end traces with
    the token whose group is the first below a threshold, or where they end without it.
    """
    own, window = {"ignore_eos": False}, policy.window

    def traces(engine: VLLM, name: str, **options: Any) -> list[Any]:
        asked = (policy.budget, "FINAL_ONLY", lambda completion: completion)
        done = engine.submit(generate(engine, question, name, *asked, **own, **options))
        return [completion for [completion] in done.result()]

    free = traces(next(iter(engines.values())), "free", logprobs=policy.top_logprobs)
    found = [confidences(trace, k=policy.top_logprobs) for trace in free]
    lowest = deepconf.score(found, window=window).lowest_group
    for kind in engines.keys() & {"client", "inside"}:
        for engine in engines[kind], Streaming(engines[kind]):
            result = think(engine, policy, sampling=own).run(question)
            scores = [trace.scores.lowest_group for trace in result.traces]
            np.testing.assert_allclose(scores, lowest, rtol=1e-4)
    if "reference" not in engines:
        return
    engine = engines["reference"]
    groups = [groups_of(trace, window) for trace in found]
    threshold = widest_gap(np.concatenate(groups), *np.quantile(lowest, [0.25, 0.75]))
    end = engine._tokenizer.eos_token_id
    ended = traces(engine, "ended", **reference(policy, threshold, end))
    for one, other, means in zip(free, ended, groups, strict=True):
        below = np.flatnonzero(means < threshold)
        wanted = list(one.token_ids)
        if len(below):
            wanted = [*wanted[: window - 1 + below[0]], end]
        assert list(other.token_ids) == wanted
    stopped = sum(means.min(initial=np.inf) < threshold for means in groups)
    assert 0 < stopped < len(groups), f"{stopped} of {len(groups)} traces fall below {threshold}"


def groups_of(trace: np.ndarray, window: int) -> np.ndarray:
    """The mean of each full group, float64."""
    if len(trace) < window:
        return np.empty(0)
    return np.lib.stride_tricks.sliding_window_view(trace, window).mean(axis=1, dtype=float)


def widest_gap(values: np.ndarray, low: float, high: float) -> float:
    """Between two values within a range, where these are furthest apart: no rounding decides."""
    within = np.unique(values[(values >= low) & (values <= high)])
    at = np.diff(within).argmax()
    return float(within[at : at + 2].mean())


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


def race(engines: dict[str, VLLM], these: dict[str, tuple[str, Way]], questions: list[str]) -> Rows:
    """Each question in each way, in turns; medians."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in these}
    for question in questions:
        for name, (kind, way) in these.items():
            engine = engines[kind]
            time.sleep(REST)
            work = functools.partial(way, engine, question, uuid.uuid4().hex)
            found[name].append(measured(work, engine))
    assert len({one["tokens"] for each in found.values() for one in each}) == 1
    return {
        name: {what: statistics.median(one[what] for one in each) for what in each[0]}
        for name, each in found.items()
    }


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
    policy = deepconf.Policy.offline(budget=CHECKED, **shown)
    used = {kind for kind, _ in ways(policy, arguments.only).values()}
    report: dict[int, Rows] = {}
    with contextlib.ExitStack() as running:
        model = TINY / "model"
        if arguments.model == "llama":
            model = random_llama(Path(running.enter_context(tempfile.TemporaryDirectory())))
        common = {"sampling": sampling, "max_num_seqs": max(CHECKED, *arguments.sequences)}
        engines = {
            kind: running.enter_context(VLLM(model, **common, **options))
            for kind, options in ENGINES.items()
            if kind in used
        }
        check(engines, questions[0], policy)
        for sequences in arguments.sequences:
            these = ways(policy.replace(budget=sequences), arguments.only)
            if not report:
                race(engines, these, questions[:1])  # Warms up.
            report[sequences] = race(engines, these, questions)
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    for sequences, rows in report.items():
        show(sequences, rows)


_THERE = ("engine core", "worker")


def show(sequences: int, rows: Rows) -> None:
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
