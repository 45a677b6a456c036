"""Scores and votes of recorded traces, of any number, in bounded memory.

Scoring holds a few batches of token confidences at a time. A vote holds a few numbers and an answer
a trace, and never the confidences.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepconf._bars import bar
from deepconf._progress import Told
from deepconf.batch._ballots import Ballots, vote_schema
from deepconf.batch._in_force import (
    SCORING,
    VOTING,
    InForce,
    check_window,
    is_scored,
    measures,
    scoring_settings,
    voting_settings,
)
from deepconf.batch._scoring import score_schema, scored
from deepconf.errors import InvalidInput
from deepconf.traces import (
    TraceReader,
    TraceWriter,
    read_traces,
    spare_recordings,
    target,
)
from deepconf.traces._parallel import cores
from deepconf.traces._schema import arrow

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "InForce",
    "Scored",
    "Voted",
    "only",
    "score_traces",
    "scoring_settings",
    "vote_traces",
    "voting_settings",
]


# Tokens that all threads together have in hand.
_TOKENS = 8_000_000
# A row group of what is written.
_ROWS = 65_536
_BYTES = 8 << 20


@dataclass(frozen=True)
class Scored:
    """What `score_traces` did."""

    path: Path
    num_traces: int
    num_tokens: int
    in_force: InForce


@dataclass(frozen=True)
class Voted:
    """What `vote_traces` did."""

    path: Path
    num_traces: int
    num_questions: int
    num_answered: int
    """Questions in which a trace voted."""
    num_fallback: int
    """Questions in which the filter left too few ballots and was given up."""
    num_known: int
    """Questions of which it is known whether the answer is right."""
    num_correct: int
    in_force: InForce


# ---- scores -------------------------------------------------------------------------------------


def score_traces(
    source: Any,
    out: str | os.PathLike[str],
    *,
    threads: int | None = None,
    overwrite: bool = True,
    progress: Told | bool | None = None,
    **settings: Any,
) -> Scored:
    """Scores recorded traces, and writes a row a trace: all columns but the confidences.

    Added are `mean`, `lowest_group`, `bottom_group` and `tail` (float64, nats; NaN for a trace
    without tokens) and `short` (bool). A stopped trace is scored up to its `stop_token`, as it was
    when it was recorded. The file is there when it is whole. Its metadata is that of the source
    with the settings in force as `scores`.

    Args:
        source: traces, as `read_traces` takes them.
        out: where to write, `.parquet`, `.arrow` or `.feather`.
        threads: how many decode and score; None for one a core, 16 at the most.
        overwrite: whether a file that is there may be replaced.
        progress: is told how many traces are done, and of how many, 0 where that is not known;
            True for a bar.
        settings: `window`, `tail`, `bottom` and `decimals`, as `score` has them; by default as in
            the file's metadata, and where that says nothing as in `Policy`.

    Raises:
        InvalidInput: a setting that cannot be right, or that files have with different values; a
            confidence that is not finite; a column that has the name of a score.
        TraceFileError: a file cannot be read or written, or is no trace file.

    Warns:
        SignalNeverArmed: no trace is a window long.
    """
    only(settings, SCORING)
    threads = cores() if threads is None else threads
    reader = _opened(source, None, threads)
    not_a_source(out, reader)
    in_force = scoring_settings(reader, settings)
    schema = score_schema(reader.schema)
    policy = in_force.policy
    tokens = longest = 0
    metadata = {
        **reader.settings,
        "window": policy.window,
        "format": "deepconf-scores/1",
        "scores": in_force.settings,
    }
    with (
        bar(progress, "scoring traces") as tell,
        TraceWriter(out, schema=schema, settings=metadata, overwrite=overwrite) as writer,
    ):
        batches = reader.map(lambda batch: scored(batch, schema, policy, threads), threads=threads)
        for table in _gathered(_watched(batches, reader.num_rows, tell)):
            lengths = table["num_tokens"].to_numpy()
            tokens += int(np.sum(lengths, dtype=np.int64))
            longest = max(longest, int(lengths.max(initial=0)))
            writer.write(table)
    check_window(policy, longest, 2)
    return Scored(writer.path, writer.num_rows, tokens, in_force)


def _opened(source: Any, columns: list[str] | None, threads: int) -> TraceReader:
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise InvalidInput(f"threads={threads!r}: must be a whole number of at least 1")
    tokens = min(1_000_000, max(250_000, _TOKENS // threads))
    return read_traces(source, columns=columns, batch_tokens=tokens)


def only(given: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Refuses settings that have another name than these.

    Raises:
        InvalidInput: there is one.
    """
    for name in given:
        if name not in names:
            raise InvalidInput(f"unknown setting {name!r}: the settings are {', '.join(names)}")


