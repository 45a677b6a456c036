"""How results show themselves in a notebook: small tables, in which everything is escaped."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from deepconf._words import counted

if TYPE_CHECKING:
    from deepconf._core import Vote
    from deepconf.held import Traces
    from deepconf.lab.played import Replay
    from deepconf.report import Report
    from deepconf.result import Result

__all__ = ["MOST_ROWS", "of_replay", "of_report", "of_result", "of_traces", "of_vote", "table"]

MOST_ROWS = 10
_LONGEST = 200
"""Characters of a text that are shown."""


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    count: int | None = None,
    notes: Iterable[str] = (),
) -> str:
    """A title, some rows, how many more there are, and notes, as HTML.

    Args:
        title: one line of text.
        columns: their names.
        rows: cells, of which floats are shown with four digits and None as a dash.
        count: how many rows there are; only the first ones are shown. None to show all.
        notes: lines of text.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    shown = rows if count is None else itertools.islice(rows, MOST_ROWS)
    body = "".join(f"<tr>{''.join(map(_cell, itertools.count(), row))}</tr>" for row in shown)
    more = (
        "" if count is None or count <= MOST_ROWS else f"<div>and {count - MOST_ROWS:,} more</div>"
    )
    lines = "".join(f"<div>{escape(note)}</div>" for note in notes)
    return (
        f"<div><b>{escape(title)}</b></div><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{more}{lines}"
    )


def _cell(place: int, value: Any) -> str:
    align = "right" if place else "left"
    return f'<td style="text-align: {align}">{escape(_text(value))}</td>'


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def of_vote(vote: Vote) -> str:
    """The ballots of a vote."""
    rows: list[Any] = list(vote)
    title = f"Vote: {_text(vote.answer)}"
    notes = [f"{vote.num_voters} voted, share {vote.share:.2f}"]
    if vote.threshold is not None:
        notes[0] += f", threshold {vote.threshold:.4g}"
    if vote.fallback:
        notes.append("the filter left too few ballots and was given up: all voted")
    return table(title, ("answer", "weight", "voters", "share"), rows, len(rows), notes)


def of_result(result: Result) -> str:
    """The answer, the ballots, and what it took."""
    tokens = result.tokens
    counts = Counter(trace.status for trace in result.traces)
    each = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    spent = f"tokens: {tokens.generated:,} generated"
    if tokens.saved is not None:
        spent += f", about {tokens.saved:,.0f} saved, compared with {tokens.compared_with}"
    ended = f"ended by {result.reason} after {result.timing.total:.1f} s"
    notes = [f"{counted(len(result.traces), 'trace')}: {each}", spent, ended, *result.warnings]
    return of_vote(result.vote) + "".join(f"<div>{escape(note)}</div>" for note in notes)


def of_report(report: Report) -> str:
    """The rows of an evaluation."""
    rows = (row.cells() for row, _ in report.shown())
    notes = [*report.footnotes(), *([report.closing] if report.closing else [])]
    return table(report.title, report.columns, rows, notes=notes)


def of_replay(replay: Replay) -> str:
    """Each policy beside majority at the same tokens."""
    found = replay.summary()
    what = "accuracy" if found.gold else "agreement"
    rows = (
        (
            row.label,
            f"{row.accuracy.value:.1%}",
            f"{row.tokens.value:,.0f}",
            f"{row.share:.1%}",
            f"{row.same_tokens['majority'].accuracy:.1%}",
        )
        for row in found.rows
    )
    columns = ("policy", what, "tokens", "of budget", "majority at the same tokens")
    title = (
        f"Replay: {counted(found.questions, 'question')}, {counted(found.repeats, 'draw')} of each"
    )
    return table(title, columns, rows, len(found.rows), [*found.notes, found.closing])


def of_traces(traces: Traces) -> str:
    """How many traces, tokens and answers each question has."""
    count: Counter[str] = Counter(traces.questions)
    tokens: Counter[str] = Counter()
    answers: dict[str, Counter[str]] = {}
    for name, answer, confidence in zip(
        traces.questions, traces.answers, traces.confidences, strict=True
    ):
        tokens[name] += len(confidence)
        answers.setdefault(name, Counter()).update([answer] if answer is not None else [])
    rows = (
        (name, count[name], tokens[name], answers[name].total(), _leading(answers[name]))
        for name in count
    )
    columns = ("question", "traces", "tokens", "answers", "most frequent")
    return table(traces.title, columns, rows, len(count))


def _leading(answers: Counter[str]) -> str | None:
    return next((f"{answer} ({n})" for answer, n in answers.most_common(1)), None)
