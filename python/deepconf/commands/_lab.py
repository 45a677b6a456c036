"""What the commands on recorded traces share: their options, and the policies these make."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepconf import _layers, _settings
from deepconf._core import Policy
from deepconf._options import OfPolicy
from deepconf.errors import DeepConfWarning

if TYPE_CHECKING:
    from rich.console import Console

    from deepconf.traces import TraceReader

__all__ = [
    "Grid",
    "Lag",
    "Laid",
    "NoGold",
    "Repeats",
    "Seed",
    "Settings",
    "ShortPools",
    "Traces",
    "warned",
]

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
NoGold = Annotated[
    str | None,
    typer.Option("--gold", hidden=True, callback=lambda value: _no_gold(value)),
]
Settings = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A deepconf.json to start from.", show_default=False),
]


def _no_gold(value: str | None) -> None:
    if value is not None:
        from deepconf.lab._verdict import GIVE_GOLD

        raise typer.BadParameter(f"traces hold their right answers: {GIVE_GOLD}")


@contextlib.contextmanager
def warned(err: Console) -> Iterator[None]:
    """Shows warnings as lines behind the work, without where they were raised."""
    with warnings.catch_warnings(record=True) as every:
        warnings.simplefilter("always", DeepConfWarning)
        yield
    for each in every:
        err.print(f"warning: {each.message}", style="yellow", soft_wrap=True)


@dataclass(frozen=True)
class Laid:
    """The policies that were asked for, a grid laid over them."""

    policies: dict[str, Policy]
    in_words: str
    """What is in force, and where it was given."""

    @classmethod
    def of(
        cls,
        reader: TraceReader,
        names: Sequence[str],
        options: OfPolicy,
        grid: Sequence[str],
        settings: Path | None,
    ) -> Laid:
        """From options, with what the traces and a settings file say where they say nothing.

        Raises:
            InvalidInput, InvalidType: a setting, a policy or a place of the grid cannot be.
        """
        from deepconf.lab._reading import sized
        from deepconf.lab.replay import laid

        axes = _settings.axes(grid, "--grid")
        explicit = _settings.pairs(options.set_, "--set")
        file = _settings.Defaults() if settings is None else _settings.read(settings.expanduser())
        below = _layers.of_traces(sized(reader))

        def built(names: Sequence[str], place: dict[str, Any]) -> dict[str, _layers.InForce]:
            return _layers.in_force(
                names,
                file.policy,
                options.given(*options.names),
                explicit,
                file.policies,
                file.origin,
                below=below,
                grid=place,
            )

        bases = built(names, {})
        policies = laid(
            {name: base.policy for name, base in bases.items()},
            axes,
            lambda name, place: built([name], place)[name].policy,
        )
        warmups = {policy.warmup for policy in policies.values() if policy.mode == "online"}
        by_budget = ""
        if "warmup" not in axes and len(warmups) > 1:
            for base in bases.values():
                base.origins.pop("warmup", None)
            each = ", ".join(map(str, sorted(warmups)))
            by_budget = f"warmup={each} (at most a quarter of each budget)"
        return cls(policies, "; ".join(filter(None, [_layers.in_words(bases), by_budget])))
