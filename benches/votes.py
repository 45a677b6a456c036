"""Votes on many questions beside polars, DuckDB and pandas: the same rows, the winners compared.

Every package filters each question's answered traces at the quantile of their weights, adds up the
weights of each answer, and takes the heaviest, ties the one seen first. Weights are multiples of
1/8, so that ties happen and sums are exact. Each package gets the columns in the form it likes
best, made beforehand; polars and DuckDB each take the fastest of several ways to say the query.

    python benches/votes.py [--rows 10000000] [--questions 100000] [--runs 5] [--more]

All of the grid, or what is asked for: `--named integer string`, `--order sorted shuffled`,
`--answers short long`, `--keep 0.1 0.5 1`.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import deepconf
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa

Winners = dict[str, str]
Query = Callable[[], object]


def recording(rows: int, questions: int, named: str, order: str, answers: str) -> pl.DataFrame:
    """One row a trace: question, answer (5% none), weight."""
    long = answers == "long"
    random = np.random.default_rng(1)
    question = np.sort(random.integers(questions, size=rows))
    if order == "shuffled":
        random.shuffle(question)
    rank = np.minimum(random.geometric(0.35, rows), 12)
    answer = pl.Series((question * 2_654_435_761 + rank * 40_503) % 1_000).cast(pl.String)
    number = pl.Series(question)
    # As long as the answers are.
    name = ("a-longer-name-of-a-question-" if long else "aime-") + number.cast(pl.String).str.zfill(
        6
    )
    frame = pl.DataFrame(
        {
            "question": number if named == "integer" else name,
            "answer": ("the answer comes to " if long else "") + answer,
            "weight": np.round(random.gamma(9.0, 1.5, rows) * 8) / 8,
        }
    )
    answered = pl.Series(random.random(rows) < 0.95)
    return frame.with_columns(answer=pl.when(answered).then(pl.col("answer"))).rechunk()


def polars_window(frame: pl.DataFrame, keep: float) -> pl.LazyFrame:
    """The threshold by a window expression."""
    kept = frame.lazy().with_row_index("row").filter(pl.col("answer").is_not_null())
    if keep < 1:
        threshold = pl.col("weight").quantile(1 - keep, "linear").over("question")
        kept = kept.filter(pl.col("weight") >= threshold)
    ballots = kept.group_by("question", "answer").agg(pl.col("weight").sum(), pl.col("row").first())
    order = {"by": ["weight", "row"], "descending": [True, False]}
    return ballots.group_by("question").agg(pl.col("answer").sort_by(**order).first())


def polars_lists(frame: pl.DataFrame, keep: float) -> pl.LazyFrame:
    """The threshold inside a group-by, the kept rows exploded."""
    kept = frame.lazy().filter(pl.col("answer").is_not_null())
    if keep < 1:
        top = pl.col("weight") >= pl.col("weight").quantile(1 - keep, "linear")
        kept = (
            kept.group_by("question", maintain_order=True)
            .agg(pl.col("answer").filter(top), pl.col("weight").filter(top))
            .explode("answer", "weight")
        )
    return (
        kept.group_by("question", "answer", maintain_order=True)
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
    import duckdb

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
    """The way that takes the least time."""
    return min(ways, key=seconds)


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


def compare(frame: pl.DataFrame, keep: float, runs: int, *, more: bool) -> float:
    """Runs all in turn, prints a table, and fails where winners differ; how often polars' time."""
    weight = frame["weight"].to_numpy()
    view = (frame["question"], frame["answer"])
    # First of all, before there is memory to use again.
    memory = peak(lambda: deepconf.vote_many(*view, weight, keep))
    queries: dict[str, Query] = {
        "deepconf": lambda: deepconf.vote_many(*view, weight, keep),
        "polars": fastest(polars_ways(frame, keep)),
    }
    if more:
        queries |= more_queries(frame, keep)
    expected = winners(queries["polars"]())
    for name, query in queries.items():
        assert winners(query()) == expected, f"{name} has other winners"
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
    pairs = zip(times["polars"], times["deepconf"], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def more_queries(frame: pl.DataFrame, keep: float) -> dict[str, Query]:
    """What else there is: columns of other kinds, one thread, other packages."""
    weight = frame["weight"].to_numpy()
    view = (frame["question"], frame["answer"])
    oldest = pl.CompatLevel.oldest()
    utf8 = tuple(column.to_arrow(compat_level=oldest) for column in view)
    lists = tuple(column.to_list() for column in view)
    categories = frame.to_pandas().astype({"question": "category", "answer": "category"})
    return {
        "deepconf, pyarrow columns": lambda: deepconf.vote_many(*utf8, weight, keep),
        "deepconf, one thread": lambda: deepconf.vote_many(*view, weight, keep, threads=1),
        "deepconf, lists": lambda: deepconf.vote_many(*lists, weight, keep),
        "polars, lists": lambda: polars_window(
            pl.DataFrame({"question": lists[0], "answer": lists[1], "weight": weight}), keep
        ).collect(),
        "duckdb": fastest(duckdb_ways(frame, keep)),
        "pandas": lambda: pandas_way(categories, keep),
    }


def main() -> None:
    """The grid."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--more", action="store_true", help="also other columns and packages")
    grid = {
        "named": ["integer", "string"],
        "order": ["sorted", "shuffled"],
        "answers": ["short", "long"],
    }
    for name, choices in grid.items():
        parser.add_argument(f"--{name}", nargs="+", choices=choices, default=choices)
    parser.add_argument("--keep", nargs="+", type=float, default=[0.1, 0.5, 1.0])
    settings = parser.parse_args()
    modules = (deepconf, pl, pa, np)
    print(", ".join(f"{module.__name__} {module.__version__}" for module in modules))
    ratios: dict[str, list[float]] = {}
    for case in itertools.product(*(getattr(settings, name) for name in grid)):
        frame = recording(settings.rows, settings.questions, *case)
        title = "{} questions, {}, {} answers".format(*case)
        for keep in settings.keep:
            print(f"{frame.height:,} rows, {title}, keep={keep}", flush=True)
            ratio = compare(frame, keep, settings.runs, more=settings.more)
            ratios.setdefault(title, []).append(ratio)
    print(
        f"{'times polars, median of turns':<44}" + "".join(f"{keep:>8}" for keep in settings.keep)
    )
    for title, row in ratios.items():
        print(f"{title:<44}" + "".join(f"{ratio:8.2f}" for ratio in row))


if __name__ == "__main__":
    main()
