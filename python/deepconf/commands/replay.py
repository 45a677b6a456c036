"""`replay`: what policies would have done with recorded traces."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepconf import _layers, _settings
from deepconf._core import Policy
from deepconf._options import AsJson
from deepconf._setup import guarded, own_stdout
from deepconf.commands import _lab as o
from deepconf.commands._app import app, print_json

if TYPE_CHECKING:
    pass


@app.command("replay")
@guarded
def replay(
    traces: o.Traces,
    policy: Annotated[
        list[str],
        typer.Option(
            "--policy",
            "-p",
            help=f"One of {', '.join(Policy.presets())}, or of the settings file; again for more.",
        ),
    ] = ["low", "high"],  # noqa: B006
    grid: o.Grid = [],  # noqa: B006
    set_: o.Set = [],  # noqa: B006
    settings: o.Settings = None,
    repeats: Annotated[
        int, typer.Option(help="Draws of traces for each question; 0 for one run in launch order.")
    ] = 64,
    seed: o.Seed = 0,
    lag: o.Lag = 0,
    short_pools: o.ShortPools = "error",
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
    as_json: AsJson = False,
) -> None:
    """Replays policies on recorded traces: accuracy and tokens, beside plain majority's.

    Decisions are those that a live run would take. Settings start from what the recording says.

    In the table, "of budget" compares with the tokens of all traces of the budget, each to its
    end; "steps" is when the answer was given, with a token a step; "given up" is how often the
    filter left too few ballots and all voted.
    """
    from deepconf import _render, _tables
    from deepconf.batch import not_a_source
    from deepconf.lab._reading import sized
    from deepconf.lab.replay import Pool, check_runs
    from deepconf.lab.replay import grid as laid
    from deepconf.traces import TraceWriter, read_traces, target

    with own_stdout() as stdout:
        console, err = _render.console(stdout), _render.console(sys.stderr)
        axes = _settings.axes(grid, "--grid")
        explicit = _settings.pairs(set_, "--set")
        file = _settings.Defaults() if settings is None else _settings.read(settings.expanduser())
        if out is not None:
            target(out)  # Before the work, not after it.
        reader = read_traces(traces)
        if out is not None:
            not_a_source(out, reader)
        defaults = _settings.fitted(sized(reader), file.policy)
        bases = _layers.build(policy, defaults, {}, explicit, file.policies, file.origin)
        policies = laid(bases, **axes)
        check_runs(policies, 1, repeats, most_runs)  # Before hours are spent on reading.
        with _render.Bars(err) as bars:
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
            err.print(f"note: {pool.left_out} traces failed when they were recorded: left out")
        unarmed = played.columns["unarmed"].mean(axis=(1, 2))
        for label, share in zip(policies, unarmed, strict=True):
            if share > 0.5:
                window = policies[label].window
                err.print(
                    f"note: {label}: in {share:.0%} of the runs nothing could be stopped, for no "
                    f"trace reached the window of {window} tokens, or no warmup trace ended by "
                    f"itself",
                    soft_wrap=True,
                )
        for how in ("resampled", "skipped"):
            if names := played.draws[how]:
                err.print(f"note: {len(names)} questions have fewer traces than a budget: {how}")
        if out is not None:
            table = played.to_arrow()
            with TraceWriter(out, schema=table.schema) as writer:
                writer.write(table)
            err.print(f"{out}: {table.num_rows:,} rows", soft_wrap=True)
