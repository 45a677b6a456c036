"""Pictures with matplotlib: confidence along traces, ballots, accuracy against tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepconf._core import TraceScorer
from deepconf._words import counted
from deepconf.errors import InvalidInput, MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from deepconf._core import Vote
    from deepconf.held import Traces
    from deepconf.lab.played import Replay
    from deepconf.report import Report
    from deepconf.result import Result

__all__ = ["ballots", "curves", "of_replay", "of_report", "of_result", "of_traces"]

# Colours that most colour-blind people tell apart.
_BLUE, _ORANGE, _GREY, _DARK = "#0072B2", "#D55E00", "#9A9A9A", "#333333"
_MANY = (_ORANGE, _BLUE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
_MOST_BALLOTS = 8
_POINTS = 500
"""Points of a curve; of more tokens the lowest of each stretch is drawn, as that is what stops."""


def of_result(result: Result, axes: Sequence[Axes] | None) -> NDArray[Any]:
    """Group confidence along the traces, and the ballots; on two axes, or a new figure."""
    plt = _pyplot()
    if axes is None:
        _, axes = plt.subplots(1, 2, figsize=(10, 4), width_ratios=(3, 2), layout="constrained")
    found = np.asarray(axes, object).reshape(-1)
    if len(found) != 2:
        raise InvalidInput(f"axes: there are {len(found)}, and must be two")
    kinds = {"did not vote": _GREY, "stopped": _ORANGE, "voted": _BLUE}
    window = result.policy.window
    # Of a trace that was aborted before its first group there is nothing to show.
    traces = [
        trace
        for trace in result.traces
        if trace.status != "aborted" or len(trace.confidence) >= window
    ]

    def kind(trace: Any) -> str:
        if trace.status == "stopped":
            return "stopped"
        return "voted" if trace.voted else "did not vote"

    curves(
        found[0],
        [trace.confidence for trace in traces],
        [kind(trace) for trace in traces],
        kinds,
        window=window,
        stops=[trace.stop_token for trace in traces],
        threshold=result.threshold,
    )
    ballots(found[1], result.vote)
    return found


def of_traces(traces: Traces, window: int, threshold: float | None, ax: Axes | None) -> Axes:
    """Group confidence along recorded traces, and where a threshold would stop them."""
    scorer = TraceScorer(window=window, bottom=None, threshold=threshold)
    stops = []
    for confidence in traces.confidences:
        scorer.reset()
        stops.append(scorer.extend(confidence))
    kinds = {True: "right", False: "wrong", None: "trace"}
    axes = _axes(ax)
    curves(
        axes,
        traces.confidences,
        [kinds[right] for right in traces.correct],
        {"right": _BLUE, "wrong": _ORANGE, "trace": _BLUE},
        window=window,
        stops=stops,
        threshold=threshold,
    )
    return axes


def curves(
    ax: Axes,
    confidences: Iterable[NDArray[np.float32]],
    kinds: Sequence[str],
    colours: dict[str, str],
    *,
    window: int,
    stops: Sequence[int | None],
    threshold: float | None,
) -> None:
    """Group confidence along traces, with the threshold and where traces were stopped."""
    order = list(colours)
    for confidence, kind, stop in zip(confidences, kinds, stops, strict=True):
        tokens, groups = _groups(confidence, window)
        # Those named last are drawn over the others.
        style: Any = {"color": colours[kind], "linewidth": 0.8}
        style["zorder"] = 2 + order.index(kind) / 10
        kept = len(tokens) if stop is None else int(np.searchsorted(tokens, stop, side="right"))
        if len(groups) == 1:  # One group, at its end.
            ax.plot(tokens, groups, ".", markersize=3, **style)
        else:
            ax.plot(tokens[:kept], groups[:kept], alpha=0.5, **style)
            rest = slice(max(0, kept - 1), None)  # What a stop would have spared is faint.
            ax.plot(tokens[rest], groups[rest], alpha=0.1, **style)
        if stop is not None and stop < len(confidence):
            part = np.asarray(confidence, np.float64)[max(0, stop - window + 1) : stop + 1]
            ax.plot(stop, part.mean(), "x", color="black", markersize=5, zorder=3)
    seen = [name for name in colours if name in kinds]
    for name in seen:
        ax.plot([], [], color=colours[name], label=name)
    if threshold is not None:
        ax.axhline(threshold, color="black", linestyle="--", linewidth=1, label="threshold")
    ax.set(xlabel="token", ylabel="group confidence, nats", title=f"Groups of {window:,} tokens")
    if seen or threshold is not None:
        ax.legend(fontsize="small")


def _groups(
    confidence: NDArray[np.float32], window: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The last token of each group and its mean; of many, the lowest of each stretch."""
    if not len(confidence):
        return np.empty(0, np.int64), np.empty(0)
    window = min(window, len(confidence))
    sums = np.concatenate([[0.0], np.cumsum(confidence, dtype=np.float64)])
    groups = (sums[window:] - sums[:-window]) / window
    step = -(-len(groups) // _POINTS)
    starts = np.arange(0, len(groups), step)
    return starts + window - 1, np.minimum.reduceat(groups, starts)


def ballots(ax: Axes, vote: Vote) -> None:
    """The ballots of a vote, the heaviest on top."""
    shown: list[Any] = list(vote)[:_MOST_BALLOTS][::-1]
    names = [_short(str(ballot.answer)) for ballot in shown]
    places = np.arange(len(shown))
    colours = [_GREY] * max(0, len(shown) - 1) + [_BLUE]
    bars = ax.barh(places, [ballot.share for ballot in shown], color=colours[: len(shown)])
    ax.bar_label(bars, [f" {ballot.share:.0%} ({ballot.voters})" for ballot in shown], fontsize=8)
    ax.set_yticks(places, names, parse_math=False)
    more = len(vote.ballots) - len(shown)
    ax.set(
        ylim=(len(shown) - max(len(shown), 4) - 0.5, len(shown) - 0.5),  # No bar is a wall.
        xlim=(0, 1.2),
        xlabel="share of all weight (voters)",
        title="Ballots" + (f", and {more} more" if more > 0 else ""),
    )


def of_report(report: Report, ax: Axes | None) -> Axes:
    """Accuracy against tokens, a point a row."""
    axes = _axes(ax)
    named = []
    others = {"vote": (_GREY, "votes over the same traces"), "majority": (_DARK, "majorities")}
    seen: set[str] = set()
    for row, _ in report.shown():
        if row.tokens is None or row.accuracy is None:
            continue
        if row.kind in others and row.method != "majority":
            colour, what = others[row.kind]
            label = None if row.kind in seen else what
            seen.add(row.kind)
            axes.plot(row.tokens, 100 * row.accuracy, "o", color=colour, alpha=0.6, label=label)
        else:
            error = None if row.error is None else 100 * row.error
            named.append((row.method, row.tokens, 100 * row.accuracy, error))
    _points(axes, named)
    axes.set(ylabel="accuracy, %", title=report.title)
    _tokens(axes, "tokens")
    return axes


def of_replay(replay: Replay, ax: Axes | None) -> Axes:
    """Accuracy against tokens a question: policies, beside plain majority at every budget."""
    from deepconf.lab._verdict import VARIANTS

    axes = _axes(ax)
    found = replay.summary()
    for name, style in zip(VARIANTS, ("-", "--"), strict=True):
        rows = [row for row in found.frontier if row.kind == name]
        tokens = [row.tokens.value for row in rows]
        accuracies = [100 * row.accuracy.value for row in rows]
        axes.plot(tokens, accuracies, style, color=_DARK, linewidth=1, label=VARIANTS[name])
    points = [
        (
            row.label,
            row.tokens.value,
            100 * row.accuracy.value,
            None if row.accuracy.error is None else 100 * row.accuracy.error,
        )
        for row in found.rows
    ]
    _points(axes, points)
    what = "accuracy" if found.gold else "agreement with all traces' vote"
    axes.set(
        ylabel=f"{what}, %",
        title=f"{counted(found.questions, 'question')}, {counted(found.repeats, 'draw')} of each; "
        "± standard error",
    )
    _tokens(axes, "tokens a question")
    return axes


def _points(ax: Axes, points: Sequence[tuple[str, float, float, float | None]]) -> None:
    """Points with a name, tokens, accuracy and its error, which have a colour each if few."""
    few = len(points) <= len(_MANY)
    for at, (name, tokens, accuracy, error) in enumerate(points):
        colour = _MANY[at] if few else _ORANGE
        label = _short(name) if few else None if at else f"{len(points)} policies"
        ax.errorbar(
            tokens,
            accuracy,
            error,
            fmt="D",
            color=colour,
            label=label,
            markersize=6 if few else 4,
            capsize=2,
            alpha=0.9,
            linewidth=1,
        )


def _tokens(ax: Axes, label: str) -> None:
    """An axis of tokens, from a few to very many, and the legend where accuracy leaves room."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set(xlabel=label, xscale="log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend(fontsize="small", loc="lower right")


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    made: Axes = _pyplot().subplots(figsize=(7, 4.5), layout="constrained")[1]
    return made


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtra("plot", "matplotlib") from error
    return plt
