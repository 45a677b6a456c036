"""What came of an evaluation: accuracy and tokens of every way to vote, as rows.

Rows are reckoned from records, one a policy and question (see `deepconf.evaluate`). All that an
offline policy generated is there, so each vote over it is exact: the same traces, weighed and
filtered anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepconf._core import Policy, vote_many
from deepconf._statistics import auroc

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["KEEPS", "MEASURES", "Report", "Row", "auroc", "summarise"]

Record = Mapping[str, Any]

MEASURES = ("mean", "lowest_group", "bottom_group", "tail")
"""The scores of a trace that a vote can weigh."""
KEEPS = (1.0, 0.9, 0.1)
"""The fractions of traces that a vote keeps."""
_WHOLE = ("finished", "length")
_COLUMNS = ("method", "accuracy", "tokens", "vs offline", "time")


@dataclass(frozen=True)
class Row:
    """One way to answer, over all questions."""

    method: str
    """`pass@1`, `majority`, a measure and what is kept, or a policy's name."""
    kind: str
    """`trace` for one trace alone, `vote` for a vote over offline traces, `policy` for a run."""
    questions: int
    """How many questions it is over."""
    accuracy: float | None
    """The fraction that is right; None without questions."""
    tokens: float | None
    """Tokens generated for all of them."""
    against_offline: float | None
    """Tokens beside the offline policy's on the same questions, but for those in which a trace
    failed: -0.5 is half of them."""
    seconds: float | None
    """How long a policy's questions took; None for a vote over traces that were there."""
    fallback: int
    """In how many questions the filter left too few ballots and was given up."""

    def cells(self) -> tuple[str, ...]:
        """As text: method, accuracy, tokens, tokens against offline, time."""
        return (
            self.method,
            "–" if self.accuracy is None else f"{self.accuracy:.1%}",
            "–" if self.tokens is None else f"{self.tokens:,.0f}",
            "–" if self.against_offline is None else _signed(self.against_offline),
            "–" if self.seconds is None else f"{self.seconds:,.1f} s",
        )


@dataclass(frozen=True)
class Report:
    """The rows of an evaluation, and what else is to be known of it."""

    model: str
    questions: int
    """How many were asked, finished or not."""
    rows: list[Row]
    auroc: dict[str, float]
    """For each measure, how well it tells right traces from wrong ones: 0.5 is chance. Empty
    without an offline policy, or where all traces are right or all wrong."""
    notes: list[str]
    """What the reader must know: filters given up, signals that never armed, questions missing."""
    complete: bool
    """Whether every policy has every question."""
    records: list[dict[str, Any]] = field(repr=False, compare=False)
    """What it was reckoned from, one a policy and question."""

    columns = _COLUMNS

    def __repr__(self) -> str:
        """One line."""
        return f"<deepconf.Report {self.title}, {len(self.rows)} rows>"

    def _repr_html_(self) -> str:
        from deepconf import _html

        return _html.of_report(self)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Accuracy against tokens, a point a row.

        Args:
            ax: axes of matplotlib to draw on; None for a new figure.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        from deepconf import _plots

        return _plots.of_report(self, ax)

    def table(self) -> str:
        """The rows, AUROCs and notes as plain text."""
        lines = [self.title, ""]
        cells = [_COLUMNS, *(row.cells() for row in self.rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(_COLUMNS))]
        kinds = ["", *(row.kind for row in self.rows)]
        for place, line in enumerate(cells):
            if place and kinds[place] != kinds[place - 1]:
                lines.append("─" * (sum(widths) + 2 * len(widths) - 2))
            first, *rest = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            lines.append("  ".join([first.strip().ljust(widths[0]), *rest]).rstrip())
        lines += ["", *self.footnotes()]
        return "\n".join(lines).rstrip()

    @property
    def title(self) -> str:
        """One line about it."""
        plural = "" if self.questions == 1 else "s"
        return f"{self.model}: {self.questions} question{plural}"

    def footnotes(self) -> list[str]:
        """The AUROCs and the notes, a line each."""
        lines = []
        if self.auroc:
            each = ", ".join(f"{_named(name)} {value:.3f}" for name, value in self.auroc.items())
            lines.append(f"AUROC, right against wrong traces: {each}")
        return lines + [f"note: {note}" for note in self.notes]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the records, as plain JSON values."""
        return {
            "model": self.model,
            "questions": self.questions,
            "complete": self.complete,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "auroc": dict(self.auroc),
            "notes": list(self.notes),
        }


def summarise(
    model: str,
    questions: Sequence[str],
    policies: Mapping[str, Policy],
    records: Iterable[Record],
) -> Report:
    """The report of these records.

    Args:
        model: its name, for the title.
        questions: the ids of all questions; records of others are left out.
        policies: by label; records of others are left out.
        records: one a policy and question.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {label: {} for label in policies}
    for record in records:
        if record["policy"] in found:
            found[record["policy"]].setdefault(record["id"], dict(record))
    by_policy = {
        label: {name: of[name] for name in questions if name in of} for label, of in found.items()
    }
    # All traces of the budget, each to its end: what votes are taken over, and compared with.
    whole = (k for k, p in policies.items() if p.mode == "offline" and p.stop == "budget")
    reference = next((label for label in whole if by_policy[label]), None)
    rows: list[Row] = []
    measured: dict[str, float] = {}
    if reference is not None:
        traces = _Traces(list(by_policy[reference].values()), policies[reference])
        rows += traces.rows()
        measured = traces.auroc()
    offline = by_policy[reference] if reference is not None else {}
    rows += [_policy_row(label, by_policy[label], offline) for label in policies]
    complete = all(len(of) == len(questions) for of in by_policy.values())
    return Report(
        model=model,
        questions=len(questions),
        rows=rows,
        auroc=measured,
        notes=_notes(rows, by_policy, len(questions), reference),
        complete=complete,
        records=[record for of in by_policy.values() for record in of.values()],
    )


