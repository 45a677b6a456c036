"""Which of the paper's effects follow from its definitions, on synthetic pools.

The paper's models and traces are not at hand. Its numbers are: of each benchmark four go in, the
accuracy of one trace, of the majority of 512 and of the vote of the top tenth by the lowest group,
and the mean length of a trace; and of each model one more, what `low` saves without consensus on
one benchmark. From these a pool is drawn, and what else the paper reports is replayed under the
presets `paper-low` and `paper-high`: accuracy and tokens online, warmup, consensus, window, budget.
Where the published tokens do not follow, another reading of its algorithm is tried: that all
warmup traces count towards the consensus, and not only those that reach the threshold. A minute.

python benches/paper.py docs/paper.svg
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepconf
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
from deepconf import Policy

SCALE = 64
"""Tokens of the paper's for one of ours, so that a window of 2,048 has 32."""
WINDOW = 2048 // SCALE
QUESTIONS, TRACES, BUDGET = 30, 1024, 512
BLOCK = WINDOW // 2
"""Confidence wanders from block to block."""
SINKING = {"DeepSeek-8B": 0.6, "Qwen3-8B": 3.5, "Qwen3-32B": 5.0}
"""How far confidence sinks to the end of a trace, in nats: what makes `low` without consensus save
about what it saves on AIME24, and for Qwen3-8B on AIME25."""


@dataclass(frozen=True)
class Row:
    """What the paper reports: accuracies in percent, tokens in hundreds of millions."""

    model: str
    benchmark: str
    pass_1: float
    majority: float
    top_10: float
    tokens: float
    high: tuple[float, float]
    """Accuracy and tokens (Table 10)."""
    low: tuple[float, float]
    warmups: tuple[tuple[float, float], ...]
    """Of `low` without consensus, at warmups of 8, 16 and 32 (Table 4)."""
    windows: tuple[float, ...]
    """Accuracy of the top tenth by lowest groups of 512, 1,024 and 2,048 tokens (Table 8)."""


CONSENSUS = (1.0, 0.95, 0.9, 0.85)
CONSENSUS_SAVED = {
    "high": {32: (16.5, 22.0, 27.7, 31.8), 512: (33.4, 54.7, 63.2, 69.0)},
    "low": {32: (15.0, 15.4, 22.9, 26.5), 512: (36.3, 52.8, 63.4, 69.6)},
}
"""Tokens less than without consensus, percent, of Qwen3-32B on AIME24 (Table 3)."""
WARMUPS, BUDGETS, WINDOWS = (8, 16, 32), (32, 64, 128, 256, 512), (512, 1024, 2048)

# Tables 1, 4, 8 and 10; the accuracy of one trace of Qwen3-8B is from the introduction.
ROWS = [
    Row("DeepSeek-8B", "AIME24", 83.0, 86.7, 93.3, 3.55, (86.7, 1.45), (92.5, 0.78),
        ((92.2, 1.60), (92.5, 1.51), (92.9, 1.52)), (92.8, 93.1, 93.3)),
    Row("DeepSeek-8B", "AIME25", 76.9, 82.3, 87.3, 4.01, (81.4, 2.37), (86.4, 1.24),
        ((86.0, 1.94), (86.4, 1.85), (86.7, 1.85)), (86.9, 87.1, 87.3)),
    Row("DeepSeek-8B", "HMMT25", 58.1, 69.6, 79.0, 4.49, (70.0, 3.43), (77.6, 1.60),
        ((76.8, 2.05), (77.6, 1.91), (78.2, 1.89)), (77.3, 77.8, 79.0)),
    Row("Qwen3-8B", "AIME25", 68.0, 82.6, 77.9, 2.77, (82.8, 1.99), (78.1, 1.31),
        ((78.5, 1.83), (78.1, 1.78), (78.2, 1.79)), (74.2, 76.6, 77.9)),
    Row("Qwen3-32B", "AIME24", 80.6, 85.3, 90.1, 2.00, (86.4, 0.88), (89.5, 0.66),
        ((89.2, 1.43), (89.5, 1.40), (90.1, 1.39)), (87.3, 86.8, 90.1)),
    Row("Qwen3-32B", "HMMT25", 51.9, 63.3, 64.4, 2.76, (63.6, 2.24), (64.5, 1.55),
        ((65.4, 1.94), (64.5, 1.90), (64.6, 1.89)), (62.6, 64.7, 64.4)),
]  # fmt: skip


