"""Scores and votes of a trace file larger than memory needs: `python benches/parquet.py`.

Prints the time of each pass, that of all cores together, and its resident memory at the peak,
imports included, beside the time of decoding the confidences alone, by one thread and by one a
core; the scores are compared with those of what was written. `--traces 1000000` is the size that
the project's limit of 400 MB is stated for.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import deepconf
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deepconf.traces import TraceWriter, schema
from deepconf.traces._parallel import cores

GROUP = 2_048
WINDOW = 128


def written(path: Path, traces: int, tokens: int) -> np.ndarray:
    """Writes a trace file, a question a row group; returns the lowest groups."""
    random = np.random.default_rng(5)
    names = ["question_id", "trace", "answer", "status", "num_tokens", "confidence"]
    columns = pa.schema([schema().field(name) for name in names])
    lowest = []
    with TraceWriter(path, schema=columns, settings={"k": 20, "window": WINDOW}) as writer:
        for start in range(0, traces, GROUP):
            count = min(GROUP, traces - start)
            values = random.normal(14, 3, count * tokens).clip(3, 30).astype(np.float32)
            offsets = np.arange(0, len(values) + 1, tokens, dtype=np.int32)
            rows: list[Any] = [
                [f"question {start // GROUP}"] * count,
                range(count),
                random.integers(0, 9, count).astype(str),
                ["finished"] * count,
                [tokens] * count,
            ]
            arrays = [pa.array(row, field.type) for row, field in zip(rows, columns, strict=False)]
            arrays.append(pa.ListArray.from_arrays(offsets, values))
            writer.write(pa.table(arrays, schema=columns))
            lowest.append(deepconf.score((values, offsets), window=WINDOW).lowest_group)
    return np.concatenate(lowest)


def decode(path: Path, threads: int) -> None:
    """Decodes the confidences, row group by row group, and nothing else."""
    metadata = pq.read_metadata(path)

    def group(index: int) -> None:
        # Read as it is needed: neither the file nor what is decoded stays in memory.
        with pq.ParquetFile(path, metadata=metadata, buffer_size=1 << 20, pre_buffer=False) as file:
            for _ in file.iter_batches(GROUP, row_groups=[index], columns=["confidence"]):
                pass

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(group, range(metadata.num_row_groups)))


def peak() -> float:
    """The largest resident memory so far, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


def measured(work: Callable[[], Any], runs: int) -> tuple[float, float, float]:
    """The median time and that of all cores, seconds, and the memory at its peak, MB."""
    Path("/proc/self/clear_refs").write_text("5")  # The peak starts anew.
    times, busy = [], []
    for _ in range(runs):
        start, at = time.perf_counter(), time.process_time()
        work()
        times.append(time.perf_counter() - start)
        busy.append(time.process_time() - at)
    return statistics.median(times), statistics.median(busy), peak()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=1_024)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    total = arguments.traces * arguments.tokens
    with tempfile.TemporaryDirectory() as folder:
        path, scores, votes = (Path(folder) / f"{name}.parquet" for name in ("t", "s", "v"))
        expected = written(path, arguments.traces, arguments.tokens)
        size = path.stat().st_size / 1e6
        print(
            f"{arguments.traces:,} traces of {arguments.tokens:,} tokens, {size:,.0f} MB of "
            f"Parquet; {cores()} cores"
        )
        for name, work in {
            "decoding, 1 thread": lambda: decode(path, 1),
            "decoding, 1 a core": lambda: decode(path, cores()),
            "score_traces": lambda: deepconf.score_traces(path, scores),
            "vote_traces": lambda: deepconf.vote_traces(path, votes),
            "vote_traces, of scores": lambda: deepconf.vote_traces(scores, votes),
        }.items():
            seconds, busy, memory = measured(work, arguments.runs)
            print(
                f"  {name:<24}{seconds:8.2f} s, {busy:6.2f} s of a core, "
                f"{total / seconds / 1e6:6.0f} million tokens/s, {memory:4.0f} MB at the most"
            )
        found = pq.read_table(scores, columns=["lowest_group"]).column(0).to_numpy()
        np.testing.assert_array_equal(found, expected)


if __name__ == "__main__":
    main()
