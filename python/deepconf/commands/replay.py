"""`replay`: what policies would have done with recorded traces."""

from __future__ import annotations

import functools
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from deepconf import _options as o
from deepconf._core import Policy
from deepconf._setup import guarded, own_stdout
from deepconf._words import counted
from deepconf.commands import _lab as lab
from deepconf.commands._app import app, print_json
from deepconf.errors import SignalNeverArmed


@app.command("replay")
@guarded
@o.takes(o.OfPolicy)
def replay(
    traces: lab.Traces,
    options: o.OfPolicy,
    policy: Annotated[
        list[str],
        typer.Option(
            "--policy",
            "-p",
            help=f"One of {', '.join(Policy.presets())}, or of the settings file; again for more.",
        ),
    ] = ["low", "high"],  # noqa: B006
    grid: lab.Grid = [],  # noqa: B006
    settings: lab.Settings = None,
    repeats: Annotated[
        int, typer.Option(help="Draws of traces for each question; 0 for one run in launch order.")
    ] = 64,
    seed: lab.Seed = 0,
    lag: lab.Lag = 0,
    short_pools: lab.ShortPools = "error",
    most_runs: Annotated[
        int, typer.Option(help="More runs than so many are refused before anything begins.")
    ] = 20_000_000,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Write a row for each policy, question and repeat: .parquet, .arrow or .feather.",
            show_default=False,
        ),
    ] = None,
    gold: lab.NoGold = None,
    as_json: o.AsJson = False,
) -> None:
    """Replays policies on recorded traces: accuracy and tokens, beside plain majority's.

    Decisions are those that a live run would take. Settings start from what the recording says.

    In the table, "of budget" compares with the tokens of all traces of the budget, each to its
    end; "steps" is when the answer was given, with a token a step; "given up" is how often the
    filter left too few ballots and all voted.
    """
    from deepconf import _render, _tables, _terminal
    from deepconf.batch import not_a_source
    from deepconf.lab.replay import Pool, check_runs
    from deepconf.traces import TraceWriter, read_traces, target

    with own_stdout() as stdout:
        console, err = _terminal.console(stdout), _terminal.console(sys.stderr)
        if out is not None:
            target(out)  # Before the work, not after it.
        reader = read_traces(traces)
        if out is not None:
            not_a_source(out, reader)
        laid = lab.Laid.of(reader, policy, options, grid, settings)
        policies = laid.policies
        check_runs(policies, 1, repeats, most_runs)  # Before hours are spent on reading.
        _render.show_settings(err, laid.in_words)
        with _terminal.Bars(err) as bars, warnings.catch_warnings():
            warnings.simplefilter("ignore", SignalNeverArmed)  # A note below.
            reading = functools.partial(bars.tell, "reading traces")
            pool = Pool.read(reader, policies, progress=reading)
            played = pool.replay(
                repeats=repeats or None,
                seed=seed,
                lag=lag,
                short_pools=short_pools,  # type: ignore[arg-type]
                most_runs=most_runs,
                progress=functools.partial(bars.tell, "replaying questions"),
            )
        summary = played.summary()
        if as_json:
            print_json(stdout, summary.to_dict() | {"draws": dict(played.draws)})
        else:
            _tables.show_summary(console, summary)
        if pool.left_out:
            err.print(
                f"note: left out: {counted(pool.left_out, 'trace')} that failed when recorded"
            )
        for note in summary.notes:
            err.print(f"note: {note}", soft_wrap=True)
        for how in ("resampled", "skipped"):
            if names := played.draws[how]:
                err.print(
                    f"note: {how}: {counted(len(names), 'question')} with fewer traces than a "
                    "budget"
                )
        if out is not None:
            table = played.to_arrow()
            with TraceWriter(out, schema=table.schema) as writer:
                writer.write(table)
            err.print(f"{out}: {table.num_rows:,} rows", soft_wrap=True)
