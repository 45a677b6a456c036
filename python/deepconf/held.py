"""Recorded traces that are held in memory: scored, voted on, drawn, and given to a replay.

>>> from deepconf import from_confidences
>>> traces = from_confidences([[9.0, 8.0], [7.0, 2.0], [8.0, 8.0]], ["4", "5", "4"])
>>> traces
<deepconf.Traces: 3 traces of 1 question: 3 finished; 3 with an answer; 6 tokens>
>>> traces.vote(window=2, keep=1).answer
'4'
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from deepconf._core import Policy, Scores, Vote, Votes, score, vote, vote_many
from deepconf._windows import fitting
from deepconf._words import counted
from deepconf.answers import marks, named
from deepconf.batch import only
from deepconf.batch._in_force import SCORING, measures
from deepconf.errors import InvalidInput, SignalNeverArmed
from deepconf.importing import COLUMNS, misnumbered, right_answers, table
from deepconf.result import WHOLE

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes

    from deepconf.questions import Question

__all__ = ["Traces"]

_VOTING = ("measure", "weight", "keep", "min_ballots", "max_weight")


class Traces:
    """Recorded traces of one question or several, as columns: entry i is trace i."""

    questions: list[str]
    """The question that each answers."""
    answers: list[str | None]
    """One spelling for all that are the same within a question; None where none was found."""
    statuses: list[str]
    """`finished`, `length` (cut short), `aborted` or `failed`."""
    confidences: list[NDArray[np.float32]]
    """Token confidences, float32 `[num_tokens]` each, nats."""
    texts: list[str]
    correct: list[bool | None]
    """Whether the answer is right; None where that is not known."""
    settings: dict[str, Any]
    """How they came to be: `k`, `entries`, `model`, `versions`."""

    def __init__(
        self,
        rows: list[dict[str, Any]],
        settings: dict[str, Any],
        *,
        numbered: bool = False,
        math: Literal["auto"] | bool = "auto",
    ) -> None:
        """Of rows by the names of `traces.schema`.

        Args:
            rows: one a trace.
            settings: how they came to be.
            numbered: whether questions are mere numbers of records, none of which names its own.
            math: how answers were compared.
        """
        self._rows = rows
        self.settings = settings
        self._numbered = numbered
        self._math: Literal["auto"] | bool = math
        self.questions, self.answers, self.statuses, self.confidences, self.texts, self.correct = (
            [row[name] for row in rows]
            for name in ("question_id", "answer", "status", "confidence", "text", "correct")
        )

    @classmethod
    def read(cls, source: Any) -> Traces:
        """The traces of a trace file, all of them at once.

        Args:
            source: what `deepconf.read_traces` takes.

        Raises:
            InvalidInput, MissingExtra, TraceFileError: as `read_traces`.
        """
        from deepconf.traces import read_traces

        reader = read_traces(source, columns=COLUMNS)
        rows = []
        for batch in reader:
            lists = batch["confidence"]
            values, ends = lists.values.to_numpy(), lists.offsets.to_numpy()
            rest = batch.drop_columns(["confidence"]).to_pylist()
            for row, start, end in zip(rest, ends[:-1], ends[1:], strict=True):
                rows.append({**row, "confidence": values[start:end]})
        return cls(rows, reader.settings)

    def __len__(self) -> int:
        """How many traces."""
        return len(self._rows)

    @property
    def title(self) -> str:
        """One line about them."""
        questions = len(set(self.questions))
        tokens = sum(map(len, self.confidences))
        each = Counter(self.statuses).most_common()
        ended = ", ".join(f"{count:,} {status}" for status, count in each)
        answered = sum(answer is not None for answer in self.answers)
        return (
            f"{counted(len(self), 'trace')} of {counted(questions, 'question')}: {ended}; "
            f"{answered:,} with an answer; {counted(tokens, 'token')}"
        )

    def __repr__(self) -> str:
        """One line."""
        return f"<deepconf.Traces: {self.title}>"

    def _repr_html_(self) -> str:
        from deepconf import _html

        return _html.of_traces(self)

    def question(self, question_id: str) -> Traces:
        """The traces of one question.

        Raises:
            InvalidInput: there are none.
        """
        rows = [row for row in self._rows if row["question_id"] == question_id]
        if not rows:
            raise InvalidInput(f"question_id={question_id!r}: there is none{_such_as(self)}")
        return Traces(rows, self.settings, math=self._math)

    def score(
        self,
        *,
        window: int | None = None,
        tail: int | None = None,
        bottom: float = 0.10,
        decimals: int | None = None,
    ) -> Scores:
        """The scores of all traces, as of `deepconf.score`, with its arguments."""
        return score(self.confidences, window=window, tail=tail, bottom=bottom, decimals=decimals)

    def vote(self, **settings: Any) -> Vote:
        """Filters the traces by their confidence, weighs them, and lets them vote.

        As an offline run does: those that finished or reached the length limit vote, where they
        have an answer. Answers were compared when the traces were made (`math`).

        Args:
            settings: `keep`, `measure`, `weight`, `min_ballots` and `max_weight`, as `Policy` has
                them, and `window`, `tail`, `bottom` and `decimals`, as `score` has; by default as
                in `Policy.offline()`.

        Raises:
            InvalidInput: a setting that cannot be right; several questions, which `vote_many` is
                for.
        """
        questions = len(set(self.questions))
        if questions > 1 and not self._one_each:
            raise InvalidInput(
                f"the traces answer {questions:,} questions{_such_as(self)}: vote_many votes on "
                "each of them, question(id).vote() on one; where they are one question, "
                "question_id says so, such as question_id='prompt' for vLLM"
            )
        answers, rules = self._ballots(settings)
        return vote(named(answers, self._math) if questions > 1 else answers, **rules)

    def vote_many(self, **settings: Any) -> Votes:
        """The same vote on each question.

        Args:
            settings: as for `vote`.

        Raises:
            InvalidInput: a setting that cannot be right; traces of which none says what it answers,
                one a record.
        """
        if self._one_each:
            raise InvalidInput(
                f"{len(self):,} traces, and none says which question it answers: vote takes them "
                "for answers to one, and question_id tells them apart"
            )
        answers, rules = self._ballots(settings)
        return vote_many(self.questions, answers, **rules)

    @property
    def _one_each(self) -> bool:
        """Whether each is of a record of its own, and none says which question it answers."""
        return self._numbered and 1 < len(self) == len(set(self.questions))

    def _ballots(self, settings: Mapping[str, Any]) -> tuple[list[str | None], dict[str, Any]]:
        """The answers that count, and the other arguments of `deepconf.vote`."""
        only(settings, (*_VOTING, *SCORING))
        policy = Policy.offline(**settings)
        scores = None
        if measures(policy):
            scores = self.score(**{name: getattr(policy, name) for name in SCORING})
            if len(scores) and scores.short.all():
                warnings.warn(
                    f"no trace reaches the window of {policy.window} tokens (the longest has "
                    f"{scores.num_tokens.max()}): each is one group, its mean; use a smaller "
                    f"window, such as {fitting(scores.num_tokens)}",
                    SignalNeverArmed,
                    stacklevel=3,
                )
        answers = [
            answer if status in WHOLE and len(confidence) else None
            for answer, status, confidence in zip(
                self.answers, self.statuses, self.confidences, strict=True
            )
        ]
        return answers, _rules(policy, scores)

    def plot(
        self, *, window: int | None = None, threshold: float | None = None, ax: Axes | None = None
    ) -> Axes:
        """Group confidence along the traces, in two colours where it is known which are right.

        Args:
            window: tokens in a group; None for what the traces were recorded with, else an eighth
                of their length, at most 2048.
            threshold: where it is given, a cross marks where each trace would be stopped.
            ax: axes of matplotlib to draw on; None for a new figure.

        Raises:
            InvalidInput: a window or threshold that cannot be right.
            MissingExtra: matplotlib is not installed.
        """
        from deepconf import _plots

        if window is None:
            recorded = self.settings.get("window")
            window = recorded or fitting([len(confidence) for confidence in self.confidences])
        return _plots.of_traces(self, window, threshold, ax)

    def marked(
        self, gold: Mapping[str, Any] | str | Path | Iterable[Question | Mapping[str, Any]]
    ) -> Traces:
        """The same traces, marked right and wrong; those of other questions stay as they are.

        Args:
            gold: right answers: a mapping from question id, or a questions file.

        Raises:
            InvalidInput: none of the questions is in it.
        """
        if gold is None:
            raise InvalidInput(
                "gold is None: must be a mapping from question id, or a questions file"
            )
        known = right_answers(gold)
        answers: dict[str, dict[str, None]] = {name: {} for name in self.questions if name in known}
        if not answers:
            ids, keys = (", ".join(map(repr, list(of)[:3])) for of in (self.questions, known))
            raise InvalidInput(f"gold: has none of the questions, {ids}, ..., but {keys}, ...")
        if self._numbered and misnumbered(known, self.questions):
            raise InvalidInput(
                f"gold: its questions are called {min(known, key=int)} to {max(known, key=int)}, "
                f"and those of the traces have no ids and are numbered {self.questions[0]} to "
                f"{self.questions[-1]}: number gold as they are, from 1, or give both ids"
            )
        for name, answer in zip(self.questions, self.answers, strict=True):
            if name in answers and answer is not None:
                answers[name][answer] = None
        right = {n: marks(list(of), known[n], math=self._math) for n, of in answers.items()}

        def mark(row: dict[str, Any]) -> dict[str, Any]:
            name, answer = row["question_id"], row["answer"]
            if name not in right:
                return row
            correct = answer is not None and right[name][answer]
            failed = row["status"] == "failed"
            return {**row, "gold": known[name], "correct": None if failed else correct}

        rows = list(map(mark, self._rows))
        return Traces(rows, self.settings, numbered=self._numbered, math=self._math)

    def to_arrow(self) -> pa.Table:
        """A table in the columns of `traces.schema`, as `import_traces` gives.

        What takes traces, such as `diagnose`, `replay` and `tune`, takes these as they are.

        Raises:
            MissingExtra: pyarrow is not installed.
        """
        return table(self._rows, lambda: self.settings)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes a trace file, which the commands and `Traces.read` take.

        Args:
            path: where, `.parquet`, `.arrow` or `.feather`; a file that is there is replaced.

        Returns:
            The path.

        Raises:
            InvalidInput: another suffix.
            MissingExtra: pyarrow is not installed.
            TraceFileError: it cannot be written.
        """
        from deepconf.traces import TraceWriter, spare_recordings, target

        spare_recordings(target(path))
        found = self.to_arrow()
        with TraceWriter(path, schema=found.schema, settings=self.settings) as writer:
            writer.write(found)
        return writer.path

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """The same through the interface that libraries of data frames share."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def to_pandas(self) -> Any:
        """A data frame of pandas in the same columns; `confidence` holds arrays.

        Raises:
            MissingExtra: pandas is not installed.
        """
        from deepconf._frames import frame

        names = list(self._rows[0]) if self._rows else []
        return frame({name: [row[name] for row in self._rows] for name in names})


def _rules(policy: Policy, scores: Scores | None) -> dict[str, Any]:
    def column(measure: str) -> NDArray[np.float64]:
        found: NDArray[np.float64] = getattr(scores, measure)
        return found

    weighs = policy.weight != "majority"
    return {
        "weights": np.clip(column(policy.weight), 0.0, policy.max_weight) if weighs else None,
        "keep": policy.keep,
        "scores": column(policy.measure) if policy.keep < 1.0 else None,
        "min_ballots": policy.min_ballots,
    }


def _such_as(traces: Traces) -> str:
    names = ", ".join(map(repr, list(dict.fromkeys(traces.questions))[:3]))
    return f", such as {names}" if names else ""
