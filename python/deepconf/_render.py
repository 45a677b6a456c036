"""Results and reports on a terminal, with rich."""

from __future__ import annotations

from collections import Counter

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepconf.report import Report
from deepconf.result import Result

__all__ = ["WIDE", "show_report", "show_result", "show_settings", "show_warnings"]

WIDE = 240
"""Where lines need not fit a screen, those of a table stay whole."""
_MOST_BALLOTS = 10


def show_settings(err: Console, in_words: str) -> None:
    """Says which settings are in force, where any is not a preset's."""
    if in_words:
        err.print(f"settings: {in_words}", soft_wrap=True)


def show_result(out: Console, result: Result) -> None:
    """Prints the answer, the ballots, and what it took."""
    vote, tokens, timing = result.vote, result.tokens, result.timing
    if result.answer is None:
        out.print(Text("No answer: no trace that may vote has one.", style="bold red"))
    else:
        out.print(Text.assemble(("Answer: ", "bold"), (result.answer, "bold green")))
    out.print()
    if vote.ballots:
        out.print(_ballots(result))
    lines = [("traces", _traces(result))]
    spent = f"{tokens.generated:,} generated"
    if tokens.saved is not None:
        kind = "saved" if tokens.saved >= 0 else "more than expected"
        share = abs(tokens.saved) / tokens.baseline if tokens.baseline else 0.0
        spent += f", about {abs(tokens.saved):,.0f} ({share:.1%}) {kind}"
    lines.append(("tokens", f"{spent}; compared with {tokens.compared_with}"))
    if result.threshold is not None:
        lines.append(("threshold", f"{result.threshold:.4f}"))
    parts = f"warmup {timing.warmup:.1f}, sampling {timing.sampling:.1f}, drain {timing.drain:.1f}"
    lines.append(("time", f"{timing.total:.1f} s ({parts})"))
    lines.append(("ended by", result.reason))
    for name, text in lines:
        out.print(Text.assemble((f"{name:<10}", "dim"), text), soft_wrap=True)


def show_warnings(err: Console, result: Result) -> None:
    """Prints what the reader of a result must know."""
    for warning in result.warnings:
        what = "the signal never armed: " if warning == result.unarmed else ""
        text = f"warning: {what}{warning}"
        err.print(Text(text, style="bold red"), soft_wrap=True)
    if result.vote.fallback:
        text = "warning: the filter left too few ballots and was given up: all that finished voted"
        err.print(Text(text, style="yellow"), soft_wrap=True)
    if result.traces and all(trace.answer is None for trace in result.traces):
        text = (
            "hint: --suffix 'Put your final answer within \\boxed{}.' asks for one; --answer says "
            "where it is looked for"
        )
        err.print(Text(text, style="yellow"), soft_wrap=True)


def _ballots(result: Result) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("answer", overflow="fold")
    for name in ("weight", "voters", "share"):
        table.add_column(name, justify="right")
    ballots = list(result.vote.ballots.items())
    total = sum(weight for _, weight in ballots)
    for place, (answer, weight) in enumerate(ballots[:_MOST_BALLOTS]):
        share = f"{weight / total:.1%}" if total else "–"
        voters = str(result.vote.voters[answer])
        style = "bold" if place == 0 else ""
        table.add_row(Text(str(answer)), f"{weight:,.3f}", voters, share, style=style)
    if len(ballots) > _MOST_BALLOTS:
        table.add_row(f"and {len(ballots) - _MOST_BALLOTS} more", "", "", "", style="dim")
    return table


def _traces(result: Result) -> str:
    counts = Counter(trace.status for trace in result.traces)
    each = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    answered = sum(trace.answer is not None for trace in result.traces)
    voted = f"{answered} with an answer, {result.vote.num_voters} voted"
    return f"{len(result.traces)} ({each}); {voted}"


def show_report(out: Console, report: Report) -> None:
    """Prints the table of an evaluation, its notes, and whether confidence helped."""
    if not out.is_terminal:
        out.width = WIDE
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=report.title, title_justify="left")
    for place, name in enumerate(report.columns):
        table.add_column(
            name, justify="right" if place else "left", overflow="fold", no_wrap=bool(place)
        )
    best = max((row.accuracy for row in report.rows if row.accuracy is not None), default=None)
    for row, ends in report.shown():
        cells = [Text(cell) for cell in row.cells()]
        if row.kind == "policy":
            cells[0].stylize("bold")
        if row.accuracy == best:
            cells[1].stylize("bold green")
        table.add_row(*cells, end_section=ends)
    out.print(table)
    for line in report.footnotes():
        style = "yellow" if line.startswith("note:") else ""
        out.print(Text(line, style=style), soft_wrap=True)
    if report.closing:
        out.print(Text(report.closing, style="bold"), soft_wrap=True)
