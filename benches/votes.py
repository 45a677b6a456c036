"""Votes on many questions beside polars, DuckDB and pandas: the same rows, the winners compared.

Every package filters each question's answered traces at the quantile of their weights, adds up the
weights of each answer, and takes the heaviest, ties the one seen first. Weights are multiples of
1/8, so that ties happen and sums are exact. Each package gets the columns in the form it likes
best, made beforehand; polars and DuckDB each take the fastest of several ways to say the query.

    python benches/votes.py [--rows 10000000] [--questions 100000] [--runs 5] [--slow]
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import deepconf
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa

Winners = dict[str, str]
Query = Callable[[], object]


def recording(rows: int, questions: int, *, shuffled: bool, long: bool, seed: int) -> pl.DataFrame:
    """One row a trace: question, answer (5% none), weight."""
    random = np.random.default_rng(seed)
    question = np.sort(random.integers(questions, size=rows))
    if shuffled:
        random.shuffle(question)
    rank = np.minimum(random.geometric(0.35, rows), 12)
    answer = pl.Series((question * 2_654_435_761 + rank * 40_503) % 1_000).cast(pl.String)
    name = pl.Series(question).cast(pl.String).str.zfill(6)
    frame = pl.DataFrame(
        {
            "question": ("a-longer-name-of-a-question-" if long else "aime-") + name,
            "answer": ("the answer comes to " if long else "") + answer,
            "weight": np.round(random.gamma(9.0, 1.5, rows) * 8) / 8,
        }
    )
    answered = pl.Series(random.random(rows) < 0.95)
    return frame.with_columns(answer=pl.when(answered).then(pl.col("answer"))).rechunk()


def polars_window(frame: pl.DataFrame, keep: float) -> pl.LazyFrame:
    """The threshold by a window expression."""
    answered = frame.lazy().with_row_index("row").filter(pl.col("answer").is_not_null())
    threshold = pl.col("weight").quantile(1 - keep, "linear").over("question")
    ballots = (
        answered.filter(pl.col("weight") >= threshold)
        .group_by("question", "answer")
        .agg(pl.col("weight").sum(), pl.col("row").first())
    )
    order = {"by": ["weight", "row"], "descending": [True, False]}
    return ballots.group_by("question").agg(pl.col("answer").sort_by(**order).first())


def polars_lists(frame: pl.DataFrame, keep: float) -> pl.LazyFrame:
    """The threshold inside a group-by, the kept rows exploded."""
    kept = pl.col("weight") >= pl.col("weight").quantile(1 - keep, "linear")
    return (
        frame.lazy()
        .filter(pl.col("answer").is_not_null())
        .group_by("question", maintain_order=True)
        .agg(pl.col("answer").filter(kept), pl.col("weight").filter(kept))
        .explode("answer", "weight")
        .group_by("question", "answer", maintain_order=True)
        .agg(pl.col("weight").sum())
        .group_by("question", maintain_order=True)
        .agg(pl.col("answer").get(pl.col("weight").arg_max()))
    )


def polars_ways(frame: pl.DataFrame, keep: float) -> list[Query]:
    """Each plan on each engine."""
    return [
        lambda plan=plan, engine=engine: plan(frame, keep).collect(engine=engine)
        for plan in (polars_window, polars_lists)
        for engine in ("in-memory", "streaming")
    ]


DUCKDB = {
    "join": """
        WITH thresholds AS (
            SELECT question, quantile_cont(weight, {q}) AS s FROM t
            WHERE answer IS NOT NULL GROUP BY question
        ), ballots AS (
            SELECT question, answer, sum(weight) AS v, min(row) AS seen
            FROM t JOIN thresholds USING (question)
            WHERE answer IS NOT NULL AND weight >= s GROUP BY question, answer
        )
        SELECT question, arg_max(answer, {{'v': v, 'seen': -seen}}) AS answer
        FROM ballots GROUP BY question""",
    "window": """
        WITH ranked AS (
            SELECT *, quantile_cont(weight, {q}) OVER (PARTITION BY question) AS s
            FROM t WHERE answer IS NOT NULL
        ), ballots AS (
            SELECT question, answer, sum(weight) AS v, min(row) AS seen
            FROM ranked WHERE weight >= s GROUP BY question, answer
        )
        SELECT question, arg_max(answer, {{'v': v, 'seen': -seen}}) AS answer
        FROM ballots GROUP BY question""",
}


def duckdb_ways(frame: pl.DataFrame, keep: float) -> list[Query]:
    """The queries on a table of its own."""
    database = duckdb.connect()
    arrow = frame.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64)).to_arrow()
    database.register("arrow", arrow)
    database.execute("CREATE TABLE t AS SELECT * FROM arrow")
    database.unregister("arrow")
    return [
        lambda query=query: database.sql(query.format(q=1 - keep)).to_arrow_table()
        for query in DUCKDB.values()
    ]


def pandas_way(frame: pd.DataFrame, keep: float) -> pd.DataFrame:
    """Group-bys, categories made beforehand."""
    answered = frame[frame["answer"].notna()]
    groups = answered.groupby("question", observed=True, sort=False)["weight"]
    thresholds = groups.quantile(1 - keep).reindex(answered["question"]).to_numpy()
    kept = answered[answered["weight"] >= thresholds]
    ballots = kept.groupby(["question", "answer"], observed=True, sort=False)["weight"].sum()
    ballots = ballots.reset_index()
    return ballots.loc[ballots.groupby("question", observed=True, sort=False)["weight"].idxmax()]


def winners(outcome: object) -> Winners:
    """The winner of each question."""
    if isinstance(outcome, deepconf.Votes):
        pairs = zip(outcome.questions, outcome.answers, strict=True)
    elif isinstance(outcome, pl.DataFrame):
        pairs = outcome.select("question", "answer").iter_rows()
    elif isinstance(outcome, pa.Table):
        columns = (outcome["question"].to_pylist(), outcome["answer"].to_pylist())
        pairs = zip(*columns, strict=True)
    else:
        pairs = zip(outcome["question"], outcome["answer"], strict=True)
    return {str(question): answer for question, answer in pairs if answer is not None}


def seconds(query: Query) -> float:
    """One run."""
    gc.collect()
    start = time.perf_counter()
    query()
    return time.perf_counter() - start


def fastest(ways: list[Query]) -> Query:
    """The way that takes the least time; each is tried twice."""
    return min(ways, key=lambda way: min(seconds(way) for _ in range(2)))


def peak(query: Query) -> int | None:
    """Bytes that a run needs at most beyond what there is; None where Linux does not say."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status")
        read = lambda name: int(status.read_text().split(name)[1].split()[0]) * 1024  # noqa: E731
        before = read("VmRSS:")
        query()
        return read("VmHWM:") - before
    except OSError:
        return None


