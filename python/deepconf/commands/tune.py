"""`tune`: the policy that recorded traces speak for."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from deepconf import _options as o
from deepconf._core import Policy
from deepconf._setup import guarded, own_stdout
from deepconf.commands import _lab as lab
from deepconf.commands._app import app, print_json
from deepconf.errors import SignalNeverArmed


@app.command("tune")
@guarded
@o.takes(o.OfPolicy)
def tune(
    traces: lab.Traces,
    options: o.OfPolicy,
    grid: lab.Grid = [],  # noqa: B006
    policy: Annotated[
        list[str],
        typer.Option(
            "--policy",
            "-p",
            help=f"What the grid is laid over: one of {', '.join(Policy.presets())}, or of the "
            "settings file; again for more.",
        ),
    ] = ["low"],  # noqa: B006
    goal: Annotated[
        str,
        typer.Option(
            help="What must be reached: accuracy >= BOUND, tokens <= BOUND or steps <= BOUND, "
            "several joined by 'and'; a bound is a number or majority, that of the full budget, "
            "with a factor or something added."
        ),
    ] = "accuracy >= majority - 0.005",
    minimise: Annotated[
        str | None,
        typer.Option(metavar="tokens|steps", help="What is to be low. Default: tokens."),
    ] = None,
    maximise: Annotated[
        str | None, typer.Option(metavar="accuracy", help="Or what is to be high.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The settings file to write the policy to, where think and eval find it: "
            "deepconf.json in the model's folder or beside it. What else it holds stays.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="What the policy is called there.")] = "tuned",
    settings: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A file of settings to start from. Default: the one of --out, if it is there.",
            show_default=False,
        ),
    ] = None,
    repeats: lab.Repeats = 64,
    seed: lab.Seed = 0,
    lag: lab.Lag = 0,
    short_pools: lab.ShortPools = "error",
    folds: Annotated[int, typer.Option(help="Parts into which the questions are divided.")] = 10,
    gold: lab.NoGold = None,
    as_json: o.AsJson = False,
) -> None:
    """Chooses a policy on some of the recorded questions and measures it on the others.

    Says what majority would have got for the same tokens, and recommends that where it is better.
    """
    from deepconf import _render, _tables, _terminal
    from deepconf.lab.tune import tune as choose
    from deepconf.traces import read_traces

    with own_stdout() as stdout:
        console, err = _terminal.console(stdout), _terminal.console(sys.stderr)
        if settings is None and out is not None and out.expanduser().is_file():
            settings = out
        laid = lab.Laid.of(read_traces(traces), policy, options, grid, settings)
        _render.show_settings(err, laid.in_words)
        with _terminal.Bars(err) as bars, warnings.catch_warnings():
            warnings.simplefilter("ignore", SignalNeverArmed)  # A note below.
            found = choose(
                traces,
                laid.policies,
                goal=goal,
                minimise=minimise,  # type: ignore[arg-type]
                maximise=maximise,  # type: ignore[arg-type]
                folds=folds,
                repeats=repeats,
                seed=seed,
                lag=lag,
                short_pools=short_pools,  # type: ignore[arg-type]
                out=out,
                name=name,
                progress=bars.tell,
            )
        if as_json:
            print_json(stdout, found.to_dict())
        else:
            _tables.show_tuning(console, found)
        if out is not None:
            err.print(f"{out}: the policy {name}: {found.label}", soft_wrap=True)