class _Traces:
    """The traces of an offline run, as columns."""

    def __init__(self, records: list[dict[str, Any]], policy: Policy) -> None:
        self.policy = policy
        self.records = records
        # One that failed is no trace of the model's: it counts neither as wrong nor as short.
        traces = [
            (at, trace)
            for at, record in enumerate(records)
            for trace in _traces(record)
            if trace["status"] != "failed"
        ]
        self.question = np.array([at for at, _ in traces], np.int64)
        self.right = np.array([bool(trace["correct"]) for _, trace in traces], np.bool_)
        self.scores: dict[str, NDArray[np.float64]] = {
            name: np.array([_score(trace, name) for _, trace in traces], np.float64)
            for name in MEASURES
        }
        # As the controller has it: one that was cut at the length limit may vote, offline.
        self.answers = [
            trace["answer"] if trace["num_tokens"] and trace["status"] in _WHOLE else None
            for _, trace in traces
        ]
        self.truth = [{t["answer"] for t in _traces(record) if t["correct"]} for record in records]
        self.tokens = float(sum(record["result"]["tokens"]["generated"] for record in records))

    def rows(self) -> list[Row]:
        sizes = np.bincount(self.question, minlength=len(self.records))
        hits = np.bincount(self.question, weights=self.right, minlength=len(self.records))
        alone = sum(
            (record["result"]["tokens"]["generated"] - _lost_tokens(record)) / size
            for record, size in zip(self.records, sizes, strict=True)
        )
        one = self._row("pass@1", "trace", float(np.mean(hits / sizes)), float(alone), 0)
        rows = [one, self._vote("majority", None, 1.0)]
        for name in MEASURES:
            weights = np.clip(self.scores[name], 0.0, self.policy.max_weight)
            for keep in KEEPS:
                kept = "all" if keep == 1.0 else f"top {keep:.0%}"
                rows.append(self._vote(f"{_named(name)}, {kept}", weights, keep, self.scores[name]))
        return rows

    def auroc(self) -> dict[str, float]:
        values = {name: auroc(self.scores[name], self.right) for name in MEASURES}
        return {name: value for name, value in values.items() if not np.isnan(value)}

    def _vote(
        self,
        method: str,
        weights: NDArray[np.float64] | None,
        keep: float,
        scores: NDArray[np.float64] | None = None,
    ) -> Row:
        votes = vote_many(
            self.question.tolist(),
            self.answers,
            weights,
            keep,
            scores if keep < 1.0 else None,
            min_ballots=self.policy.min_ballots,
        )
        winners = dict(zip(votes.questions, votes.answers, strict=True))
        right = [winners.get(at) in self.truth[at] for at in range(len(self.records))]
        fallback = int(votes.fallback.sum()) if keep < 1.0 else 0
        return self._row(method, "vote", float(np.mean(right)), self.tokens, fallback)

    def _row(self, method: str, kind: str, accuracy: float, tokens: float, fallback: int) -> Row:
        against = tokens / self.tokens - 1.0 if self.tokens else None
        return Row(method, kind, len(self.records), accuracy, tokens, against, None, fallback)


