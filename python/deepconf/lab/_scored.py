"""Recorded traces as columns: their scores, their answers, and whether these are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepconf._core import Policy, Scores, score
from deepconf.errors import InvalidInput
from deepconf.result import MEASURES, WHOLE

if TYPE_CHECKING:
    import pyarrow as pa

    from deepconf.traces import TraceReader

__all__ = ["Scored", "read"]

Ints = NDArray[np.int64]

COLUMNS = ("question_id", "trace", "answer", "status", "num_tokens", "confidence")
_MARKED = ("correct", "gold")
_UNKNOWN = -1


@dataclass(frozen=True)
class Scored:
    """Some numbers of each trace that ran to its end, `[traces]`."""

    questions: list[str]
    """Their names, in the order met."""
    question: Ints
    """The place of its question there."""
    order: Ints
    """Its place in launch order."""
    answer: Ints
    """A number for each answer of each question; -1 for none, and for a trace without tokens."""
    correct: NDArray[np.int8]
    """1 right, 0 wrong or none, -1 not known."""
    known: NDArray[np.bool_]
    """`[questions]`, whether it is known which traces are right."""
    tokens: Ints
    scores: dict[str, NDArray[np.float64]]
    """By measure, nats; NaN for a trace without tokens."""
    left_out: dict[str, int]
    """Traces that did not run to their end, by status."""


def read(
    reader: TraceReader,
    measured: Policy,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scored:
    """Scores all traces, in batches, as a policy scores.

    Raises:
        InvalidInput: none ran to its end, one is there twice, a confidence is not finite, or an
            answer is marked both right and wrong.
    """
    reading = _Reading(measured, threads)
    done, total = 0, reader.num_rows or 0
    marked = [name for name in _MARKED if name in reader.available]
    for batch in reader.select([*COLUMNS, *marked]):
        reading.add(batch)
        done += batch.num_rows
        if progress is not None:
            progress(done, total)
    return reading.scored()


class _Reading:
    """What has been read so far."""

    def __init__(self, measured: Policy, threads: int | None) -> None:
        self._measured = measured
        self._threads = threads
        self._questions: dict[str, int] = {}
        self._answers: dict[tuple[int, str], int] = {}
        self._gold: dict[int, str] = {}
        self._left_out: Counter[str] = Counter()
        self._parts: dict[str, list[NDArray[Any]]] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes in a batch."""
        import pyarrow as pa
        import pyarrow.compute as pc

        whole = pc.is_in(batch["status"], value_set=pa.array(WHOLE))
        self._left_out.update(batch["status"].filter(pc.invert(whole)).to_pylist())
        batch = batch.filter(whole)
        if not batch.num_rows:
            return
        scores = self._score(batch)
        names = batch["question_id"].to_pylist()
        question = [self._questions.setdefault(name, len(self._questions)) for name in names]
        answer = [
            _UNKNOWN if text is None else self._answers.setdefault((at, text), len(self._answers))
            for at, text in zip(question, batch["answer"].to_pylist(), strict=True)
        ]
        correct = np.full(len(question), _UNKNOWN, np.int8)
        if "correct" in batch.schema.names:
            correct[:] = pc.fill_null(batch["correct"].cast("int8"), _UNKNOWN)
        if "gold" in batch.schema.names:
            self._take_gold(question, batch["gold"].to_pylist())
        columns = {
            "question": np.array(question, np.int64),
            "order": np.array(batch["trace"], np.int64),
            "answer": np.where(scores.num_tokens, np.array(answer, np.int64), _UNKNOWN),
            "correct": correct,
            "tokens": scores.num_tokens,
            **{name: getattr(scores, name) for name in MEASURES},
        }
        for name, values in columns.items():
            self._parts.setdefault(name, []).append(values)

    def _take_gold(self, question: list[int], gold: list[str | None]) -> None:
        for at, text in zip(question, gold, strict=True):
            if text is not None and (known := self._gold.setdefault(at, text)) != text:
                name = list(self._questions)[at]
                raise InvalidInput(
                    f"question {name!r} has two gold answers, {known!r} and {text!r}"
                )

    def _score(self, batch: pa.RecordBatch) -> Scores:
        how = self._measured

        def scored(rows: pa.RecordBatch) -> Scores:
            return score(
                rows["confidence"],
                window=how.window,
                tail=how.tail,
                bottom=how.bottom,
                threads=self._threads,
            )

        try:
            return scored(batch)
        except InvalidInput:
            for at in range(batch.num_rows):  # Which row it is, by the names in the file.
                try:
                    scored(batch.slice(at, 1))
                except InvalidInput as error:
                    name, trace = batch["question_id"][at], batch["trace"][at]
                    raise InvalidInput(f"question '{name}', trace {trace}: {error}") from None
            raise

    def scored(self) -> Scored:
        """All of it, checked and marked."""
        if not self._parts:
            every = ", ".join(f"{count} {status}" for status, count in self._left_out.items())
            raise InvalidInput(
                f"traces: none ran to its end ({every}): only those with status finished or "
                f"length say anything here"
            )
        columns = {name: np.concatenate(parts) for name, parts in self._parts.items()}
        question, answer = columns["question"], columns["answer"]
        self._check_twice(question, columns["order"])
        correct, known = self._marked(question, answer, columns["correct"])
        return Scored(
            questions=list(self._questions),
            question=question,
            order=columns["order"],
            answer=answer,
            correct=correct,
            known=known,
            tokens=columns["tokens"],
            scores={name: columns[name] for name in MEASURES},
            left_out=dict(self._left_out),
        )

    def _check_twice(self, question: Ints, order: Ints) -> None:
        by_both = np.lexsort((order, question))
        question, order = question[by_both], order[by_both]
        again = (question[1:] == question[:-1]) & (order[1:] == order[:-1])
        if again.any():
            at = int(np.argmax(again))
            name = list(self._questions)[int(question[at])]
            raise InvalidInput(f"question {name!r}, trace {order[at]}: is there more than once")

    def _marked(
        self, question: Ints, answer: Ints, correct: NDArray[np.int8]
    ) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
        """Whether each trace is right, and of which questions that is known.

        A mark is one of an answer: what one trace's says holds for all that answer the same.
        """
        there = (answer >= 0) & (correct != _UNKNOWN)
        low = np.full(len(self._answers), 2, np.int8)
        marks = np.full(len(self._answers), _UNKNOWN, np.int8)
        np.minimum.at(low, answer[there], correct[there])
        np.maximum.at(marks, answer[there], correct[there])
        if (both := (marks != _UNKNOWN) & (low != marks)).any():
            at, text = list(self._answers)[int(np.argmax(both))]
            raise InvalidInput(
                f"question {list(self._questions)[at]!r}: the answer {text!r} is marked as right "
                f"and as wrong: answers that count as different must be different strings"
            )
        self._mark_by_gold(marks)
        known = np.zeros(len(self._questions), np.bool_)
        known[question[correct != _UNKNOWN]] = True
        known[list(self._gold)] = True
        found = np.where(known[question], 0, _UNKNOWN).astype(np.int8)
        found[answer >= 0] = marks[answer[answer >= 0]]
        return found, known

    def _mark_by_gold(self, marks: NDArray[np.int8]) -> None:
        """Marks answers that no mark says anything of, where a gold answer is there."""
        unmarked: dict[int, list[str]] = {}
        for (at, text), number in self._answers.items():
            if marks[number] == _UNKNOWN and at in self._gold:
                unmarked.setdefault(at, []).append(text)
        if unmarked:
            from deepconf.answers import marks as compared

            for at, texts in unmarked.items():
                for text, right in compared(texts, self._gold[at]).items():
                    marks[self._answers[at, text]] = int(right)
