"""The options that the commands on recorded traces share, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Grid", "Lag", "Repeats", "Seed", "Set", "Settings", "ShortPools", "Traces"]

Traces = Annotated[
    list[str],
    typer.Argument(
        help="Trace files, Parquet or Arrow; a folder of them, or a glob.", show_default=False
    ),
]
Grid = Annotated[
    list[str],
    typer.Option(
        "--grid",
        metavar="NAME=VALUE,...",
        help="Values of a setting to try with each policy, such as keep=0.1,0.5,0.9; again for "
        "more settings.",
    ),
]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="NAME=VALUE", help="Any setting, for all policies."),
]
Repeats = Annotated[int, typer.Option(help="Draws of traces for each question.")]
Seed = Annotated[int, typer.Option(help="Of the draws.")]
Lag = Annotated[
    int, typer.Option(help="Tokens that come after each stop, before the engine ends it.")
]
ShortPools = Annotated[
    str,
    typer.Option(
        metavar="error|resample|skip",
        help="What to do with a question of fewer traces than a budget.",
    ),
]
Settings = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A deepconf.json to start from.", show_default=False),
]
