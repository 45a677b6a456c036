"""`diagnose`: what recorded traces say of confidence."""

from __future__ import annotations

import functools
import sys
from typing import Annotated

import typer

from deepconf._options import AsJson
from deepconf._setup import guarded, own_stdout
from deepconf.commands import _lab as lab
from deepconf.commands._app import app, print_json


@app.command("diagnose")
@guarded
def diagnose(
    traces: lab.Traces,
    window: Annotated[
        int | None,
        typer.Option(
            help="Tokens in a group. Default: the recording's, else an eighth of the median "
            "length, at most 2048."
        ),
    ] = None,
    tail: Annotated[
        int | None, typer.Option(help="Tokens of the tail confidence, likewise.")
    ] = None,
    bottom: Annotated[
        float | None,
        typer.Option(help="The share of groups of the bottom-group confidence, likewise."),
    ] = None,
    gold: lab.NoGold = None,
    as_json: AsJson = False,
) -> None:
    """Tells whether confidence tells right traces from wrong ones, and whether it could help."""
    from deepconf import _tables, _terminal
    from deepconf.lab.diagnose import diagnose as look

    with own_stdout() as stdout:
        out, err = _terminal.console(stdout), _terminal.console(sys.stderr)
        with _terminal.Bars(err) as bars:
            found = look(
                traces,
                window=window,
                tail=tail,
                bottom=bottom,
                progress=functools.partial(bars.tell, "scoring traces"),
            )
        if as_json:
            print_json(stdout, found.to_dict())
        else:
            _tables.show_diagnosis(out, found)
