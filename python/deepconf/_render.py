"""Results and reports on a terminal, with rich."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Live
from rich.table import Table
from rich.text import Text

from deepconf._words import counted
from deepconf.evaluate import Progress
from deepconf.report import Report
from deepconf.result import Result, Trace

__all__ = [
    "WIDE",
    "Bars",
    "Watch",
    "console",
    "show_report",
    "show_result",
    "show_settings",
    "show_warnings",
    "working",
]

WIDE = 240
"""Where lines need not fit a screen, those of a table stay whole."""
_MOST_BALLOTS = 10
_EVERY = 10.0  # Seconds between lines, where there is no bar.


def show_settings(err: Console, in_words: str) -> None:
    """Says which settings are in force, where any is not a preset's."""
    if in_words:
        err.print(f"settings: {in_words}", soft_wrap=True)


def console(file: TextIO) -> Console:
    """A console; colours and bars are for terminals, and lines are not cut elsewhere."""
    made = Console(file=file, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = 100
    return made


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


class Bars:
    """What is being done, how many are, and of how many: a bar each, with the time left or taken.

    Off a terminal a line when it begins, one every ten seconds, and one at the end.
    """

    def __init__(self, err: Console, unit: str = "") -> None:
        self._err = err
        self._unit = unit
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, float] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        self._bars = Live(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[more]}", style="dim"),
            console=err,
            disable=not err.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Bars:
        """Shows them."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves them as they stand."""
        self._bars.stop()

    def tell(self, what: str, done: int, total: int = 0, more: str = "") -> None:
        """So many are done, of so many (0: not known); and what else is to be said."""
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total or None, more=more)
            self._begun[what] = time.monotonic(), done
        self._bars.update(self._tasks[what], completed=done, total=total or None, more=more)
        if not self._err.is_terminal:
            self._line(what, done, total, more)

    def _line(self, what: str, done: int, total: int, more: str) -> None:
        now, told = time.monotonic(), self._told.get(what, -math.inf)
        over = total and done >= total
        if told == math.inf or (now - told < _EVERY and not over):
            return
        self._told[what] = math.inf if over else now
        start, before = self._begun[what]
        said = [f"{done:,} of {total:,} {self._unit}".rstrip()] if total else []
        said += [more] if more else []
        if before < done < total:
            said.append(f"about {(now - start) * (total - done) / (done - before):,.0f} s left")
        self._err.print(f"{what}: {', '.join(said)}" if said else what, soft_wrap=True)


@contextmanager
def working(err: Console, what: str) -> Iterator[None]:
    """A spinner on a terminal, a line elsewhere."""
    if err.is_terminal:
        with err.status(what):
            yield
    else:
        err.print(what, soft_wrap=True)
        yield


class Watch(Progress):
    """How an evaluation goes, or a run, as bars; a context manager, as they are."""

    def __init__(self, err: Console, unit: str) -> None:
        self._bars = Bars(err, unit)
        self._unit = unit
        self._label = ""
        self._done = self._total = 0
        self._ended: Counter[str] = Counter()
        self._right: list[bool] = []

    def __enter__(self) -> Watch:
        """Shows it."""
        self._bars.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves it as it stands."""
        self._bars.__exit__(*error)

    def policy(self, label: str, done: int, total: int) -> None:
        """A policy's turn."""
        self._label, self._done, self._total = label, done, total
        self._ended.clear()
        self._right.clear()
        self._tell()

    def question(self, record: Mapping[str, Any]) -> None:
        """A question is finished."""
        self._done += 1
        if record["correct"] is not None:
            self._right.append(record["correct"])
        self._tell()

    def trace(self, trace: Trace) -> None:
        """A trace has ended."""
        self._ended[trace.status] += 1
        self._done += self._unit == "traces"
        self._tell()

    def _tell(self) -> None:
        alone = self._unit == "traces"
        said = [
            f"{count:,} {name}" if alone else f"{counted(count, 'trace')} {name}"
            for name, count in self._ended.most_common()
        ]
        if self._right:
            said.insert(0, f"{sum(self._right) / len(self._right):.0%} right")
        self._bars.tell(self._label, self._done, self._total, ", ".join(said))
