"""The votes of many questions, from what little a vote has to know of each trace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepconf._core import Policy, Vote, vote
from deepconf.batch._scoring import scores_of
from deepconf.errors import InvalidInput
from deepconf.result import WHOLE
from deepconf.traces._schema import arrow

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Ballots", "vote_schema"]

# How traces end that may vote, as in an offline run.


def vote_schema() -> pa.Schema:
    """The columns of votes, a row a question."""
    pa = arrow()
    return pa.schema(
        [
            pa.field("question_id", pa.string(), nullable=False),
            pa.field("answer", pa.string()),
            pa.field("share", pa.float64(), nullable=False),
            pa.field("weight", pa.float64(), nullable=False),
            pa.field("num_voters", pa.int32(), nullable=False),
            pa.field("fallback", pa.bool_(), nullable=False),
            pa.field("threshold", pa.float64()),
            pa.field("num_traces", pa.int32(), nullable=False),
            pa.field("correct", pa.bool_()),
        ]
    )


class Ballots:
    """What a vote has to know of each trace, gathered batch by batch."""

    def __init__(self, policy: Policy, needed: list[str], scored: bool) -> None:
        self._policy = policy
        self._needed = needed
        self._scored = scored
        self._batches: list[pa.RecordBatch] = []
        self._gold: dict[str, str] = {}
        self._marks: dict[tuple[str, str], bool] = {}
        self.longest = 0
        """Tokens of the longest trace."""

    def small(self, batch: pa.RecordBatch, threads: int) -> pa.RecordBatch:
        """A batch without its confidences, and with the measures that are needed."""
        import pyarrow.compute as pc

        pa = arrow()
        whole = pc.and_(
            pc.is_in(batch["status"], value_set=pa.array(WHOLE, pa.string())),
            pc.greater(batch["num_tokens"], 0),
        )
        columns: dict[str, Any] = {
            "question_id": batch["question_id"],
            "trace": batch["trace"],
            "answer": batch["answer"],
            "whole": whole,
            "num_tokens": batch["num_tokens"],
        }
        for name in ("correct", "gold"):
            if name in batch.schema.names:
                columns[name] = batch[name]
        scores = (
            None if self._scored or not self._needed else scores_of(batch, self._policy, threads)
        )
        for name in self._needed:
            if scores is not None:
                columns[name] = pa.array(getattr(scores, name))
            elif pa.types.is_floating(batch[name].type):
                columns[name] = batch[name].cast(pa.float64()).fill_null(np.nan)
            else:
                raise InvalidInput(f"column {name} is {batch[name].type}: must be double")
        return pa.RecordBatch.from_pydict(columns)

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes a batch of `small`; what is the same for many traces is kept once."""
        pa = arrow()
        table = pa.Table.from_batches([batch])
        self.longest = max(self.longest, int(batch["num_tokens"].to_numpy().max(initial=0)))
        if "gold" in batch.schema.names:
            for question, gold in _distinct(table, ["question_id", "gold"]):
                if self._gold.setdefault(question, gold) != gold:
                    raise InvalidInput(
                        f"question {question!r} has the gold answers {self._gold[question]!r} and "
                        f"{gold!r}"
                    )
        if "correct" in batch.schema.names:
            for question, answer, mark in _distinct(table, ["question_id", "answer", "correct"]):
                if self._marks.setdefault((question, answer), mark) != mark:
                    raise InvalidInput(
                        f"question {question!r}: the answer {answer!r} is marked right and wrong"
                    )
        names = ["question_id", "trace", "answer", "whole", *self._needed]
        columns = {name: batch[name] for name in names}
        for name in ("question_id", "answer"):  # Each text once a batch.
            columns[name] = columns[name].dictionary_encode()
        self._batches.append(pa.RecordBatch.from_pydict(columns))

    def table(self, schema: pa.Schema) -> pa.Table:
        """The votes, a row a question."""
        pa = arrow()
        traces = pa.Table.from_batches(self._batches).unify_dictionaries()
        self._batches.clear()
        questions, answers = (traces[name].combine_chunks() for name in ("question_id", "answer"))
        names, texts = questions.dictionary.to_pylist(), answers.dictionary
        codes, numbers = questions.indices.to_numpy(), traces["trace"].to_numpy()
        # In launch order, which decides ties.
        order = np.lexsort((numbers, codes))
        codes, numbers = codes[order], numbers[order]
        twice = np.flatnonzero((np.diff(codes) == 0) & (np.diff(numbers) == 0))
        if len(twice):
            raise InvalidInput(
                f"question {names[codes[twice[0]]]!r} has trace {numbers[twice[0]]} twice: the "
                "files repeat each other, or hold runs that need ids of their own"
            )
        whole = traces["whole"].to_numpy()[order]
        given = _where(answers.indices.take(pa.array(order)), whole)
        measures = {name: traces[name].to_numpy()[order] for name in self._needed}
        bounds = np.searchsorted(codes, np.arange(len(names) + 1))
        rows: dict[str, list[Any]] = {name: [] for name in schema.names}
        for name, start, end in zip(names, bounds[:-1], bounds[1:], strict=True):
            part = slice(int(start), int(end))
            scores = {key: values[part] for key, values in measures.items()}
            try:
                found = self._vote(given[part], whole[part], scores)
            except InvalidInput as error:
                raise InvalidInput(f"question {name!r}: {error}") from error
            answer = None if found.answer is None else texts[found.answer].as_py()
            rows["question_id"].append(name)
            rows["answer"].append(answer)
            rows["share"].append(found.share)
            rows["weight"].append(found.ballots.get(found.answer, 0.0))
            rows["num_voters"].append(found.num_voters)
            rows["fallback"].append(found.fallback)
            rows["threshold"].append(found.threshold)
            rows["num_traces"].append(end - start)
            rows["correct"].append(self._correct(name, answer))
        return pa.table(rows, schema=schema)

    def _vote(
        self, answers: Any, whole: NDArray[np.bool_], measures: dict[str, NDArray[np.float64]]
    ) -> Vote:
        policy = self._policy
        weights = measures.get(policy.weight)
        if weights is not None:
            voting = np.asarray(answers.is_valid()) & (weights < 0)
            if voting.any():
                raise InvalidInput(
                    f"a trace would weigh {weights[voting][0]:.4g}: a confidence is minus the mean "
                    "of log-probabilities, and at least 0: are these log-probabilities?"
                )
            weights = np.clip(weights, 0.0, policy.max_weight)
        least = policy.min_ballots
        if policy.keep == 1.0:
            return vote(answers, weights, min_ballots=least)
        scores = measures[policy.measure]
        if policy.percentile_over == "answered":
            return vote(answers, weights, policy.keep, scores, min_ballots=least)
        # The same percentile, of all traces as if each had an answer.
        everyone = _where(arrow().array(np.ones(len(whole), np.int8)), whole)
        threshold = vote(everyone, None, policy.keep, scores).threshold
        if threshold is None:
            return vote(answers, weights, min_ballots=least)
        found = vote(_where(answers, scores >= threshold), weights)
        given_up = found.num_voters < least
        if given_up:
            found = vote(answers, weights)
        return Vote(
            found.answer,
            found.ballots,
            found.voters,
            found.share,
            found.num_voters,
            threshold,
            given_up,
        )

    def _correct(self, question: str, answer: str | None) -> bool | None:
        from deepconf.answers import marks

        gold = self._gold.get(question)
        if answer is None:
            # Whoever says nothing is wrong where there is something to be said.
            return None if gold is None else False
        mark = self._marks.get((question, answer))
        if mark is None and gold is not None:
            return marks([answer], gold)[answer]
        return mark


def _where(answers: Any, mask: NDArray[np.bool_]) -> Any:
    """The answers under a mask, and nulls elsewhere."""
    import pyarrow.compute as pc

    return pc.if_else(arrow().array(mask), answers, None)


def _distinct(table: pa.Table, names: list[str]) -> Iterator[tuple[Any, ...]]:
    """The distinct rows of some columns that hold no null."""
    rows = table.select(names).drop_null().group_by(names).aggregate([])
    return zip(*(rows[name].to_pylist() for name in names), strict=True)
