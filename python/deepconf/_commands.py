"""The commands, with typer; what is heavy is imported when a command runs."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

import deepconf
from deepconf import _options as o
from deepconf._core import Policy
from deepconf._setup import INTERRUPTED, Setup, guarded, own_stdout
from deepconf.errors import InvalidInput, MissingExtra, RunFileError, SignalNeverArmed

if TYPE_CHECKING:
    from deepconf.result import Result

__all__ = ["app"]

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


@app.command()
@guarded
def think(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    model: o.Model,
    policy: Annotated[
        str, typer.Option("--policy", "-p", help=f"One of {', '.join(Policy.presets())}.")
    ] = "low",
    budget: o.Budget = None,
    warmup: o.Warmup = None,
    window: o.Window = None,
    tail: o.Tail = None,
    top_logprobs: o.TopLogprobs = None,
    keep: o.Keep = None,
    stop: o.Stop = None,
    consensus: o.Consensus = None,
    min_ballots: o.MinBallots = None,
    seed: o.Seed = None,
    set_: o.Set = [],  # noqa: B006 (typer copies it)
    temperature: o.Temperature = None,
    top_p: o.TopP = None,
    max_tokens: o.MaxTokens = None,
    sampling: o.Sampling = [],  # noqa: B006
    answer: o.Answer = "boxed",
    engine_arg: o.EngineArg = [],  # noqa: B006
    chat: o.Chat = None,
    save: Annotated[Path | None, typer.Option(help="Save the traces to this Parquet file.")] = None,
    as_json: o.AsJson = False,
) -> None:
    """Answers one question by many traces, and shows how they voted.

    Settings come from the policy; then from deepconf.json in a model's folder or beside it; then
    from options.
    """
    from deepconf import _render
    from deepconf.answers import extractor
    from deepconf.deepthink import DeepThink

    with own_stdout() as stdout:
        out, err = _render.console(stdout), _render.console(sys.stderr)
        setup = Setup.make(
            err,
            model,
            [policy],
            policy={
                "budget": budget,
                "warmup": warmup,
                "window": window,
                "tail": tail,
                "top_logprobs": top_logprobs,
                "keep": keep,
                "stop": stop,
                "consensus": consensus,
                "min_ballots": min_ballots,
                "seed": seed,
            },
            explicit=set_,
            sampling={"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens},
            more_sampling=sampling,
            engine=engine_arg,
            chat=chat,
        )
        extractor(answer)  # Says at once what is wrong with it.
        if save is not None:
            _check_target(save)
        chosen = setup.policies[policy]
        with setup.start(err) as engine:
            watch = _render.Watch(err, "traces")
            driver = DeepThink(engine, chosen, answer=answer, on_trace=watch.trace)
            with watch, warnings.catch_warnings():
                warnings.simplefilter("ignore", SignalNeverArmed)  # Shown below, and in full.
                watch.policy(policy, 0, chosen.budget)
                result = driver.run(question)
            if as_json:
                _print_json(stdout, result.summary())
            else:
                _render.show_result(out, result)
                stdout.flush()
            _render.show_warnings(err, result)
            if save is not None:
                _save(save, result)
    if result.reason == "cancelled":
        raise typer.Exit(INTERRUPTED)


def _check_target(path: Path) -> None:
    """Before hours are spent: whether a trace file can be written there."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingExtra("arrow", "pyarrow") from error
    if path.is_dir() or not path.parent.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise RunFileError(f"{path}: cannot be written: {why}")


def _save(path: Path, result: Result) -> None:
    import pyarrow.parquet as pq

    try:
        pq.write_table(result.to_arrow(), path, compression="zstd")
    except OSError as error:
        raise RunFileError(f"{path}: cannot be written: {error}") from error


@app.command("eval")
@guarded
def evaluate(
    questions: Annotated[
        Path,
        typer.Argument(
            help='A file of questions, {"question": ..., "answer": ...} on each line, with an "id" '
            "or without; a question is a string or a list of chat messages.",
            show_default=False,
        ),
    ],
    model: o.Model,
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
        bool, typer.Option("--overwrite", help="Start the run file anew.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="The first so many questions only.")] = None,
    concurrency: Annotated[int, typer.Option(help="How many questions are asked at once.")] = 4,
    budget: o.Budget = None,
    warmup: o.Warmup = None,
    window: o.Window = None,
    tail: o.Tail = None,
    top_logprobs: o.TopLogprobs = None,
    keep: o.Keep = None,
    stop: o.Stop = None,
    consensus: o.Consensus = None,
    min_ballots: o.MinBallots = None,
    seed: o.Seed = None,
    set_: o.Set = [],  # noqa: B006
    temperature: o.Temperature = None,
    top_p: o.TopP = None,
    max_tokens: o.MaxTokens = None,
    sampling: o.Sampling = [],  # noqa: B006
    answer: o.Answer = "boxed",
    engine_arg: o.EngineArg = [],  # noqa: B006
    chat: o.Chat = None,
    as_json: o.AsJson = False,
) -> None:
    """Asks many questions under several policies: accuracy, tokens and time of each.

    With an offline policy, every vote that could be taken over its traces is in the table too.
    Settings come from the policy; then from deepconf.json in a model's folder or beside it; then
    from options.
    """
    from deepconf import _render
    from deepconf.answers import extractor
    from deepconf.evaluate import Evaluation

    with own_stdout() as stdout, contextlib.ExitStack() as stack:
        console, err = _render.console(stdout), _render.console(sys.stderr)
        setup = Setup.make(
            err,
            model,
            policy,
            policy={
                "budget": budget,
                "warmup": warmup,
                "window": window,
                "tail": tail,
                "top_logprobs": top_logprobs,
                "keep": keep,
                "stop": stop,
                "consensus": consensus,
                "min_ballots": min_ballots,
                "seed": seed,
            },
            explicit=set_,
            sampling={"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens},
            more_sampling=sampling,
            engine=engine_arg,
            chat=chat,
        )
        extractor(answer)
        if concurrency < 1:
            raise InvalidInput(f"--concurrency {concurrency}: must be at least 1")
        target = out or Path("runs") / f"{_stem(model)}-{questions.stem}.jsonl"
        evaluation = Evaluation(
            questions,
            setup.policies,
            model=model,
            out=target,
            settings=setup.settings(),
            limit=limit,
            answer=answer,
            overwrite=overwrite,
        )
        stack.callback(evaluation.close)
        missing = len(evaluation.missing())
        there = len(evaluation.questions) * len(setup.policies) - missing
        if there:
            err.print(f"{target}: {there} finished, {missing} to do", soft_wrap=True)
        try:
            if missing:
                engine = stack.enter_context(setup.start(err))
                with _render.Watch(err, "questions") as watch:
                    evaluation.run(engine, concurrency=concurrency, progress=watch)
        finally:
            report = evaluation.report()
            if as_json and report.records:
                _print_json(stdout, report.to_dict())
            elif report.records:
                _render.show_report(console, report)
            stdout.flush()
        if evaluation.failure is not None:
            raise evaluation.failure


def _stem(model: str) -> str:
    """A model's name as part of a file's."""
    name = Path(model).expanduser().resolve().name if Path(model).is_dir() else Path(model).name
    return re.sub(r"[^\w.-]+", "-", name) or "model"


def _print_json(out: TextIO, value: Any) -> None:
    out.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    out.flush()
