"""Who is told how far something is: a function of the caller's, or bars on standard error."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deepconf.errors import MissingExtra

if TYPE_CHECKING:
    from deepconf.evaluate import Progress

__all__ = ["Stages", "Told", "bar", "bars", "watched"]

Told = Callable[[int, int], None]
"""Called with how much is done, and of how much, 0 where that is not known."""
Stages = Callable[[str, int, int], None]
"""The same, with what is being done before it."""


@contextmanager
def bars(progress: Stages | bool | None) -> Iterator[Stages | None]:
    """Bars where `progress` is True, with the time left; lines where there is no terminal.

    Raises:
        MissingExtra: rich is not installed.
    """
    if progress is not True:
        yield progress or None
        return
    render = _render()
    with render.Bars(render.console(sys.stderr)) as found:
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
    render = _render()
    with render.Watch(render.console(sys.stderr), "questions") as watch:
        yield watch


def _render() -> Any:
    try:
        from deepconf import _render as render
    except ImportError as error:
        raise MissingExtra("cli", "rich") from error
    return render
