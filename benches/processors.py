"""Logits processors alone, on made-up logits and one thread: `python benches/processors.py`.

What a step costs in vLLM's worker: the authors' processor (`reference_processor.py`), ours for the
V1 runner, and the tensor operations in ours, without which none can do. In turns; the best and the
median. The last groups of both are compared. On a CPU, where `.item()` waits for nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from deepconf.engines.vllm.inside._rows import Rows
from deepconf.engines.vllm.inside._watch import Watch
from reference_processor import Processor
from rich.console import Console
from rich.table import Table
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate

K, WINDOW = 10, 32
NEVER = -1e9
"""A threshold, nats, that no group falls below."""


def race(sequences: int, vocabulary: int, turns: int) -> dict[str, list[float]]:
    """Seconds a step of each."""
    logits = 3 * torch.randn(sequences, vocabulary)
    theirs, ours = Processor(None, logits.device, False), Rows(sequences, turns, lag=1)
    extra = {"conf_threshold": NEVER, "eos_token_id": 0, "conf_group_size": WINDOW, "conf_topk": K}
    asked = SamplingParams(extra_args=extra)
    theirs.update_state(
        BatchUpdate(sequences, [], [(place, asked, None, []) for place in range(sequences)], [])
    )
    for place in range(sequences):
        watch = Watch(str(place), K, WINDOW, threshold=NEVER, stop_token=0)
        ours.bind(place, SamplingParams(extra_args=watch.as_extra_args()), 0)
    places, unfinished = np.arange(sequences), np.zeros(sequences, bool)

    def step() -> None:
        ours.score(logits, places, unfinished)
        ours.force(logits, places)

    ways = {
        "the authors'": lambda: theirs.apply(logits),
        "ours": step,
        "log_softmax and topk": lambda: torch.log_softmax(logits, -1).topk(K),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    groups = [theirs.req_info[place].func.conf_grouped / WINDOW for place in range(sequences)]
    found = ours.fetch([str(place) for place in range(sequences)])
    means = [found[str(place)].confidence[-WINDOW:].mean() for place in range(sequences)]
    np.testing.assert_allclose(groups, means, rtol=1e-4)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[26, 32_000])
    parser.add_argument("--turns", type=int, default=60, help=f"at least {WINDOW}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("vocabulary", "sequences", "", "ms a step", "median", "µs a row", box=None)
    for vocabulary in arguments.vocabulary:
        for sequences in arguments.sequences:
            for name, seconds in race(sequences, vocabulary, arguments.turns).items():
                best, median = min(seconds), statistics.median(seconds)
                shown = f"{1e3 * best:.2f}", f"{1e3 * median:.2f}", f"{1e6 * best / sequences:.1f}"
                table.add_row(f"{vocabulary:,}", str(sequences), name, *shown)
    Console(highlight=False, width=100).print(table)


if __name__ == "__main__":
    main()
