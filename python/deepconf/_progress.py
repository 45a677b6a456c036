"""How far a long pass has come, on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Bar"]


class Bar:
    """A bar with the time that is left on a terminal, a line every tenth of the way elsewhere.

    A context manager; it is called with how much is done, and of how much, if that is known.
    """

    def __init__(self, err: Console, what: str, unit: str) -> None:
        self._err = err
        self._what = what
        self._unit = unit
        self._told = 0
        self._bar = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=err,
            disable=not err.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> Bar:
        """Shows it."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves it as it stands."""
        self._bar.stop()

    def __call__(self, done: int, total: int | None) -> None:
        """So much is done."""
        self._bar.update(self._task, completed=done, total=total)
        if self._err.is_terminal or total is None:
            return
        tenth = 10 * done // total
        if tenth > self._told:
            self._told = tenth
            text = f"{self._what}: {done:,} of {total:,} {self._unit}"
            self._err.print(text, soft_wrap=True)
