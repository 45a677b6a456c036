"""What came of an evaluation, as rows: accuracy and tokens of every way to vote."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deepconf._statistics import Difference, Estimate
from deepconf._words import counted
from deepconf.lab._verdict import counts_in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Report", "Row", "in_words"]

_COLUMNS = ("method", "accuracy", "tokens", "vs offline", "time", "against majority")


@dataclass(frozen=True)
class Row:
    """One way to answer, over all questions."""

    method: str
    """`pass@1`, `majority`, a measure and what is kept, a policy's name, or `majority of 33`."""
    kind: str
    """`trace` for one trace alone, `vote` for a vote over offline traces, `policy` for a run,
    `majority` for a plain vote at the tokens of the policy above."""
    questions: int
    """How many questions it is over."""
    accuracy: float | None
    """The fraction that is right; None without questions, or without answers to compare with."""
    tokens: float | None
    """Tokens generated for all of them."""
    against_offline: float | None
    """Tokens beside the offline policy's on the same questions, but for those in which a trace
    failed: -0.5 is half of them."""
    seconds: float | None
    """How long a policy's questions took; None for a vote over traces that were there."""
    fallback: int
    """In how many questions the filter left too few ballots and was given up."""
    error: float | None = None
    """The standard error of the accuracy, over questions."""
    against_majority: Difference | None = None
    """Its accuracy minus that of a plain majority at the same tokens, on the same questions."""
    same_as: str | None = None
    """Another row that is right in the same questions at the same tokens, and so says the same."""

    def cells(self) -> tuple[str, ...]:
        """As text: method, accuracy, tokens, against offline, time, against majority."""
        found = self.against_majority
        return (
            f"  {self.method}" if self.kind == "majority" else self.method,
            "–" if self.accuracy is None else f"{self.accuracy:.1%}{_error(self.error)}",
            "–" if self.tokens is None else f"{self.tokens:,.0f}",
            "–" if self.against_offline is None else _signed(self.against_offline),
            "–" if self.seconds is None else f"{self.seconds:,.1f} s",
            "–" if found is None else counts_in_words(found),
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
    auroc_within: dict[str, Estimate] = field(default_factory=dict)
    """The same within questions, which is what a vote can use, with 95% intervals."""
    answered: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By policy, how many of the traces that ran to their end have an answer, and of how many."""
    closing: str = ""
    """Whether confidence helped, in a sentence; empty where nothing tells."""

    columns = _COLUMNS

    def __repr__(self) -> str:
        """One line."""
        return f"<deepconf.Report {self.title}, {counted(len(self.rows), 'row')}>"

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

    def shown(self) -> list[tuple[Row, bool]]:
        """The rows that say something new, and whether a part of the table ends with each."""
        rows = [row for row in self.rows if row.same_as is None]
        parts = ["vote" if row.kind in ("trace", "vote") else "policy" for row in rows]
        ends = [part != after for part, after in zip(parts, [*parts[1:], "policy"], strict=True)]
        return list(zip(rows, ends, strict=True)) if rows else []

    def table(self) -> str:
        """The rows, AUROCs, notes and the closing sentence as plain text."""
        shown = self.shown()
        cells = [_COLUMNS, *(row.cells() for row, _ in shown)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(_COLUMNS))]
        rule = "─" * (sum(widths) + 2 * len(widths) - 2)
        lines = [self.title, ""]
        for line, ends in zip(cells, [True, *(ends for _, ends in shown)], strict=True):
            rest = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
            lines.append("  ".join([line[0].ljust(widths[0]), *rest]).rstrip())
            if ends:
                lines.append(rule)
        lines += ["", *self.footnotes(), self.closing]
        return "\n".join(lines).rstrip()

    @property
    def title(self) -> str:
        """One line about it."""
        return f"{self.model}: {counted(self.questions, 'question')}"

    def footnotes(self) -> list[str]:
        """What the table leaves out, the AUROCs and the notes, a line each."""
        lines = []
        same = defaultdict(list)
        for row in self.rows:
            if row.same_as is not None:
                same[row.same_as].append(row.method)
        for name, of in same.items():
            lines.append(f"right in the same questions as {name}: {'; '.join(of)}")
        if any(row.against_majority for row in self.rows):
            lines.append(
                "against majority: questions lost and won against the first traces of each, a head "
                "one vote, at no more tokens"
            )
        if self.auroc:
            lines.append(
                "AUROC, right against wrong traces, all and within questions: "
                + ", ".join(
                    f"{in_words(name)} {value:.3f} and {_within(self.auroc_within.get(name))}"
                    for name, value in self.auroc.items()
                )
            )
        if any(found < of for found, of in self.answered.values()):
            each = ", ".join(f"{name} {n:,} of {of:,}" for name, (n, of) in self.answered.items())
            lines.append(f"traces with an answer: {each}")
        return lines + [f"note: {note}" for note in self.notes]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the records, as plain JSON values."""
        return {
            "model": self.model,
            "questions": self.questions,
            "complete": self.complete,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "auroc": dict(self.auroc),
            "auroc_within": {k: dataclasses.asdict(v) for k, v in self.auroc_within.items()},
            "answered": {name: list(counts) for name, counts in self.answered.items()},
            "notes": list(self.notes),
            "closing": self.closing,
        }


def _signed(fraction: float) -> str:
    return f"{fraction:+.1%}" if fraction else "0.0%"


def _error(error: float | None) -> str:
    return "" if error is None else f" ± {100 * error:.1f}"


def _within(found: Estimate | None) -> str:
    if found is None:
        return "–"
    ends = "" if found.low is None else f" [{found.low:.3f}, {found.high:.3f}]"
    return f"{found.value:.3f}{ends}"


def in_words(measure: str) -> str:
    """`lowest group`."""
    return measure.replace("_", " ")
