"""Reading recorded traces into a pool: the pass over the tokens, and what their answers are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepconf._core import CONFIDENCE_LIMIT, ReplayPool
from deepconf.errors import InvalidInput
from deepconf.result import WHOLE

if TYPE_CHECKING:
    import pyarrow as pa

    from deepconf.traces import TraceReader

__all__ = ["Recorded", "read"]

_COLUMNS = ("question_id", "trace", "answer", "status", "num_tokens", "confidence")
_MARKED = ("correct", "gold")
_CUT = ("stopped", "aborted")
_UNKNOWN = -1


@dataclass
class Recorded:
    """What a replay needs of recorded traces."""

    pool: ReplayPool
    questions: list[str] = field(default_factory=list)
    answers: list[list[str]] = field(default_factory=list)
    """The different answers of each question."""
    marks: list[NDArray[np.int8]] = field(default_factory=list)
    """For each answer whether it is right, 1 or 0."""
    lengths: list[NDArray[np.int64]] = field(default_factory=list)
    """Tokens of each trace, in launch order."""
    gold: bool = False
    """Whether the marks compare with known answers; else with the majority of all traces."""
    failed: int = 0
    """Traces that failed, and are left out."""
    settings: dict[str, Any] = field(default_factory=dict)


def sized(reader: TraceReader) -> dict[str, Any]:
    """The settings of traces, with what stands in for a budget and a window that they do not say.

    That is `fewest`, the fewest traces of a question, and `lengths`, the tokens of each trace that
    ran to its end: a pass over some columns, unless the traces can be read only once.
    """
    settings = dict(reader.settings)
    policy = settings.get("policy") or {}
    asked = {"fewest": "budget" not in policy, "lengths": "window" not in {**settings, **policy}}
    if reader.once or not any(asked.values()):
        return settings
    import pyarrow as pa

    counts: Counter[str] = Counter()
    lengths: list[NDArray[np.int32]] = []
    for batch in reader.select(["question_id", "status", "num_tokens"]):
        is_whole = np.isin(batch.column("status").to_numpy(zero_copy_only=False), WHOLE)
        whole = batch.filter(pa.array(is_whole))
        for each in whole.column("question_id").value_counts().to_pylist():
            counts[each["values"]] += each["counts"]
        lengths.append(whole.column("num_tokens").to_numpy())
    found = {
        "fewest": min(counts.values(), default=0),
        "lengths": np.concatenate([np.empty(0, np.int32), *lengths]),
    }
    return settings | {name: value for name, value in found.items() if asked[name]}


def read(
    reader: TraceReader,
    pool: ReplayPool,
    settings: dict[str, Any],
    progress: Callable[[int, int], None] | None,
) -> Recorded:
    """Reads all traces into a pool."""
    columns = [*_COLUMNS, *(name for name in _MARKED if name in reader.available)]
    reading = _Reading(pool)
    done, total = 0, reader.num_rows or 0
    for batch in _ahead(iter(reader.select(columns))):
        reading.add(batch)
        done += batch.num_rows
        if progress is not None:
            progress(done, total)
    found = reading.recorded(settings)
    pool.close()
    return found


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same, each read on another thread while the one before is worked on."""
    with ThreadPoolExecutor(1, "deepconf-read") as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