@dataclass(frozen=True)
class Question:
    """How its traces answer, and how much surer the right ones are than the others."""

    right: float
    """The share of the right answer."""
    wrong: float
    """The share of the leading wrong answer; the rest is spread over eight more."""
    surer: float
    """In standard deviations between traces."""


def questions(row: Row) -> list[Question]:
    """Questions that give the row's three accuracies.

    Of those that the majority gets right, confidence turns some where it is wrong, or else it
    regains some that the majority misses: there right traces are few and surer. In all others it
    tells nothing.
    """
    won, kept = (round(share / 100 * QUESTIONS) for share in (row.majority, row.top_10))
    turned = [Question(0.70, 0.25, -1.5)] * max(won - kept, 0)
    regained = [Question(0.25, 0.50, 2.0)] * max(kept - won, 0)
    lost = [Question(0.05, 0.60, 0.0)] * (QUESTIONS - max(won, kept))
    others = turned + regained + lost
    count = QUESTIONS - len(others)
    share = (row.pass_1 / 100 * QUESTIONS - sum(q.right for q in others)) / count
    power = 0.5 / (1 - share) - 1  # The mean of 1 - u ** power / 2 is that share.
    shares = 1 - ((np.arange(count) + 0.5) / count) ** power / 2
    return [*(Question(float(s), float(1 - s) * 0.6, 0.0) for s in shares), *others]


