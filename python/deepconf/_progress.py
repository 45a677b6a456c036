"""Who is told how far something is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepconf.result import Trace

__all__ = ["Guarded", "Progress", "Stages", "Told"]

Told = Callable[[int, int], None]
"""Called with how much is done, and of how much, 0 where that is not known."""
Stages = Callable[[str, int, int], None]
"""The same, with what is being done before it."""


class Progress:
    """Told how an evaluation goes; override what is of interest.

    What it raises does not disturb the evaluation: the first is warned of at the end.
    """

    def policy(self, label: str, done: int, total: int) -> None:
        """A policy's turn: so many of its questions are done already."""

    def question(self, record: Mapping[str, Any]) -> None:
        """A question is finished, and saved where there is a run file."""

    def trace(self, trace: Trace) -> None:
        """A trace has ended; called on a thread of its own."""


class Guarded(Progress):
    """Tells another, and keeps what it raises first."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self.complaint: str | None = None

    def policy(self, label: str, done: int, total: int) -> None:
        self._tell("policy", label, done, total)

    def question(self, record: Mapping[str, Any]) -> None:
        self._tell("question", record)

    def trace(self, trace: Trace) -> None:
        self._tell("trace", trace)

    def _tell(self, what: str, *arguments: Any) -> None:
        try:
            getattr(self._inner, what)(*arguments)
        except Exception as error:
            if self.complaint is None:
                self.complaint = f"progress.{what} failed, the first time with: {error!r}"