def compare(frame: pl.DataFrame, keep: float, runs: int, *, slow: bool) -> None:
    """Runs all in turn, prints a table, and fails where winners differ."""
    weight = frame["weight"].to_numpy()
    oldest = pl.CompatLevel.oldest()
    view = (frame["question"], frame["answer"])
    utf8 = tuple(column.to_arrow(compat_level=oldest) for column in view)
    number = frame["question"].str.slice(-6).cast(pl.Int64).to_numpy()
    # First of all, before there is memory to use again.
    memory = peak(lambda: deepconf.vote_many(*view, weight, keep))
    queries: dict[str, Query] = {
        "deepconf, polars columns": lambda: deepconf.vote_many(*view, weight, keep),
        "deepconf, pyarrow columns": lambda: deepconf.vote_many(*utf8, weight, keep),
        "deepconf, one thread": lambda: deepconf.vote_many(*view, weight, keep, threads=1),
        "deepconf, NumPy questions": lambda: deepconf.vote_many(number, utf8[1], weight, keep),
        "polars": fastest(polars_ways(frame, keep)),
        "duckdb": fastest(duckdb_ways(frame, keep)),
    }
    if slow:
        lists = tuple(column.to_list() for column in view)
        queries["deepconf, lists of str"] = lambda: deepconf.vote_many(*lists, weight, keep)
        queries["polars, lists of str"] = lambda: polars_window(
            pl.DataFrame({"question": lists[0], "answer": lists[1], "weight": weight}), keep
        ).collect()
        categories = frame.to_pandas().astype({"question": "category", "answer": "category"})
        queries["pandas"] = lambda: pandas_way(categories, keep)
    expected = winners(queries["polars"]())
    for name, query in queries.items():
        got = winners(query())
        if name == "deepconf, NumPy questions":
            got = {expected_name(frame, int(n)): answer for n, answer in got.items()}
        assert got == expected, f"{name} has other winners"
    times: dict[str, list[float]] = {name: [] for name in queries}
    for _ in range(runs):
        for name, query in queries.items():
            times[name].append(seconds(query))
    base = statistics.median(times["polars"])
    for name, took in sorted(times.items(), key=lambda item: statistics.median(item[1])):
        median = statistics.median(took)
        print(
            f"  {name:<28}{median:8.3f} s  ({min(took):.3f} to {max(took):.3f})"
            f"{frame.height / median / 1e6:8.1f} M rows/s{base / median:7.2f} x polars"
        )
    if memory is not None:
        print(f"  deepconf needs {memory / frame.height:.0f} bytes a row beside its input")


def expected_name(frame: pl.DataFrame, number: int) -> str:
    """The question that has this number."""
    return frame["question"][0][:-6] + f"{number:06}"


def main() -> None:
    """All cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--slow", action="store_true", help="also lists of str, and pandas")
    settings = parser.parse_args()
    modules = (deepconf, pl, duckdb, pd, pa, np)
    print(", ".join(f"{module.__name__} {module.__version__}" for module in modules))
    for shuffled, long in [(False, False), (True, False), (False, True), (True, True)]:
        frame = recording(settings.rows, settings.questions, shuffled=shuffled, long=long, seed=1)
        for keep in (0.1, 0.5):
            order = "shuffled" if shuffled else "sorted by question"
            texts = "long texts" if long else "short texts"
            print(f"{frame.height:,} rows, {order}, {texts}, keep={keep}", flush=True)
            compare(frame, keep, settings.runs, slow=settings.slow and not long)


if __name__ == "__main__":
    main()
