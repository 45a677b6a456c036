"""`think` and `eval`: a model is asked. What is heavy is imported when a command runs."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deepconf import _options as o
from deepconf._core import Policy
from deepconf._setup import Setup, guarded, own_stdout
from deepconf._words import counted
from deepconf.commands._app import app, print_json
from deepconf.errors import (
    DeepConfWarning,
    EngineDied,
    Interrupted,
    InvalidInput,
    TraceFileError,
)

if TYPE_CHECKING:
    from rich.console import Console

    from deepconf.evaluate import Evaluation
    from deepconf.result import Result


@app.command(cls=o.TakesQuestion)
@guarded
@o.takes(o.Common)
def think(
    question: Annotated[
        str,
        typer.Argument(
            help="What to ask; behind -- where it begins with a minus and a letter.",
            show_default=False,
        ),
    ],
    options: o.Common,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            "-p",
            help=f"One of {', '.join(Policy.presets())}, or of the settings file. Default: the one "
            "that file chooses, or low.",
            show_default=False,
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="Save the traces to this file: .parquet, .arrow or .feather."),
    ] = None,
) -> None:
    """Answers one question by many traces, and shows how they voted.

    Settings come from the policy; then from deepconf.json in a model's folder or beside it; then
    from options.
    """
    from deepconf import _render, _terminal
    from deepconf.answers import extractor
    from deepconf.deepthink import DeepThink
    from deepconf.questions import posed

    with own_stdout() as stdout:
        out, err = _terminal.console(stdout), _terminal.console(sys.stderr)
        setup = Setup.make(options, [] if policy is None else [policy])
        extractor(options.answer)  # Says at once what is wrong with it.
        prompt = posed(question, system=options.system, suffix=options.suffix)
        if save is not None:
            save = save.expanduser()
            _check_save(save)
        [(label, chosen)] = setup.policies.items()
        failure: EngineDied | Interrupted | None = None
        with setup.start(err) as engine:
            watch = _terminal.Watch(err, "traces")
            driver = DeepThink(
                engine, chosen, answer=options.answer, math=_math(options), on_trace=watch.trace
            )
            with watch, warnings.catch_warnings():
                warnings.simplefilter("ignore", DeepConfWarning)  # Shown below, and in full.
                watch.policy(label, 0, chosen.budget)
                result: Result | None
                try:
                    result = driver.run(prompt)
                except (EngineDied, Interrupted) as error:
                    result, failure = error.result, error
            if result is not None:
                if options.as_json:
                    print_json(stdout, result.summary())
                else:
                    _render.show_result(out, result)
                    stdout.flush()
                _render.show_warnings(err, result)
                if save is not None:
                    _save(save, result)
    if failure is not None:
        raise failure


def _math(options: o.Common) -> Literal["auto"] | bool:
    return "auto" if options.math is None else options.math


def _check_save(path: Path) -> None:
    """Before hours are spent: whether a trace file can be written there."""
    from deepconf.recording import check_target
    from deepconf.traces import schema

    schema()  # Says at once when pyarrow is missing.
    check_target(path, f"--save {path}")
    if not path.parent.is_dir():
        raise TraceFileError(f"{path}: cannot be written: there is no folder {path.parent}")


def _save(path: Path, result: Result) -> None:
    from deepconf.traces import TraceWriter

    table = result.to_arrow()
    with TraceWriter(path, schema=table.schema) as out:
        out.write(table)


@app.command("eval")
@guarded
@o.takes(o.Common)
def evaluate(
    questions: Annotated[
        Path,
        typer.Argument(
            help='A file of questions, {"question": ..., "answer": ...} on each line, with an "id" '
            "or without, and without an answer where none is known; a question is a string or a "
            "list of chat messages. Also a JSON array, Parquet, or - for stdin.",
            show_default=False,
        ),
    ],
    options: o.Common,
    policy: Annotated[
        list[str],
        typer.Option(
            "--policy",
            "-p",
            help=f"One of {', '.join(Policy.presets())}; again for more.",
        ),
    ] = ["low", "high", "offline"],  # noqa: B006
    out: Annotated[
        Path | None,
        typer.Option(
            help="The run file, to which every finished question is saved: the same command again "
            "carries on. Default: runs/MODEL-QUESTIONS.jsonl.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start the run file anew, and the recording.")
    ] = False,
    record: Annotated[
        Path | None,
        typer.Option(
            help="Keep every trace of the only policy, or of the only offline one, in this trace "
            "file: .parquet, .arrow or .feather. Until all is finished it is RECORD.part."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="The first so many questions only.")] = None,
    concurrency: Annotated[int, typer.Option(help="How many questions are asked at once.")] = 4,
    max_failed: Annotated[
        float,
        typer.Option(help="The share of a question's traces that may fail, in [0, 1)."),
    ] = 0.1,
) -> None:
    """Asks many questions under several policies: accuracy, tokens and time of each.

    With an offline policy, every vote that could be taken over its traces is in the table too.
    Settings come from the policy; then from deepconf.json in a model's folder or beside it; then
    from options.
    """
    from deepconf import _render, _terminal
    from deepconf.evaluate import Evaluation

    with own_stdout() as stdout, contextlib.ExitStack() as stack:
        console, err = _terminal.console(stdout), _terminal.console(sys.stderr)
        setup = Setup.make(options, policy)
        if concurrency < 1:
            raise InvalidInput(f"--concurrency {concurrency}: must be at least 1")
        stem = "stdin" if str(questions) == "-" else questions.stem
        target = out or Path("runs") / f"{_stem(setup.model)}-{stem}.jsonl"
        evaluation = Evaluation(
            questions,
            setup.policies,
            model=setup.model,
            out=target,
            settings=setup.settings(),
            limit=limit,
            answer=options.answer,
            math=_math(options),
            system=options.system,
            suffix=options.suffix,
            max_failed=max_failed,
            overwrite=overwrite,
            record=record,
        )
        stack.callback(evaluation.close)
        running = stack.enter_context(contextlib.ExitStack())
        missing = len(evaluation.missing())
        there = len(evaluation.questions) * len(setup.policies) - missing
        if there:
            err.print(f"{target}: {there} finished, {missing} to do", soft_wrap=True)
        try:
            if missing:
                engine = running.enter_context(setup.start(err))
                with _terminal.Watch(err, "questions") as watch:
                    evaluation.run(engine, concurrency=concurrency, progress=watch)
        finally:
            report = evaluation.report()
            if options.as_json and report.records:
                print_json(stdout, report.to_dict())
            elif report.records:
                _render.show_report(console, report)
            stdout.flush()
        running.close()  # Others may have the GPUs while the trace file is written.
        _seal(err, evaluation)
        if evaluation.is_recorded and not options.as_json:
            _replay(console, err, evaluation)
        if (stopped := evaluation.incomplete()) is not None:
            raise stopped


def _seal(err: Console, evaluation: Evaluation) -> None:
    """Makes the trace file of a recording that is complete, and says where the traces are."""
    from deepconf import _terminal

    recording = evaluation.recording
    if recording is None:
        return
    with _terminal.Bars(err, "questions") as bars:
        evaluation.seal(functools.partial(bars.tell, f"writing {recording.path.name}"))
    if recording.questions:
        where, count = recording.where, len(recording.questions)
        err.print(f"{where}: the traces of {counted(count, 'question')}", soft_wrap=True)


def _replay(console: Console, err: Console, evaluation: Evaluation) -> None:
    """Replays the policies that ran live beside a recorded one, and shows both."""
    from deepconf import _tables
    from deepconf.lab.live import beside

    assert evaluation.recording is not None  # There is one where all is recorded.
    live = {p: policy for p, policy in evaluation.policies.items() if p != evaluation.recorded}
    records = evaluation.report().records
    if any(record["correct"] is None for record in records):
        return  # A replay would then count what agrees with the majority.
    try:
        found = beside(evaluation.recording.path, live, records)
    except InvalidInput as error:
        err.print(f"note: nothing is replayed: {error}", soft_wrap=True)
        return
    if found:
        _tables.show_beside(console, found)


def _stem(model: str) -> str:
    """A model's name as part of a file's."""
    name = Path(model).expanduser().resolve().name if Path(model).is_dir() else Path(model).name
    return re.sub(r"[^\w.-]+", "-", name) or "model"