def not_a_source(out: str | os.PathLike[str], reader: TraceReader) -> None:
    """Refuses to write where is what is read, or the recording of an evaluation.

    Raises:
        InvalidInput: they are the same file.
        TraceFileError: a recording is there.
    """
    path_of_out = target(out)
    for path in reader.paths:
        if path_of_out.exists() and path_of_out.samefile(path):
            raise InvalidInput(f"{out}: is what is read, and would be replaced")
    spare_recordings(path_of_out)


def _watched(
    batches: Iterator[pa.RecordBatch], total: int | None, tell: Told | None
) -> Iterator[pa.RecordBatch]:
    done = 0
    for batch in batches:
        yield batch
        done += batch.num_rows
        if tell is not None:
            tell(done, total or 0)


def _gathered(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Few large tables of many small batches."""
    pa = arrow()
    waiting: deque[Any] = deque()
    rows = size = 0
    for batch in batches:
        waiting.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= _ROWS or size >= _BYTES:
            yield pa.Table.from_batches(waiting)
            waiting.clear()
            rows = size = 0
    if waiting:
        yield pa.Table.from_batches(waiting)


# ---- votes --------------------------------------------------------------------------------------


def vote_traces(
    source: Any,
    out: str | os.PathLike[str],
    *,
    threads: int | None = None,
    overwrite: bool = True,
    progress: Told | bool | None = None,
    **settings: Any,
) -> Voted:
    """Lets recorded traces vote, and writes a row a question.

    The vote is an offline one: traces that ended by themselves or at the length limit vote, if they
    have an answer and tokens; stopped, aborted and failed ones never. Equal answers are equal
    strings. The columns are `question_id`, `answer` (null where none voted), `share`, `weight` (of
    that answer), `num_voters`, `fallback`, `threshold` (null without a filter), `num_traces`, and
    `correct`: by the marks of the traces with that answer, else compared with `gold`; null where
    neither is known. Questions stand in the order in which they first appear.

    Args:
        source: traces, as `read_traces` takes them, or what `score_traces` wrote.
        out: where to write, `.parquet`, `.arrow` or `.feather`.
        threads: how many decode and score; None for one a core, 16 at the most.
        overwrite: whether a file that is there may be replaced.
        progress: is told how many traces are done, and of how many, 0 where that is not known;
            True for a bar.
        settings: `measure`, `weight`, `keep`, `min_ballots`, `max_weight` and `percentile_over`, as
            `Policy` has them, and those of `score_traces`; by default as in the file's metadata,
            and where that says nothing as in `Policy.offline()`.

    Raises:
        InvalidInput: as for `score_traces`; a question that has a trace twice, or two gold answers;
            an answer that is marked right and wrong; traces with k = 1 that are to be filtered or
            weighed; traces that were scored with other settings.
        TraceFileError: a file cannot be read or written, or is no trace file.

    Warns:
        SignalNeverArmed: a group of tokens filters or weighs, and no trace is a window long.
    """
    only(settings, (*VOTING, *SCORING))
    threads = cores() if threads is None else threads
    names = ["question_id", "trace", "answer", "status", "num_tokens"]
    reader = _opened(source, names, threads)
    not_a_source(out, reader)
    in_force = voting_settings(reader, settings)
    needed = measures(in_force.policy)
    names += [name for name in ("correct", "gold") if name in reader.available]
    have_scores = is_scored(reader, needed)
    if needed and have_scores:
        names += needed
    elif needed:
        names += [name for name in ("confidence", "stop_token") if name in reader.available]
        if "confidence" not in names:
            raise InvalidInput(
                f"{' and '.join(needed)}: there is neither a column confidence to reckon it from, "
                "nor are there scores that score_traces wrote"
            )
    reader = reader.select(names)
    schema = vote_schema()
    metadata = {**reader.settings, "format": "deepconf-votes/1", "vote": in_force.settings}
    with (
        bar(progress, "reading traces") as tell,
        TraceWriter(out, schema=schema, settings=metadata, overwrite=overwrite) as writer,
    ):
        ballots = Ballots(in_force.policy, needed, scored=have_scores)
        batches = reader.map(lambda batch: ballots.small(batch, threads), threads=threads)
        for batch in _watched(batches, reader.num_rows, tell):
            ballots.add(batch)
        table = ballots.table(schema)
        writer.write(table)
    if {"lowest_group", "bottom_group"} & set(needed):
        check_window(in_force.policy, ballots.longest, 2)
    known = table["correct"].drop_null()
    return Voted(
        path=writer.path,
        num_traces=int(np.sum(table["num_traces"].to_numpy())),
        num_questions=table.num_rows,
        num_answered=table.num_rows - table["answer"].null_count,
        num_fallback=int(np.sum(table["fallback"].to_numpy())),
        num_known=len(known),
        num_correct=int(np.sum(known.to_numpy())),
        in_force=in_force,
    )
