"""The exceptions of deepconf: one family, each also the built-in a Python user expects."""

from __future__ import annotations

__all__ = [
    "DeepConfError",
    "EngineError",
    "EventError",
    "InvalidInput",
    "InvalidType",
    "MissingExtra",
    "RunFileError",
    "SignalNeverArmed",
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


class RunFileError(DeepConfError, OSError):
    """A file of a run cannot be read or written."""


class MissingExtra(DeepConfError, ImportError):
    """Something needs a package that is not installed.

    Args:
        extra: the extra of `deepconf-rs` that brings it.
        package: the package that is missing.
    """

    def __init__(self, extra: str, package: str) -> None:
        self.extra = extra
        self.package = package
        super().__init__(
            f"this needs the package {package}, which is not installed: "
            f"pip install 'deepconf-rs[{extra}]'"
        )


class SignalNeverArmed(UserWarning):
    """The confidence signal could not have stopped anything: a setting does not fit the traces."""
