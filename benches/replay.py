"""Replays beside the controller driven token by token, and the pass over tokens beside `score`.

Every number is checked: the runs of a subset must be those of the controller, to the bit.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import deepconf
import numpy as np
import pyarrow as pa
from deepconf.lab._draws import draws

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from slow_replay import Recorded, slow_replay

GRID = {
    "keep": [0.1, 0.3, 0.5, 0.7, 0.9],
    "warmup": [8, 16],
    "consensus": [0.9, 0.95],
    "budget": [32, 64, 96, 112, 128],
}


def pool(traces: int, tokens: int) -> list[Recorded]:
    """One question: traces of half to all of `tokens`, noise around a level that wanders."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(traces):
        n = int(random.integers(tokens // 2, tokens + 1))
        level = np.repeat(random.normal(scale=0.1, size=n // 64 + 1).cumsum(), 64)[:n]
        confidence = (10 + level + random.normal(scale=4, size=n)).clip(0.1, 40)
        answer = "right" if random.random() < 0.6 else f"wrong {random.integers(6)}"
        found.append(Recorded(confidence.astype(np.float32), answer, correct=answer == "right"))
    return found


def batch(question: str, traces: list[Recorded]) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "question_id": [question] * len(traces),
            "trace": pa.array(range(len(traces)), pa.int32()),
            "answer": [trace.answer for trace in traces],
            "status": [trace.status for trace in traces],
            "num_tokens": pa.array([len(t.confidence) for t in traces], pa.int32()),
            "confidence": pa.array([t.confidence for t in traces], pa.list_(pa.float32())),
            "correct": [trace.correct for trace in traces],
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=30)
    parser.add_argument("--traces", type=int, default=4_096)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--repeats", type=int, default=64)
    arguments = parser.parse_args()
    traces = pool(arguments.traces, arguments.tokens)
    first = batch("q0", traces)
    # The same traces under other names: what takes time is the same.
    names = [f"q{at}" for at in range(arguments.questions)]

    def batches() -> Iterator[pa.RecordBatch]:
        at = first.schema.get_field_index("question_id")
        for name in names:
            ids = pa.array([name] * len(traces))
            for start in range(0, len(traces), 256):
                yield first.set_column(at, "question_id", ids).slice(start, 256)

    tokens = sum(len(trace.confidence) for trace in traces)
    start = time.perf_counter()
    deepconf.score(first.column("confidence"))
    scored = time.perf_counter() - start

    policies = deepconf.grid({"low": deepconf.Policy.low()}, **GRID)
    start = time.perf_counter()
    reader = pa.RecordBatchReader.from_batches(first.schema, batches())
    read = deepconf.Pool.read(reader, policies)
    passed = time.perf_counter() - start
    whole = tokens * len(names)
    print(f"{len(names)} questions x {len(traces):,} traces, {whole:,} tokens")
    print(f"score: {tokens / scored / 1e6:,.0f} million tokens/s")
    print(f"the pass for {len(policies)} policies: {whole / passed / 1e6:,.0f} million tokens/s")

    start = time.perf_counter()
    played = read.replay(repeats=arguments.repeats)
    took = time.perf_counter() - start
    runs = played.tokens.size + 2 * len(played.frontier.budgets) * len(names) * arguments.repeats
    per_run = took / runs
    print(
        f"grid: {len(policies)} policies x {arguments.repeats} repeats and majority at "
        f"{len(played.frontier.budgets)} budgets: {took:.2f} s, {per_run * 1e6:.1f} us a run"
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory: {peak:,.0f} MB")

    # Some runs of the first question, token by token.
    subset = list(itertools.islice(policies.items(), 0, None, len(policies) // 4))
    most = max(policy.budget for policy in policies.values())
    order = draws(len(traces), most, 1, 0, "q0")[0]
    slow = 0.0
    for label, policy in subset:
        start = time.perf_counter()
        expected = slow_replay(traces, policy, order[: policy.budget].tolist())
        slow += time.perf_counter() - start
        at = list(played.policies).index(label)
        assert played.tokens[at, 0, 0] == expected.tokens
        assert played.steps[at, 0, 0] == expected.steps
        assert bool(played.correct[at, 0, 0]) == expected.correct
        assert played.columns["stopped"][at, 0, 0] == expected.stopped
        threshold = played.columns["threshold"][at, 0, 0]
        assert expected.threshold is None or threshold == expected.threshold
    ratio = slow / len(subset) / per_run
    print(f"the controller driven token by token: {slow / len(subset):.2f} s a run, {ratio:,.0f} x")


if __name__ == "__main__":
    main()
