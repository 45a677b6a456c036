"""`import`: traces out of what people have."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deepconf._setup import guarded, own_stdout
from deepconf._words import counted
from deepconf.commands._app import app, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from deepconf.importing import Summary


_LARGE = 100_000_000


@app.command("import")
@guarded
def import_(
    source: Annotated[
        list[str],
        typer.Argument(
            help="Files, or globs: JSON lines of responses, batch files, outputs of vLLM, logs of "
            "Inspect, pickles of the authors' package.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="The trace file to write: .parquet, .arrow or .feather.",
            show_default=False,
        ),
    ],
    format: Annotated[
        Literal["auto", "openai", "batch", "vllm", "inspect", "reference"],
        typer.Option(help="What the files must be; auto for whatever they are."),
    ] = "auto",
    k: Annotated[
        int | None,
        typer.Option(
            help="How many of the likeliest tokens count. Default: as many as each token has.",
            show_default=False,
        ),
    ] = None,
    entries: Annotated[
        Literal["topk", "returned"],
        typer.Option(help="returned counts the sampled token too where it is less likely."),
    ] = "topk",
    logprob_floor: Annotated[
        float | None,
        typer.Option(help="Raises smaller log-probabilities to this.", show_default=False),
    ] = None,
    answer: Annotated[
        str, typer.Option(help='Where the answer is in the text: boxed, or "regex:...".')
    ] = "boxed",
    gold: Annotated[
        Path | None,
        typer.Option(
            help='The right answers: JSON lines such as {"id": "q1", "answer": "2"}, a JSON array, '
            "or Parquet; found by id, else by the text in question.",
            show_default=False,
        ),
    ] = None,
    question_id: Annotated[
        str | None,
        typer.Option(
            help="Where several records answer one question: the field that says which, such as "
            'metadata.id or prompt; or "regex:(.+)-", of which the group is taken out of the first '
            "that a record has of question_id, custom_id, request_id, id. Default: the first of "
            "these but id.",
            show_default=False,
        ),
    ] = None,
    missing: Annotated[
        Literal["error", "skip"],
        typer.Option(help="skip leaves out tokens without log-probabilities."),
    ] = "error",
    math: Annotated[
        bool | None,
        typer.Option(
            "--math/--no-math",
            help="Whether algebra helps to compare answers. Default: where it is installed.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what came in as JSON.")] = False,
) -> None:
    """Makes a trace file out of responses that have log-probabilities.

    What a file is shows in its content. Pickles are read without running what is in them.
    """
    from deepconf import _terminal
    from deepconf.importing import Import

    with own_stdout() as stdout:
        terminal, err = _terminal.console(stdout), _terminal.console(sys.stderr)
        with _bar(err) as progress:
            job = Import(
                format=format,
                k=k,
                entries=entries,
                logprob_floor=logprob_floor,
                answer=answer,
                gold=gold,
                question_id=question_id,
                missing=missing,
                math="auto" if math is None else math,
                progress=progress,
            )
            path = job.write(source, out)
        if as_json:
            print_json(stdout, _as_json(job.summary, path))
        else:
            for line in _lines(job.summary):
                terminal.print(line, soft_wrap=True)
            terminal.print(f"written to {path}", soft_wrap=True)
        for note in job.summary.notes():
            err.print(f"warning: {note}", style="yellow", soft_wrap=True)


@contextmanager
def _bar(err: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes on a terminal; elsewhere, of large files, a line every tenth of the way."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("reading"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bars = Progress(
        *columns,
        console=err,
        disable=not err.is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task: Any = bars.add_task("", total=None)
    said = 0

    def progress(done: int, total: int) -> None:
        nonlocal said
        bars.update(task, completed=done, total=total)
        tenth = 10 * done // max(1, total)
        if tenth > said and total > _LARGE and not err.is_terminal:
            said = tenth
            err.print(f"reading: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB", soft_wrap=True)

    with bars:
        yield progress


def _lines(summary: Summary) -> Iterator[str]:
    each = ", ".join(f"{count:,} {name}" for name, count in summary.statuses.most_common())
    questions = counted(summary.questions, "question")
    yield f"{counted(summary.traces, 'trace')} of {questions} ({each})"
    count = "" if summary.k is None else f", k={summary.k}"
    yield f"{counted(summary.tokens, 'token')}{count}"
    right = f", {summary.correct:,} of {summary.marked:,} right" if summary.marked else ""
    yield f"{summary.answered:,} with an answer{right}"


def _as_json(summary: Summary, path: Path) -> dict[str, Any]:
    return {
        "path": str(path),
        "traces": summary.traces,
        "questions": summary.questions,
        "tokens": summary.tokens,
        "statuses": dict(summary.statuses),
        "answered": summary.answered,
        "marked": summary.marked,
        "correct": summary.correct,
        "k": summary.k,
        "models": list(summary.models),
        "dropped": summary.dropped,
        "warnings": list(summary.notes()),
    }
