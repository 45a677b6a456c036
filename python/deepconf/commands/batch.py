"""`score` and `vote`: recorded traces, of any number."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from deepconf import _options as o
from deepconf._setup import guarded, own_stdout
from deepconf._words import counted
from deepconf.commands._app import app, print_json
from deepconf.commands._lab import Traces, warned
from deepconf.errors import InvalidInput

Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        help="Where to write: .parquet, .arrow or .feather. The file is there when it is whole.",
        show_default=False,
    ),
]
Window = Annotated[int | None, typer.Option(help="Tokens in a group.", show_default=False)]
Tail = Annotated[
    int | None, typer.Option(help="Tokens of the tail confidence.", show_default=False)
]
Bottom = Annotated[
    float | None,
    typer.Option(help="The share of groups that are the bottom, in (0, 1].", show_default=False),
]
Decimals = Annotated[
    str | None,
    typer.Option(
        metavar="INTEGER|none",
        help="Round confidences and groups, as the authors' code does.",
        show_default=False,
    ),
]
Threads = Annotated[
    int | None, typer.Option(help="How many decode and score. Default: one a core.")
]


@app.command("score")
@guarded
def score_command(
    traces: Traces,
    out: Out,
    window: Window = None,
    tail: Tail = None,
    bottom: Bottom = None,
    decimals: Decimals = None,
    threads: Threads = None,
    as_json: o.AsJson = False,
) -> None:
    """Scores recorded traces: a row a trace, all columns but the confidences.

    Settings come from options; then from the files' metadata; then from the defaults.
    """
    from deepconf import _terminal
    from deepconf.batch import score_traces, scoring_settings
    from deepconf.traces import read_traces

    settings = _given(window=window, tail=tail, bottom=bottom, decimals=decimals)
    with own_stdout() as stdout:
        console, err = _terminal.console(stdout), _terminal.console(sys.stderr)
        reader = read_traces(traces)
        err.print(f"settings: {scoring_settings(reader, settings)}", soft_wrap=True)
        with warned(err), _terminal.Bars(err) as bars:
            done = score_traces(
                reader,
                out,
                threads=threads,
                progress=lambda done, total: bars.tell("scoring traces", done, total or 0),
                **settings,
            )
        if as_json:
            summary = {
                "out": str(done.path),
                "num_traces": done.num_traces,
                "num_tokens": done.num_tokens,
                "settings": done.in_force.settings,
            }
            print_json(stdout, summary)
        else:
            tokens = counted(done.num_tokens, "token")
            text = f"{counted(done.num_traces, 'trace')} of {tokens}: {done.path}"
            console.print(text, soft_wrap=True)


@app.command("vote")
@guarded
def vote_command(
    traces: Traces,
    out: Out,
    measure: Annotated[
        str | None,
        typer.Option(
            metavar="lowest_group|bottom_group|tail|mean",
            help="What the filter ranks by.",
            show_default=False,
        ),
    ] = None,
    weight: Annotated[
        str | None,
        typer.Option(
            metavar="majority|lowest_group|...",
            help="What a ballot weighs: a measure, or one each.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(help="The fraction of traces to keep, in (0, 1].", show_default=False),
    ] = None,
    min_ballots: Annotated[
        int | None,
        typer.Option(help="With fewer ballots the filter is given up.", show_default=False),
    ] = None,
    window: Window = None,
    tail: Tail = None,
    bottom: Bottom = None,
    decimals: Decimals = None,
    threads: Threads = None,
    as_json: o.AsJson = False,
) -> None:
    """Lets recorded traces vote, or what `score` wrote: a row a question.

    Traces that ended by themselves or at the length limit vote. Settings come from options; then
    from the files' metadata; then from the policy offline.
    """
    from deepconf import _terminal
    from deepconf.batch import vote_traces, voting_settings
    from deepconf.traces import read_traces

    settings = _given(
        measure=measure,
        weight=weight,
        keep=keep,
        min_ballots=min_ballots,
        window=window,
        tail=tail,
        bottom=bottom,
        decimals=decimals,
    )
    with own_stdout() as stdout:
        console, err = _terminal.console(stdout), _terminal.console(sys.stderr)
        reader = read_traces(traces, columns=["question_id"])
        err.print(f"settings: {voting_settings(reader, settings)}", soft_wrap=True)
        with warned(err), _terminal.Bars(err) as bars:
            done = vote_traces(
                reader,
                out,
                threads=threads,
                progress=lambda done, total: bars.tell("reading traces", done, total or 0),
                **settings,
            )
        if as_json:
            summary = {
                "out": str(done.path),
                "num_traces": done.num_traces,
                "num_questions": done.num_questions,
                "num_answered": done.num_answered,
                "num_fallback": done.num_fallback,
                "num_known": done.num_known,
                "num_correct": done.num_correct,
                "settings": done.in_force.settings,
            }
            print_json(stdout, summary)
            return
        text = f"{counted(done.num_questions, 'question')}, {done.num_answered:,} answered"
        if done.num_known:
            right = f"{done.num_correct:,} of {done.num_known:,}"
            text += f", {right} right ({done.num_correct / done.num_known:.1%})"
        if done.num_fallback:
            text += f"; the filter left too few ballots and was given up in {done.num_fallback:,}"
        console.print(f"{text}: {done.path}", soft_wrap=True)


def _given(decimals: str | None, **options: Any) -> dict[str, Any]:
    """Those that were given."""
    given = {name: value for name, value in options.items() if value is not None}
    if decimals is not None:
        try:
            given["decimals"] = None if decimals.lower() == "none" else int(decimals)
        except ValueError as error:
            raise InvalidInput(f"--decimals {decimals}: must be an integer or none") from error
    return given
