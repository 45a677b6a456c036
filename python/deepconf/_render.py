"""Results and reports on a terminal, with rich."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from deepconf.evaluate import Progress
from deepconf.report import Report
from deepconf.result import Result, Trace

__all__ = ["Watch", "console", "show_report", "show_result", "show_warnings", "stages", "working"]

_MOST_BALLOTS = 10


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
    return f"{len(result.traces)} ({each}); {result.vote.num_voters} voted"


def show_report(out: Console, report: Report) -> None:
    """Prints the table of an evaluation and its notes."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=report.title, title_justify="left")
    for place, name in enumerate(report.columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    best = max((row.accuracy for row in report.rows if row.accuracy is not None), default=None)
    for row, after in zip(report.rows, [*report.rows[1:], None], strict=True):
        cells = [Text(cell) for cell in row.cells()]
        if row.kind == "policy":
            cells[0].stylize("bold")
        if row.accuracy == best:
            cells[1].stylize("bold green")
        end = after is not None and after.kind != row.kind
        table.add_row(*cells, end_section=end)
    out.print(table)
    for line in report.footnotes():
        style = "yellow" if line.startswith("note:") else ""
        out.print(Text(line, style=style), soft_wrap=True)


@contextmanager
def working(err: Console, what: str) -> Iterator[None]:
    """A spinner on a terminal, a line elsewhere."""
    if err.is_terminal:
        with err.status(what):
            yield
    else:
        err.print(what, soft_wrap=True)
        yield


@contextmanager
def stages(err: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Gives what is told what is being done, how many are, and of how many (0: not known).

    A bar with the time left for each thing that is done on a terminal; elsewhere a line, and one
    every tenth of the way.
    """
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=err,
        disable=not err.is_terminal,
    )
    tasks: dict[str, TaskID] = {}
    told: dict[str, int] = {}

    def tell(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total or None)
        bars.update(tasks[what], completed=done)
        tenth = 10 * done // total if total else 0
        if not err.is_terminal and tenth > told.get(what, -1):
            told[what] = tenth
            far = f": {done:,} of {total:,}" if total else ""
            err.print(f"{what}{far}", soft_wrap=True)

    with bars:
        yield tell


class Watch(Progress):
    """Progress bars on a terminal, a line every tenth of the way elsewhere."""

    def __init__(self, err: Console, unit: str) -> None:
        self._err = err
        self._total = self._done = 0
        self._label = ""
        self._unit = unit
        self._ended: Counter[str] = Counter()
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("{task.fields[traces]}", style="dim"),
            console=err,
            disable=not err.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task: Any = None

    def __enter__(self) -> Watch:
        """Shows it."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves it as it stands."""
        self._bars.stop()

    def policy(self, label: str, done: int, total: int) -> None:
        """A policy's turn."""
        self._label, self._done, self._total = label, done, total
        self._ended.clear()
        self._task = self._bars.add_task(label, total=total, completed=done, traces="")
        self._line()

    def question(self, record: Mapping[str, Any]) -> None:
        """A question is finished."""
        self._advance()

    def trace(self, trace: Trace) -> None:
        """A trace has ended."""
        self._ended[trace.status] += 1
        if self._unit == "traces":
            self._advance()
        if self._err.is_terminal:
            each = ", ".join(f"{count} {name}" for name, count in self._ended.most_common())
            self._bars.update(self._task, traces=each)

    def _advance(self) -> None:
        self._done += 1
        self._bars.update(self._task, completed=self._done)
        step = max(1, self._total // 10)
        if self._done % step == 0 or self._done == self._total:
            self._line()

    def _line(self) -> None:
        if not self._err.is_terminal:
            text = f"{self._label}: {self._done} of {self._total} {self._unit}"
            self._err.print(text, soft_wrap=True)
