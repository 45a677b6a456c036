"""The options that the commands share, written once."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_type_hints

import typer
from typer.core import TyperCommand

__all__ = ["AsJson", "Common", "OfPolicy", "TakesQuestion", "takes"]

_MODEL = "The model"
_POLICY = "The policy"
_TRACES = "How traces are sampled and read"

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A model folder, or a name on the hub; with --url, the model's name there, which may "
        "be left out where there is only one.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        metavar="http://HOST:PORT/v1",
        help="A server with OpenAI's interface, which generates in the place of vLLM here.",
        rich_help_panel=_MODEL,
    ),
]
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The environment variable with that server's API key.",
        rich_help_panel=_MODEL,
    ),
]
Settings = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A file of settings. Default: deepconf.json in the model's folder or beside it.",
        rich_help_panel=_MODEL,
    ),
]
EngineArg = Annotated[
    list[str],
    typer.Option(
        metavar="NAME=VALUE",
        help="An engine argument of vLLM, such as tensor_parallel_size=2, or with --url of "
        "deepconf.engines.OpenAI, such as tries=5; again for more.",
        rich_help_panel=_MODEL,
    ),
]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat",
        help="Put questions into the model's chat template. Default: where it has one.",
        rich_help_panel=_MODEL,
    ),
]
ChatTemplateKwargs = Annotated[
    str | None,
    typer.Option(
        metavar="JSON",
        help="What the chat template is told, such as '{\"enable_thinking\": true}'.",
        rich_help_panel=_MODEL,
    ),
]
System = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="A system message to begin with; makes the question a chat.",
        rich_help_panel=_MODEL,
    ),
]
Suffix = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Appended to each question, on a line of its own, e.g. 'Put your final answer within "
        r"\boxed{}.'",
        rich_help_panel=_MODEL,
    ),
]

Budget = Annotated[
    int | None,
    typer.Option(help="Traces in all, warmup included.", rich_help_panel=_POLICY),
]
Warmup = Annotated[
    int | None,
    typer.Option(help="Traces that set the threshold; online only.", rich_help_panel=_POLICY),
]
Window = Annotated[int | None, typer.Option(help="Tokens in a group.", rich_help_panel=_POLICY)]
Tail = Annotated[
    int | None, typer.Option(help="Tokens of the tail confidence.", rich_help_panel=_POLICY)
]
TopLogprobs = Annotated[
    int | None,
    typer.Option(help="Log-probabilities of a token that count (k).", rich_help_panel=_POLICY),
]
Bottom = Annotated[
    float | None,
    typer.Option(help="The share of groups that are the bottom.", rich_help_panel=_POLICY),
]
Keep = Annotated[
    float | None,
    typer.Option(help="The fraction of traces to keep, in (0, 1].", rich_help_panel=_POLICY),
]
Stop = Annotated[
    str | None,
    typer.Option(
        metavar="consensus|certain|budget",
        help="When sampling ends; online only.",
        rich_help_panel=_POLICY,
    ),
]
Consensus = Annotated[
    float | None,
    typer.Option(help="The share of the vote that is a consensus.", rich_help_panel=_POLICY),
]
MinBallots = Annotated[
    int | None,
    typer.Option(
        help="With fewer ballots there is no consensus, and a filter is given up.",
        rich_help_panel=_POLICY,
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="Trace i has seed SEED + i.", rich_help_panel=_POLICY)
]
Set = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any setting of a policy, applied to all policies as it stands; again for more.",
        rich_help_panel=_POLICY,
    ),
]

Temperature = Annotated[
    float | None, typer.Option(help="Sampling temperature.", rich_help_panel=_TRACES)
]
TopP = Annotated[
    float | None, typer.Option(help="Nucleus sampling, in (0, 1].", rich_help_panel=_TRACES)
]
MaxTokens = Annotated[
    int | None, typer.Option(help="Tokens in a trace at the most.", rich_help_panel=_TRACES)
]
Sampling = Annotated[
    list[str],
    typer.Option(
        metavar="NAME=VALUE",
        help="A sampling parameter of vLLM or of that server, such as top_k=20; again for more.",
        rich_help_panel=_TRACES,
    ),
]
Answer = Annotated[
    str,
    typer.Option(
        metavar="boxed|regex:...",
        help=r"Where a trace's answer stands: in its last \boxed{...}, or where a regular "
        "expression matches last (its group named answer, its first group, or all of it).",
        rich_help_panel=_TRACES,
    ),
]
Math = Annotated[
    bool | None,
    typer.Option(
        "--math/--no-math",
        help="Whether answers that are equal by algebra are the same answer. Default: where "
        "math-verify is installed.",
        rich_help_panel=_TRACES,
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, kw_only=True)
class OfPolicy:
    """The settings of a policy that have an option of their own, and `--set` for all others."""

    names: ClassVar[tuple[str, ...]] = (
        "budget",
        "warmup",
        "window",
        "tail",
        "bottom",
        "keep",
        "stop",
        "consensus",
        "min_ballots",
    )

    budget: Budget = None
    warmup: Warmup = None
    window: Window = None
    tail: Tail = None
    bottom: Bottom = None
    keep: Keep = None
    stop: Stop = None
    consensus: Consensus = None
    min_ballots: MinBallots = None
    set_: Set = field(default_factory=list)

    def given(self, *names: str) -> dict[str, Any]:
        """Those of these options that were given."""
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Common(OfPolicy):
    """What a command takes that asks a model."""

    names: ClassVar[tuple[str, ...]] = (*OfPolicy.names, "top_logprobs", "seed")

    model: Model = None
    url: Url = None
    api_key_env: ApiKeyEnv = None
    settings: Settings = None
    engine_arg: EngineArg = field(default_factory=list)
    chat: Chat = None
    chat_template_kwargs: ChatTemplateKwargs = None
    system: System = None
    suffix: Suffix = None
    top_logprobs: TopLogprobs = None
    seed: Seed = None
    temperature: Temperature = None
    top_p: TopP = None
    max_tokens: MaxTokens = None
    sampling: Sampling = field(default_factory=list)
    answer: Answer = "boxed"
    math: Math = None
    as_json: AsJson = False


def takes(kind: type[OfPolicy]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the fields of a class as options; it takes them as `options`."""

    def wrapped(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "options"]
        hints = get_type_hints(kind, include_extras=True)
        # Its own before those that it inherits.
        first = inspect.get_annotations(kind)
        options = sorted(dataclasses.fields(kind), key=lambda option: option.name not in first)
        shared = [
            inspect.Parameter(
                option.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_default(option),
                annotation=hints[option.name],
            )
            for option in options
        ]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            found = kind(**{option.name: given.pop(option.name) for option in options})
            command(**given, options=found)

        every = [*own, *shared]
        run.__signature__ = signature.replace(parameters=every)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
        return run

    return wrapped


