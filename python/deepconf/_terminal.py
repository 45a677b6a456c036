"""A terminal, and what it shows while something goes on, with rich."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Live

from deepconf._progress import Progress
from deepconf._words import counted

if TYPE_CHECKING:
    from deepconf.result import Trace

__all__ = ["Bars", "Watch", "console", "working"]

_EVERY = 10.0  # Seconds between lines, where there is no bar.


def console(file: TextIO) -> Console:
    """A console; colours and bars are for terminals, and lines are not cut elsewhere."""
    made = Console(file=file, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = 100
    return made


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
