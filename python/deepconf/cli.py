"""The command line: `deepconf think`, `deepconf eval`; also `python -m deepconf.cli`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from deepconf.errors import MissingExtra

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits.

    Args:
        arguments: instead of those of the process.
    """
    try:
        import rich  # noqa: F401

        from deepconf.commands import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        sys.stderr.write(f"error: {MissingExtra('cli', package)}\n")
        sys.exit(1)
    app(args=None if arguments is None else list(arguments), prog_name="deepconf")


if __name__ == "__main__":
    main()