def _policy_row(label: str, of: Mapping[str, Record], offline: Mapping[str, Record]) -> Row:
    if not of:
        return Row(label, "policy", 0, None, None, None, None, 0)
    # Where traces failed, tokens are missing that nobody saved.
    both = [
        name
        for name in of
        if name in offline and not _failed(of[name]) and not _failed(offline[name])
    ]
    base = sum(offline[name]["result"]["tokens"]["generated"] for name in both)
    tokens = sum(of[name]["result"]["tokens"]["generated"] for name in both)
    return Row(
        method=label,
        kind="policy",
        questions=len(of),
        accuracy=float(np.mean([bool(record["correct"]) for record in of.values()])),
        tokens=float(sum(record["result"]["tokens"]["generated"] for record in of.values())),
        against_offline=tokens / base - 1.0 if base else None,
        seconds=_busy([(record["started"], record["ended"]) for record in of.values()]),
        fallback=sum(bool(record["result"]["fallback"]) for record in of.values()),
    )


def _busy(intervals: list[tuple[float, float]]) -> float:
    """How long at least one interval was running: what overlaps counts once, pauses not at all."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def _notes(
    rows: list[Row],
    by_policy: Mapping[str, Mapping[str, Record]],
    asked: int,
    reference: str | None,
) -> list[str]:
    notes = []
    if reference is None:
        notes.append(
            "no offline policy has finished a question: pass@1, votes, AUROC and savings need "
            "traces that all ran to their end, so they are left out"
        )
    notes += [
        f"{label}: {len(of)} of {asked} questions finished, its row is over those"
        for label, of in by_policy.items()
        if len(of) < asked
    ]
    for label, of in by_policy.items():
        failed = [count for record in of.values() if (count := _failed(record))]
        if failed:
            notes.append(
                f"{label}: {sum(failed)} {'trace' if sum(failed) == 1 else 'traces'} failed, in "
                f"{len(failed)} of {len(of)} questions, whose tokens are compared with nothing"
            )
    for label, of in by_policy.items():
        silent = sum(_silent(record) for record in of.values())
        if silent:
            notes.append(
                f"{label}: in {silent} of {len(of)} questions no trace had an answer: does the "
                f"prompt ask for one in the form that is looked for? (suffix=, --suffix)"
            )
    given_up = [f"{row.method}: {row.fallback}/{row.questions}" for row in rows if row.fallback]
    if given_up:
        notes.append(
            "the filter left too few ballots and was given up in some questions: "
            + "; ".join(given_up)
        )
    for label, of in by_policy.items():
        unarmed = [why for record in of.values() if (why := record["result"]["unarmed"])]
        if unarmed:
            notes.append(
                f"{label}: in {len(unarmed)} of {len(of)} questions the signal never armed: "
                f"{unarmed[0]}"
            )
        others = [first for record in of.values() if (first := _other_warning(record))]
        if others:
            notes.append(
                f"{label}: {len(others)} of {len(of)} questions came with a warning, the first: "
                f"{others[0]}"
            )
    return notes


def _traces(record: Record) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = record["result"]["traces"]
    return traces


def _other_warning(record: Record) -> str | None:
    """The first warning that no other note is about."""
    result = record["result"]
    told = {result["unarmed"]}
    for warning in result.get("warnings", ()):
        about_failed = _failed(record) and "traces failed" in warning
        if warning not in told and not about_failed and not _silent(record):
            return str(warning)
    return None


def _silent(record: Record) -> bool:
    return all(trace["answer"] is None for trace in _traces(record))


def _failed(record: Record) -> int:
    return sum(trace["status"] == "failed" for trace in _traces(record))


def _lost_tokens(record: Record) -> int:
    return sum(trace["num_tokens"] for trace in _traces(record) if trace["status"] == "failed")


def _score(trace: Mapping[str, Any], measure: str) -> float:
    value = trace[measure]
    return float("nan") if value is None else float(value)


def _signed(fraction: float) -> str:
    return f"{fraction:+.1%}" if fraction else "0.0%"


def _named(measure: str) -> str:
    return measure.replace("_", " ")
