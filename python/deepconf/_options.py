"""The options that the commands share."""

from __future__ import annotations

from typing import Annotated

import typer

_MODEL = "The model"
_POLICY = "The policy"
_TRACES = "How traces are sampled and read"

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="A model folder, or a name on the hub.", rich_help_panel=_MODEL
    ),
]
EngineArg = Annotated[
    list[str],
    typer.Option(
        metavar="NAME=VALUE",
        help="An engine argument of vLLM, such as tensor_parallel_size=2; again for more.",
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
        help="A sampling parameter of vLLM, such as top_k=20; again for more.",
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

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
