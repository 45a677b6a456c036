"""What a replay came to: a run for each policy, question and repeat; plain majority beside them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepconf._core import Policy
from deepconf._words import counted

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes

    from deepconf.lab._summary import Summary

__all__ = ["RUN_COLUMNS", "Frontier", "Replay"]

RUN_COLUMNS = (
    "answer", "tokens", "steps", "launched", "finished", "stopped", "aborted", "threshold",
    "fallback", "reason", "unarmed",
)  # fmt: skip


@dataclass(frozen=True)
class Frontier:
    """What plain voting does at every budget: one head, one vote."""

    budgets: NDArray[np.int64]
    """Traces, `[budgets]`."""
    policies: dict[str, list[Policy]]
    """What was replayed at each: `majority`, of all traces of the budget, all at once; and
    `consensus`, which has no more in flight than the paper's warmup at that budget (16, or a
    quarter of it), and ends once 95% of as many votes, and three at least, agree."""
    correct: dict[str, NDArray[np.float64]]
    """Accuracy of each, `[budgets, questions]`, means over repeats."""
    tokens: dict[str, NDArray[np.float64]]
    """Tokens, likewise."""
    steps: dict[str, NDArray[np.float64]]
    """The step in which the answer was given, likewise."""


@dataclass(frozen=True)
class Replay:
    """What came of a replay: an entry for each policy, question and repeat."""

    policies: dict[str, Policy]
    """By label, in the order given."""
    questions: list[str]
    """Their names, in the order met."""
    gold: bool
    """Whether `correct` compares with known answers. If not, with the majority over the whole pool
    of a question."""
    correct: NDArray[np.int8]
    """1 for a right answer, 0 for a wrong one or none: `[policies, questions, repeats]`."""
    tokens: NDArray[np.int64]
    """Generated tokens, those of stopped and aborted traces included; the same shape."""
    full: NDArray[np.int64]
    """Tokens of the whole budget, had nothing been stopped; the same shape."""
    steps: NDArray[np.int64]
    """The step in which the answer was given; the same shape."""
    columns: dict[str, NDArray[Any]]
    """All that a run has, by the names of `to_arrow`; the same shape. `answer` is a place in
    `answers`, -1 for none, `reason` one in `reasons`; `threshold` is NaN for none."""
    answers: list[list[str]]
    """The different answers of each question."""
    reasons: tuple[str, ...]
    frontier: Frontier
    draws: Mapping[str, Any]
    """How traces were drawn: `repeats`, `seed`, `lag`, `short_pools`; and `resampled` and
    `skipped`, the questions with fewer traces than a budget."""
    unarmed: list[str] = field(default_factory=list)
    """Of policies whose window does not fit the traces, how; `SignalNeverArmed` warns of each."""
    notes: list[str] = field(default_factory=list)
    """What its reader must know besides."""

    @property
    def repeats(self) -> int:
        """How many runs each policy had on each question."""
        return int(self.tokens.shape[2])

    def __repr__(self) -> str:
        """One line."""
        policies = counted(len(self.policies), "policy", "policies")
        shape = f"{policies}, {counted(len(self.questions), 'question')}"
        return f"<deepconf.Replay: {shape}, {counted(self.repeats, 'repeat')}>"

    def __str__(self) -> str:
        """What it comes to: the summary, with its verdict."""
        return str(self.summary())

    def _repr_html_(self) -> str:
        from deepconf import _html

        return _html.of_replay(self)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Accuracy against tokens a question: policies, beside plain majority at every budget.

        Args:
            ax: axes of matplotlib to draw on; None for a new figure.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        from deepconf import _plots

        return _plots.of_replay(self, ax)

    def summary(self) -> Summary:
        """The figures: each policy's, paired differences, and majority at the same tokens."""
        from deepconf.lab._summary import summary

        return summary(self)

    def table(self) -> list[dict[str, Any]]:
        """The rows of the summary as plain values, policies first, then majority."""
        return self.summary().table()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What `to_arrow` has, as plain values: for replays of few runs."""
        rows: list[dict[str, Any]] = self.to_arrow().to_pylist()
        return rows

    def to_arrow(self) -> pa.Table:
        """A row for each policy, question and repeat.

        Columns: `policy`, `question_id`, `repeat`, `answer` (null for none), `correct`, `tokens`,
        `steps`, `launched`, `finished`, `stopped`, `aborted`, `threshold` (nats; null for none),
        `fallback`, `reason`, `unarmed`.

        Raises:
            MissingExtra: pyarrow is not installed.
        """
        from deepconf.traces._schema import arrow

        pa = arrow()
        shape = policies, questions, repeats = self.tokens.shape
        first = np.cumsum([0, *map(len, self.answers)])
        texts = pa.array(list(itertools.chain(*self.answers)), pa.string())
        answer = self.columns["answer"]
        place = answer + first[:-1][None, :, None]

        def coded(codes: NDArray[Any], names: Iterable[str]) -> Any:
            codes = np.broadcast_to(codes, shape).reshape(-1).astype(np.int32)
            return pa.DictionaryArray.from_arrays(codes, pa.array(list(names), pa.string()))

        threshold = self.columns["threshold"].reshape(-1)
        columns = {
            "policy": coded(np.arange(policies)[:, None, None], self.policies),
            "question_id": coded(np.arange(questions)[None, :, None], self.questions),
            "repeat": np.broadcast_to(np.arange(repeats, dtype=np.int32), shape).reshape(-1),
            "answer": pa.DictionaryArray.from_arrays(
                pa.array(place.reshape(-1), pa.int64(), mask=(answer < 0).reshape(-1)), texts
            ).cast(pa.string()),
            "correct": self.correct.reshape(-1).astype(bool),
            "threshold": pa.array(threshold, mask=np.isnan(threshold)),
            "reason": coded(self.columns["reason"], self.reasons),
        }
        rest = {name: self.columns[name].reshape(-1) for name in RUN_COLUMNS if name not in columns}
        names = ("policy", "question_id", "repeat", "answer", "correct", *RUN_COLUMNS[1:])
        return pa.table({name: (columns | rest)[name] for name in names})

    def to_pandas(self) -> Any:
        """The same as a data frame of pandas.

        Raises:
            MissingExtra: pandas or pyarrow is not installed.
        """
        from deepconf._frames import frame_of

        return frame_of(self.to_arrow())