def traces(row: Row) -> pa.Table:
    """A pool: how sure a trace is, how its confidence wanders, and how far it sinks to the end."""
    random = np.random.default_rng(0)
    sinking = SINKING[row.model]
    mean = row.tokens * 1e8 / (QUESTIONS * BUDGET) / SCALE
    answers, confidences, names = [], [], []
    for number, question in enumerate(questions(row)):
        others = (1 - question.right - question.wrong) / 8
        drawn = random.choice(10, TRACES, p=[question.right, question.wrong, *[others] * 8])
        quality = random.normal(size=TRACES) + question.surer * (drawn == 0)
        lengths = np.maximum(2 * WINDOW, mean * random.lognormal(-0.045, 0.3, TRACES)).astype(int)
        for answer, sure, n in zip(drawn, quality, lengths, strict=True):
            wander = np.repeat(random.normal(size=n // BLOCK + 1), BLOCK)[:n]
            sunk = sinking * np.linspace(0, 1, n)
            level = 20 + 0.5 * (sure + wander) - sunk * (2 - 0.5 * sure)
            confidences.append((level + random.normal(size=n)).astype(np.float32))
            answers.append(str(answer))
        names += [f"q{number}"] * TRACES
    return pa.table(
        {
            "question_id": names,
            "trace": pa.array(np.tile(np.arange(TRACES), QUESTIONS), pa.int32()),
            "answer": answers,
            "status": ["finished"] * len(answers),
            "num_tokens": pa.array(list(map(len, confidences)), pa.int32()),
            "confidence": pa.array(confidences, pa.list_(pa.float32())),
            "correct": [answer == "0" for answer in answers],
        }
    )


def policies() -> dict[str, Policy]:
    """All that the paper compares.

    Behind the warmup there is one trace at a time, as there, so none is generated in vain.
    """
    plain: dict[str, Any] = {"budget": BUDGET, "window": WINDOW, "tail": WINDOW}
    ranked = plain | {"measure": "lowest_group", "weight": "lowest_group"}
    found = {
        "pass@1": Policy.offline(**plain | {"budget": 1}, keep=1.0, weight="majority"),
        "majority": Policy.offline(**plain, keep=1.0, weight="majority"),
    }
    for tokens in WINDOWS:
        settings = ranked | {"window": tokens // SCALE}
        found[f"top 10%, window {tokens}"] = Policy.offline(**settings, keep=0.1)
    for name in ("low", "high"):
        online = Policy.preset(f"paper-{name}", **plain, concurrency=1)
        for budget in BUDGETS:
            at = online.replace(budget=budget)
            found[f"{name}, budget {budget}, no consensus"] = at.replace(stop="budget")
            for consensus in CONSENSUS:
                found[f"{name}, budget {budget}, {consensus}"] = at.replace(consensus=consensus)
        for warmup in WARMUPS:
            at = online.replace(warmup=warmup, stop="budget")
            found[f"{name}, warmup {warmup}"] = at
    return found


def counting_all(pool: pa.Table, repeats: int = 8) -> dict[str, float]:
    """Tokens of `low` by the other reading: consensus among all warmup traces and those kept."""
    confidences = pool["confidence"].combine_chunks()
    lowest = deepconf.score(confidences, window=WINDOW, tail=WINDOW).lowest_group
    groups = [
        np.convolve(c, np.full(WINDOW, 1 / WINDOW), "valid") for c in confidences.to_numpy(False)
    ]
    votes = np.eye(10)[np.array(pool["answer"].to_pylist(), int)]
    random = np.random.default_rng(0)
    spent: dict[str, list[int]] = {}
    for question in range(QUESTIONS):
        for _ in range(repeats):
            drawn = question * TRACES + random.permutation(TRACES)[:BUDGET]
            warm = np.arange(BUDGET) < WARMUPS[1]
            threshold = np.quantile(lowest[drawn[warm]], 0.9, method="lower")
            below = [groups[trace] < threshold for trace in drawn]
            ends = [
                len(b) if w or not b.any() else int(b.argmax())
                for w, b in zip(warm, below, strict=True)
            ]
            tokens = np.cumsum(np.add(ends, WINDOW - 1))
            counted = warm | (lowest[drawn] >= threshold)
            heads = np.cumsum(votes[drawn] * counted[:, None], axis=0)
            share = heads.max(axis=1) / heads.sum(axis=1)
            for budget, consensus in itertools.product(BUDGETS, CONSENSUS):
                agreed = np.flatnonzero(share[WARMUPS[1] - 1 : budget] >= consensus)
                last = WARMUPS[1] - 1 + agreed[0] if len(agreed) else budget - 1
                name = f"low, counting all, budget {budget}, {consensus}"
                spent.setdefault(name, []).append(int(tokens[last]))
    return {name: float(np.mean(each)) for name, each in spent.items()}


class Played:
    """Accuracy, and tokens against those of all 512 traces, of each policy on a row's pool."""

    def __init__(self, row: Row) -> None:
        chosen = policies()
        pool = traces(row)
        played = deepconf.replay(pool, chosen, repeats=64)
        place = {name: at for at, name in enumerate(chosen)}
        self._accuracy = {n: 100 * float(played.correct[at].mean()) for n, at in place.items()}
        self._tokens = {n: float(played.tokens[at].mean()) for n, at in place.items()}
        self._tokens |= counting_all(pool)

    def accuracy(self, name: str) -> float:
        """Percent."""
        return self._accuracy[name]

    def saved(self, name: str, of: str = "majority") -> float:
        """Tokens less than another policy's, in percent."""
        return 100 * (1 - self._tokens[name] / self._tokens[of])


Pair = tuple[float, float]
"""As published, and replayed."""


def pairs(row: Row, played: Played) -> dict[str, Pair]:
    """Every figure of a row that the paper has."""

    def saved(tokens: float) -> float:
        return 100 * (1 - tokens / row.tokens)

    found = {
        "pass@1, given": (row.pass_1, played.accuracy("pass@1")),
        "majority, given": (row.majority, played.accuracy("majority")),
        "top 10%, given": (row.top_10, played.accuracy("top 10%, window 2048")),
    }
    for name, (accuracy, tokens) in (("low", row.low), ("high", row.high)):
        online = f"{name}, budget 512, 0.95"
        found[f"{name}, accuracy"] = (accuracy, played.accuracy(online))
        found[f"{name}, saved"] = (saved(tokens), played.saved(online))
    other = "low, counting all"
    found[f"{other}, saved"] = (saved(row.low[1]), played.saved(f"{other}, budget 512, 0.95"))
    for warmup, (accuracy, tokens) in zip(WARMUPS, row.warmups, strict=True):
        name = f"low, warmup {warmup}"
        found[f"{name}, accuracy"] = (accuracy, played.accuracy(name))
        found[f"{name}, saved"] = (saved(tokens), played.saved(name))
    for window, accuracy in zip(WINDOWS, row.windows, strict=True):
        found[f"window {window}, accuracy"] = (
            accuracy,
            played.accuracy(f"top 10%, window {window}"),
        )
    return found


def by_consensus(played: Played) -> dict[tuple[str, int], list[Pair]]:
    """What early consensus saves at each threshold, by policy and budget."""
    found = {}
    for name in ("high", "low", "low, counting all"):
        like = name.removesuffix(", counting all")
        for budget, published in CONSENSUS_SAVED[like].items():
            plain = f"{like}, budget {budget}, no consensus"
            mine = [played.saved(f"{name}, budget {budget}, {c}", plain) for c in CONSENSUS]
            found[name, budget] = list(zip(published, mine, strict=True))
    return found


def draw(
    figures: dict[Row, dict[str, Pair]],
    consensus: dict[tuple[str, int], list[Pair]],
    budgets: dict[str, list[Pair]],
    target: Path,
) -> None:
    """Published against replayed; consensus; budgets."""
    mpl.rcParams.update({"svg.hashsalt": "deepconf", "font.size": 9})
    figure, axes = plt.subplots(2, 2, figsize=(8, 7))
    kinds = {
        "accuracy": ["low, accuracy", "high, accuracy"],
        "saved": ["low, saved", "high, saved", "low, counting all, saved", "low, warmup 16, saved"],
    }
    for ax, (kind, names) in zip(axes[0], kinds.items(), strict=True):
        for name in names:
            label = name.removesuffix(f", {kind}").replace("warmup 16", "no consensus")
            ax.scatter(*zip(*(row[name] for row in figures.values()), strict=True), label=label)
        low, high = min(ax.get_xlim()[0], ax.get_ylim()[0]), max(ax.get_xlim()[1], ax.get_ylim()[1])
        ax.plot([low, high], [low, high], color="grey", linewidth=0.8)
        ax.set_xlabel(f"published: {'accuracy' if kind == 'accuracy' else 'tokens saved'}, %")
        ax.set_ylabel("replayed on synthetic pools, %")
    for (name, budget), rows in consensus.items():
        if budget != BUDGET:
            continue
        published, replayed = zip(*rows, strict=True)
        color = {"low": "C0", "high": "C1", "low, counting all": "C2"}[name]
        axes[1, 0].plot(CONSENSUS, replayed, "--", marker="o", color=color, label=name)
        if name in CONSENSUS_SAVED:
            axes[1, 0].plot(CONSENSUS, published, marker="o", color=color)
    axes[1, 0].set_xlabel("consensus (dashed: replayed)")
    axes[1, 0].set_ylabel("tokens saved by it, %\nQwen3-32B on AIME24, budget 512")
    for name, points in budgets.items():
        accuracy, tokens = zip(*points, strict=True)
        axes[1, 1].plot(tokens, accuracy, marker="o", label=name)
    axes[1, 1].set_xscale("log", base=2)
    axes[1, 1].set_xlabel("tokens, % of 512 whole traces")
    axes[1, 1].set_ylabel("replayed accuracy, budgets 32 to 512, %\nDeepSeek-8B on HMMT25")
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Print every figure, as published and as replayed; draw them where a file is named."""
    figures, consensus, budgets = {}, {}, {}
    for row in ROWS:
        played = Played(row)
        figures[row] = pairs(row, played)
        if (row.model, row.benchmark) == ("Qwen3-32B", "AIME24"):
            consensus = by_consensus(played)
        if (row.model, row.benchmark) == ("DeepSeek-8B", "HMMT25"):
            for name in ("low", "high"):
                runs = [f"{name}, budget {budget}, 0.95" for budget in BUDGETS]
                budgets[name] = [(played.accuracy(run), 100 - played.saved(run)) for run in runs]
    print(f"{'published, replayed; %':32}" + "".join(f"{r.model[:11]:>14}" for r in ROWS))
    print(" " * 32 + "".join(f"{row.benchmark:>14}" for row in ROWS))
    for name in figures[ROWS[0]]:
        cells = (figures[row][name] for row in ROWS)
        print(f"{name:32}" + "".join(f"{was:7.1f}{now:7.1f}" for was, now in cells))
    print("\nSaved by consensus 1.0, 0.95, 0.9, 0.85; Qwen3-32B on AIME24")
    for (name, budget), rows in consensus.items():
        cells = "".join(f"{was:7.1f}{now:7.1f}" for was, now in rows)
        print(f"{name}, budget {budget}".ljust(32) + cells)
    if len(sys.argv) > 1:
        draw(figures, consensus, budgets, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