def _default(option: dataclasses.Field[Any]) -> Any:
    if option.default is not dataclasses.MISSING:
        return option.default
    if option.default_factory is not dataclasses.MISSING:
        return option.default_factory()
    return inspect.Parameter.empty


# What other programs call an option of ours.
_MEANT = {"--n": ["--budget"], "--num-traces": ["--budget"], "--samples": ["--budget"]}


class TakesQuestion(TyperCommand):
    """A command whose argument may begin with a minus, as in `-3+5=?`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts behind `--` what cannot be an option, since none begins so."""
        takes_value = {
            name
            for parameter in self.params
            if not getattr(parameter, "is_flag", False)
            for name in parameter.opts
        }
        options: list[str] = []
        questions: list[str] = []
        rest = iter(args)
        for arg in rest:
            if arg == "--":
                questions += rest
            elif arg[:1] == "-" and len(arg) > 1 and not arg[1:].lstrip("-")[:1].isalpha():
                questions.append(arg)
            else:
                options.append(arg)
                if arg in takes_value:
                    options += [value for value in [next(rest, None)] if value is not None]
        try:
            return super().parse_args(ctx, [*options, *(["--", *questions] if questions else [])])
        except Exception as error:
            name = getattr(error, "option_name", None)
            if name is not None and hasattr(error, "possibilities"):
                every = [opt for parameter in self.params for opt in parameter.opts]
                meant = _MEANT.get(name) or [opt for opt in every if opt.startswith(name)]
                error.possibilities = meant or error.possibilities
            raise
