"""The exceptions of deepconf: one family, each also the built-in a Python user expects."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepconf.result import Result

__all__ = [
    "DeepConfError",
    "DeepConfWarning",
    "EngineDied",
    "EngineError",
    "EventError",
    "Interrupted",
    "InvalidInput",
    "InvalidType",
    "MissingExtra",
    "RunFileError",
    "RunWarning",
    "SignalNeverArmed",
    "TraceFileError",
    "UnknownPreset",
]


class DeepConfError(Exception):
    """Anything that deepconf raises on purpose."""


class InvalidInput(DeepConfError, ValueError):
    """A value that cannot be right; the message names the argument, the value and its place."""


class InvalidType(DeepConfError, TypeError):
    """A value of the wrong type or dtype."""


class UnknownPreset(InvalidInput):
    """A preset that does not exist; the message lists those that do."""


class EventError(DeepConfError, RuntimeError):
    """An event reported to a `Controller` that does not fit the trace's state."""


class EngineError(DeepConfError, RuntimeError):
    """The engine that generates failed."""


class EngineDied(EngineError):
    """The engine is gone, and generates nothing any more.

    An engine's `stream` raises it; `DeepThink` does with the finished part of the question.

    Args:
        message: what happened.
        result: what was finished by then; None when nothing was.
    """

    def __init__(self, message: str, result: Result | None = None) -> None:
        self.result = result
        super().__init__(message)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; `result` is what was finished by then, None when nothing was."""

    def __init__(self, result: Result | None = None) -> None:
        self.result = result
        super().__init__("interrupted" if result is None else f"interrupted: {result}")


class RunFileError(DeepConfError, OSError):
    """A file of a run cannot be read or written."""


class TraceFileError(DeepConfError, OSError):
    """A file of traces cannot be read or written, or holds something else."""


class MissingExtra(DeepConfError, ImportError):
    """Something needs a package that is not installed.

    Args:
        extra: the extra of `deepconf-rs` that brings it.
        package: the package that is missing.
    """

    def __init__(self, extra: str, package: str) -> None:
        self.extra = extra
        self.package = package
        wanted = " ".join(f"'{requirement}'" for requirement in _requirements(extra, package))
        super().__init__(
            f"this needs the package {package}, which is not installed: pip install {wanted} "
            f"(the extra {extra} of deepconf-rs)"
        )


def _requirements(extra: str, package: str) -> list[str]:
    """What the extra asks for, as pip takes it; the package alone where nothing says so."""
    import importlib.metadata
    import re

    try:
        every = importlib.metadata.requires("deepconf-rs") or []
    except importlib.metadata.PackageNotFoundError:
        every = []
    pairs = [requirement.partition(";")[::2] for requirement in every]
    of_extra = re.compile(rf"extra == ['\"]{re.escape(extra)}['\"]")
    return [name.strip() for name, marker in pairs if of_extra.search(marker)] or [package]


class DeepConfWarning(UserWarning):
    """Something about a run that its reader must know.

    Where warnings are errors, it carries what would be lost otherwise: `result` is the whole result
    of the run, None outside of one.
    """

    def __init__(self, message: str, result: Result | None = None) -> None:
        self.result = result
        super().__init__(message)


class RunWarning(DeepConfWarning, RuntimeWarning):
    """Something failed on the way: traces, an answer's extraction, a callback."""


class SignalNeverArmed(DeepConfWarning):
    """The confidence signal could not have stopped anything: a setting does not fit the traces."""