class _Reading:
    """What is known so far."""

    def __init__(self, pool: ReplayPool) -> None:
        self._pool = pool
        self._questions: dict[str, int] = {}
        # By question: each answer's number and what it is marked as, the gold answer, the traces.
        self._answers: list[dict[str, int]] = []
        self._marks: list[list[int]] = []
        self._gold: list[str | None] = []
        self._rows: list[list[NDArray[np.int64]]] = []
        self._failed = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes in a batch."""
        status = batch.column("status").to_numpy(zero_copy_only=False)
        cut = np.isin(status, _CUT)
        if cut.any():
            at = int(cut.argmax())
            raise InvalidInput(
                f"question {batch.column('question_id')[at].as_py()!r}, trace "
                f"{batch.column('trace')[at].as_py()}: was {status[at]}, and nobody knows how it "
                "would have gone on: only complete traces can be replayed, such as an offline "
                "policy records"
            )
        questions = self._numbers(batch.column("question_id"))
        failed = status == "failed"
        if failed.any():
            self._failed += int(failed.sum())
            keep = np.flatnonzero(~failed)
            batch, status, questions = batch.take(keep), status[keep], questions[keep]
        if batch.num_rows == 0:
            return
        answers = self._named(batch, questions)
        traces = batch.column("trace").to_numpy().astype(np.int64)
        limit = (status == "length").astype(np.int64)
        _check_signs(batch)
        try:
            self._pool.add(questions, traces, answers, limit, batch.column("confidence"))
        except InvalidInput as error:
            raise _placed(error, batch) from error
        tokens = batch.column("num_tokens").to_numpy().astype(np.int64)
        order = np.argsort(questions, kind="stable")
        ends = np.flatnonzero(np.diff(questions[order])) + 1
        for rows in np.split(order, ends):
            mine = np.stack([traces[rows], tokens[rows], answers[rows]])
            self._rows[questions[rows[0]]].append(mine)

    def _numbers(self, names: Any) -> NDArray[np.int64]:
        """The number of each question, new ones added."""
        coded = names.dictionary_encode()
        numbers = []
        for name in coded.dictionary.to_pylist():
            number = self._questions.setdefault(name, len(self._questions))
            if number == len(self._answers):
                self._answers.append({})
                self._marks.append([])
                self._gold.append(None)
                self._rows.append([])
            numbers.append(number)
        codes: NDArray[np.int64] = coded.indices.to_numpy().astype(np.int64)
        return np.array(numbers, np.int64)[codes]

    def _named(self, batch: pa.RecordBatch, questions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of each answer within its question, -1 for none; keeps what marks say."""
        coded = batch.column("answer").dictionary_encode()
        texts = coded.dictionary.to_pylist()
        codes = coded.indices.fill_null(-1).to_numpy().astype(np.int64)
        correct = self._column(batch, "correct")
        self._take_gold(batch, questions)
        there = np.flatnonzero(codes >= 0)
        pairs = questions[there] * len(texts) + codes[there]
        unique, first, place = np.unique(pairs, return_index=True, return_inverse=True)
        numbers = np.empty(len(unique), np.int64)
        for at, row in enumerate(there[first]):
            known = self._answers[questions[row]]
            numbers[at] = known.setdefault(texts[codes[row]], len(known))
            if numbers[at] == len(self._marks[questions[row]]):
                self._marks[questions[row]].append(_UNKNOWN)
        if correct is not None:
            low = np.full(len(unique), 2, np.int8)
            high = np.full(len(unique), _UNKNOWN, np.int8)
            mine = correct[there]
            np.minimum.at(low, place, np.where(mine == _UNKNOWN, 2, mine).astype(np.int8))
            np.maximum.at(high, place, mine)
            for at, row in enumerate(there[first]):
                self._mark(questions[row], numbers[at], low[at], high[at], texts[codes[row]])
        found = np.full(len(codes), -1, np.int64)
        found[there] = numbers[place]
        return found

    def _mark(self, question: int, answer: int, low: int, high: int, text: str) -> None:
        marks = self._marks[question]
        if high == _UNKNOWN:
            return
        if low != high or marks[answer] not in (_UNKNOWN, high):
            name = list(self._questions)[question]
            raise InvalidInput(
                f"question {name!r}: the answer {text!r} is marked as right and as wrong: answers "
                "that count as different must be different strings"
            )
        marks[answer] = int(high)

    def _column(self, batch: pa.RecordBatch, name: str) -> NDArray[np.int8] | None:
        if name not in batch.schema.names:
            return None
        import pyarrow.compute as pc

        marks: NDArray[np.int8]
        marks = pc.fill_null(batch.column(name).cast("int8"), _UNKNOWN).to_numpy()
        return marks

    def _take_gold(self, batch: pa.RecordBatch, questions: NDArray[np.int64]) -> None:
        if "gold" not in batch.schema.names:
            return
        coded = batch.column("gold").dictionary_encode()
        codes = coded.indices.fill_null(-1).to_numpy().astype(np.int64)
        texts = coded.dictionary.to_pylist()
        there = codes >= 0
        for question, code in np.unique(np.stack([questions, codes], axis=1)[there], axis=0):
            known = self._gold[question]
            if known not in (None, texts[code]):
                name = list(self._questions)[question]
                raise InvalidInput(
                    f"question {name!r} has two gold answers, {known!r} and {texts[code]!r}"
                )
            self._gold[question] = texts[code]

    def recorded(self, settings: dict[str, Any]) -> Recorded:
        """All that was read."""
        self._mark_by_gold()
        if any(self._rows) and not any(self._answers) and not any(self._gold):
            raise InvalidInput(
                "traces: none has an answer, so there is nothing to vote on: find answers in the "
                "texts first (deepconf import does), or give them in the column answer"
            )
        # Where nobody answers, nothing needs a mark.
        unknown = [q for q, marks in enumerate(self._marks) if _UNKNOWN in marks]
        known = [q for q, marks in enumerate(self._marks) if marks and _UNKNOWN not in marks]
        names = list(self._questions)
        if known and unknown:
            raise InvalidInput(
                f"question {names[unknown[0]]!r} has answers that are not marked, and "
                f"{len(known)} other questions are marked: mark all (correct, or gold), or "
                "none; or leave out those that are not marked, which of a table, such as "
                "traces.to_arrow() or pyarrow.parquet.read_table(path), is "
                'table.filter(pyarrow.compute.field("correct").is_valid())'
            )
        nothing = np.zeros((3, 0), np.int64)  # Of a question of which all traces failed.
        rows = [np.concatenate([nothing, *rows], axis=1) for rows in self._rows]
        rows = [mine[:, np.argsort(mine[0], kind="stable")] for mine in rows]
        for name, (traces, *_) in zip(names, rows, strict=True):
            if (same := np.flatnonzero(np.diff(traces) == 0)).size:
                raise InvalidInput(
                    f"question {name!r} has trace {traces[same[0]]} twice: number its traces "
                    "apart, or give different recordings different question ids"
                )
        marks = self._marks if not unknown else [_by_majority(answers) for *_, answers in rows]
        return Recorded(
            pool=self._pool,
            questions=names,
            answers=[list(answers) for answers in self._answers],
            marks=[np.array(mine, np.int8) for mine in marks],
            lengths=[tokens for _, tokens, _ in rows],
            gold=not unknown,
            failed=self._failed,
            settings=settings,
        )

    def _mark_by_gold(self) -> None:
        """Marks answers that no mark says anything of, where a gold answer is there."""
        for question, gold in enumerate(self._gold):
            marks = self._marks[question]
            if gold is None or _UNKNOWN not in marks:
                continue
            from deepconf.answers import marks as compared

            right = compared(self._answers[question], gold)
            for text, answer in self._answers[question].items():
                if marks[answer] == _UNKNOWN:
                    marks[answer] = int(right[text])


