"""Scores traces from a Parquet file larger than memory needs: `python benches/parquet.py`.

Row groups are decoded and scored one after the other. Prints the resident memory at its peak, and
the time beside that of decoding alone; the scores are compared with those of what was written.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import deepconf
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GROUP = 2_048


def written(path: Path, traces: int, tokens: int) -> np.ndarray:
    """Writes token confidences in the column that trace files have; returns the lowest groups."""
    random = np.random.default_rng(5)
    schema = pa.schema([("confidence", pa.list_(pa.float32()))])
    lowest = []
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, traces, GROUP):
            count = min(GROUP, traces - start)
            values = random.normal(14, 3, count * tokens).clip(3, 30).astype(np.float32)
            offsets = np.arange(0, len(values) + 1, tokens, dtype=np.int32)
            column = pa.ListArray.from_arrays(offsets, values)
            writer.write_table(pa.table([column], schema=schema), row_group_size=GROUP)
            lowest.append(deepconf.score((values, offsets), window=128).lowest_group)
    return np.concatenate(lowest)


def batches(path: Path) -> Iterator[pa.Array]:
    # Read as it is needed: neither the file nor what is decoded stays in memory.
    file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    for batch in file.iter_batches(GROUP, columns=["confidence"]):
        yield batch.column(0)


def peak() -> float:
    """The largest resident memory so far, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=1_024)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traces.parquet"
        expected = written(path, arguments.traces, arguments.tokens)
        size = path.stat().st_size / 1e6
        Path("/proc/self/clear_refs").write_text("5")  # The peak starts anew.
        start = time.perf_counter()
        found = [deepconf.score(column, window=128).lowest_group for column in batches(path)]
        scored = time.perf_counter() - start
        memory = peak()
        np.testing.assert_array_equal(np.concatenate(found), expected)
        start = time.perf_counter()
        decoded = sum(len(column) for column in batches(path))
        decoding = time.perf_counter() - start
        assert decoded == arguments.traces
    print(f"{arguments.traces:,} traces of {arguments.tokens:,} tokens, {size:,.0f} MB of Parquet:")
    print(
        f"  {memory:,.0f} MB resident at the most; {scored:.1f} s, decoding alone {decoding:.1f} s"
    )


if __name__ == "__main__":
    main()
