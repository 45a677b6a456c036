"""Draws `docs/performance.svg` from what `deepconf-bench --json` printed.

cargo run --release -p deepconf-bench -- --json > bench.json
python benches/plot.py bench.json docs/performance.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

LENGTHS = "scores by length"
THREADS = "all five scores"


def of(rows: list[dict[str, Any]], section: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["section"].startswith(section)]


def speed(row: dict[str, Any]) -> float:
    """Millions of tokens a second."""
    return row["items"] / row["seconds"] / 1e6


def main(source: Path, target: Path) -> None:
    rows = json.loads(source.read_text())
    mpl.rcParams.update({"svg.hashsalt": "deepconf", "font.size": 9})
    figure, (by_length, by_threads) = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)

    lengths = of(rows, LENGTHS)
    n = [int(row["name"].removeprefix("n = ")) for row in lengths]
    by_length.plot(n, [speed(row) for row in lengths], marker="o", label="all five scores")
    limits = [speed(row) / row["of_limit"] for row in lengths]
    by_length.plot(n, limits, linestyle="--", color="grey", label="reading the same bytes")
    by_length.set_xscale("log", base=2)
    by_length.set_xlabel("tokens in a trace (one core, w = 512)")
    by_length.set_ylabel("million tokens a second")

    threads = of(rows, THREADS)
    count = [row["threads"] for row in threads]
    by_threads.plot(count, [speed(row) for row in threads], marker="o")
    limits = [speed(row) / row["of_limit"] for row in threads]
    by_threads.plot(count, limits, linestyle="--", color="grey")
    by_threads.set_xticks(count)
    by_threads.set_xlabel("threads (n = 32,768, w = 2,048)")

    by_length.set_ylim(bottom=0)
    for axes in (by_length, by_threads):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    by_length.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
