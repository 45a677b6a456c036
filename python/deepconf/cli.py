"""The command line: `deepconf think`, `deepconf eval` and others; also `python -m deepconf`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits.

    Args:
        arguments: instead of those of the process.
    """
    try:
        _run(arguments)
    except KeyboardInterrupt:  # While modules are imported, too.
        _end("interrupted", 130)
    except OSError as error:  # Such as a disk that is full of what is printed.
        _end(f"error: {error}", 2)


def _run(arguments: Sequence[str] | None) -> None:
    from deepconf.errors import MissingExtra

    try:
        import rich  # noqa: F401

        from deepconf.commands import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        _end(f"error: {MissingExtra('cli', package)}", 1)
    app(args=None if arguments is None else list(arguments), prog_name="deepconf")


def _end(text: str, code: int) -> NoReturn:
    sys.stderr.write(f"{text}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
