"""Plain majority beside live policies, on the traces of an offline run.

What a run file says of the traces of an offline policy is enough to replay any majority of them:
answers and lengths. A live run launches traces of the same seeds first, so here the first traces of
each question vote, in launch order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepconf._core import Policy
from deepconf._statistics import Difference, paired
from deepconf.lab._summary import Equal
from deepconf.lab.replay import Pool, plain
from deepconf.result import WHOLE

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Majorities", "majorities"]

Floats = NDArray[np.float64]
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Majorities:
    """What plain majority does at every budget, and what it does until so many agree."""

    questions: list[str]
    correct: dict[str, Floats]
    """By variant, 1 for right and 0 for wrong: `[budgets, questions]`, for 1 trace, 2, ..."""
    tokens: dict[str, Floats]
    """Likewise, tokens generated."""

    def at(self, places: Sequence[int], right: Floats, spent: float) -> dict[str, Equal]:
        """By variant, the largest budget that takes no more tokens than a policy did.

        Args:
            places: of the policy's questions among these.
            right: whether the policy was right in each.
            spent: its tokens in all of them.
        """
        return {name: self._at(name, places, right, spent) for name in self.correct}

    def whole(self, name: str, places: Sequence[int]) -> tuple[Floats, float]:
        """Of the whole budget: whether it is right in each question, and all its tokens."""
        return self.correct[name][-1, places], float(self.tokens[name][-1, places].sum())

    def _at(self, name: str, places: Sequence[int], right: Floats, spent: float) -> Equal:
        # More traces cost more on the whole; a consensus may make neighbours equal.
        cost = np.maximum.accumulate(self.tokens[name][:, places].sum(axis=1))
        most = int(np.searchsorted(cost, spent, side="right")) - 1
        beyond = "below" if most < 0 else "above" if cost[-1] < spent else None
        budget = max(most, 0)
        # Of budgets that cost the same, the smallest.
        budget = int(np.searchsorted(cost, cost[budget], side="left"))
        mine = self.correct[name][budget, places]
        return Equal(
            accuracy=float(mine.mean()),
            tokens=float(cost[budget]) / len(places),
            budgets=(budget + 1, budget + 1),
            share=1.0,
            beyond=beyond,
            difference=difference(right, mine),
        )


def difference(first: Floats, second: Floats) -> Difference:
    """How much higher the first is, question by question."""
    return paired(first[None], second[None])[0]


def majorities(records: Mapping[str, Record], policy: Policy) -> Majorities | None:
    """Replays every majority on an offline run's traces.

    Args:
        records: of the run file, by question.
        policy: the offline policy they are of.

    Returns:
        None where no question has all traces of the budget and a known answer, or no trace has one.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    from deepconf.traces._schema import arrow

    arrow()
    whole = {name: record for name, record in records.items() if _is_whole(record, policy.budget)}
    if not any(t["answer"] for record in whole.values() for t in record["result"]["traces"]):
        return None
    votes = plain(policy, range(1, policy.budget + 1))
    every = {f"{name} {each.budget}": each for name, of in votes.items() for each in of}
    played = Pool.read(_table(whole), every).replay(repeats=None)
    shape = (len(votes), policy.budget, len(whole))
    correct, tokens = (
        dict(zip(votes, each[:, :, 0].astype(np.float64).reshape(shape), strict=True))
        for each in (played.correct, played.tokens)
    )
    return Majorities(played.questions, correct, tokens)


def _is_whole(record: Record, budget: int) -> bool:
    traces = record["result"]["traces"]
    ended = all(trace["status"] in WHOLE for trace in traces)
    return record["correct"] is not None and ended and len(traces) == budget


def _table(records: Mapping[str, Record]) -> pa.RecordBatchReader:
    """The traces as a trace file has them, with confidences of 0: a head has one vote whatever."""
    import pyarrow as pa

    from deepconf.traces import schema

    names = ("question_id", "trace", "answer", "status", "num_tokens", "confidence", "correct")
    columns = pa.schema([schema().field(name) for name in names])

    def batches() -> Iterator[pa.RecordBatch]:
        for question, record in records.items():
            traces = record["result"]["traces"]
            sizes = [trace["num_tokens"] for trace in traces]
            ends = np.cumsum([0, *sizes]).astype(np.int32)
            answers = [trace["answer"] if trace["num_tokens"] else None for trace in traces]
            rows = {
                "question_id": [question] * len(traces),
                "trace": range(len(traces)),
                "answer": answers,
                "status": [trace["status"] for trace in traces],
                "num_tokens": sizes,
                "confidence": pa.ListArray.from_arrays(ends, np.zeros(ends[-1], np.float32)),
                "correct": [
                    None if answer is None else trace["correct"]
                    for answer, trace in zip(answers, traces, strict=True)
                ],
            }
            yield pa.record_batch([_column(rows[n], columns.field(n).type) for n in names], columns)

    return pa.RecordBatchReader.from_batches(columns, batches())


def _column(values: Any, kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    return values if isinstance(values, pa.Array) else pa.array(values, kind)
