"""Bars on standard error, or a function of the caller's: whichever `progress` says."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deepconf._progress import Progress, Stages, Told
from deepconf.errors import MissingExtra

__all__ = ["bar", "bars", "watched"]


@contextmanager
def bars(progress: Stages | bool | None) -> Iterator[Stages | None]:
    """Bars where `progress` is True, with the time left; lines where there is no terminal.

    Raises:
        MissingExtra: rich is not installed.
    """
    if progress is not True:
        yield progress or None
        return
    terminal = _terminal()
    with terminal.Bars(terminal.console(sys.stderr)) as found:
        yield found.tell


@contextmanager
def bar(progress: Told | bool | None, what: str) -> Iterator[Told | None]:
    """The same for one thing that is done."""
    if not isinstance(progress, bool):
        yield progress
        return
    with bars(progress) as tell:
        yield None if tell is None else functools.partial(tell, what)


@contextmanager
def watched(progress: Progress | bool | None) -> Iterator[Progress | None]:
    """The same for an evaluation."""
    if progress is not True:
        yield progress or None
        return
    terminal = _terminal()
    with terminal.Watch(terminal.console(sys.stderr), "questions") as watch:
        yield watch


def _terminal() -> Any:
    try:
        from deepconf import _terminal as terminal
    except ImportError as error:
        raise MissingExtra("cli", "rich") from error
    return terminal
