"""The command `deepconf`, to which each module of this package adds its own."""

from __future__ import annotations

import json
from typing import Annotated, Any, TextIO

import typer

import deepconf

__all__ = ["app", "print_json"]

app = typer.Typer(
    help="Deep Think with Confidence: many traces, of which the confident ones vote.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deepconf {deepconf.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def print_json(out: TextIO, value: Any) -> None:
    """Writes a value as indented JSON."""
    out.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    out.flush()