def _by_majority(answers: NDArray[np.int64]) -> NDArray[np.int8]:
    """Marks that of answers in launch order the one most given is right, of equals the first."""
    given = answers[answers >= 0]
    if not len(given):
        return np.zeros(0, np.int8)
    _, first, votes = np.unique(given, return_index=True, return_counts=True)
    marks = np.zeros(len(votes), np.int8)
    marks[max(range(len(votes)), key=lambda answer: (votes[answer], -first[answer]))] = 1
    return marks


def _check_signs(batch: pa.RecordBatch) -> None:
    """Refuses traces that are below 0 on the whole: no confidences, but log-probabilities."""
    import pyarrow.compute as pc

    column = batch.column("confidence")
    values = column.flatten()
    if not len(values) or not pc.min(values).as_py() < 0:
        return
    lengths = column.value_lengths().fill_null(0).to_numpy()
    row = np.repeat(np.arange(len(lengths)), lengths)
    sums = np.bincount(row, values.to_numpy(zero_copy_only=False), len(lengths))
    if (below := np.flatnonzero(sums < 0)).size:
        at = int(below[0])
        raise InvalidInput(
            f"question {batch.column('question_id')[at].as_py()!r}, trace "
            f"{batch.column('trace')[at].as_py()}: its mean confidence is "
            f"{sums[at] / lengths[at]:.4g}: a confidence is minus the mean of log-probabilities, "
            "and at least 0: are these log-probabilities?"
        )


def _placed(error: InvalidInput, batch: pa.RecordBatch) -> InvalidInput:
    """The same, with the names of the question and the trace, if a confidence is at fault."""
    column = batch.column("confidence")
    values = column.flatten().to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(~(np.abs(values) < CONFIDENCE_LIMIT))
    if not wrong.size:
        return error
    ends = np.cumsum(column.value_lengths().fill_null(0).to_numpy())
    row = int(np.searchsorted(ends, wrong[0], side="right"))
    token = wrong[0] - (ends[row - 1] if row else 0)
    return InvalidInput(
        f"question {batch.column('question_id')[row].as_py()!r}, trace "
        f"{batch.column('trace')[row].as_py()}, token {token}: its confidence is "
        f"{values[wrong[0]]}: must be finite and within ±{CONFIDENCE_LIMIT:,.0f} nats"
    )
