"""Replays, tunings and diagnoses on a terminal, with rich."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepconf._render import WIDE
from deepconf._statistics import Difference, Estimate
from deepconf._words import counted
from deepconf.lab._summary import Summary
from deepconf.lab._verdict import VARIANTS, points, ratio
from deepconf.lab.diagnose import BINS, Diagnosis
from deepconf.lab.live import Beside
from deepconf.lab.tune import Choice, Tuning

__all__ = ["show_beside", "show_diagnosis", "show_summary", "show_tuning"]


def show_summary(out: Console, summary: Summary) -> None:
    """Prints the policies of a replay, majority beside them, and what that comes to."""
    what = "accuracy" if summary.gold else "agreement"
    over = f"{counted(summary.questions, 'question')}, {counted(summary.repeats, 'draw')} of each"
    table = _table(
        out,
        f"Policies: {over}; means a question, ± standard error",
        [
            "policy",
            what,
            "tokens",
            "of budget",
            "steps",
            "launched",
            "stopped",
            "aborted",
            "given up",
        ],
    )
    for row in summary.rows:
        table.add_row(
            Text(row.label, style="bold"),
            _share(row.accuracy),
            f"{row.tokens.value:,.0f}",
            ratio(row.share),
            f"{row.steps.value:,.0f}",
            *(f"{each.value:,.1f}" for each in (row.launched, row.stopped, row.aborted)),
            ratio(row.fallbacks.value),
        )
    out.print(table)
    names = [f"{name} [95%]" for name in ("against the first", *VARIANTS)]
    table = _table(
        out,
        f"Differences of {what} in points: against the first policy, against majority at the "
        "same tokens",
        ["policy", *names],
    )
    for row in summary.rows:
        beside = [
            f"{ratio(equal.accuracy)}{_mark(equal.beyond)}, {_difference(equal.difference)}"
            for equal in row.same_tokens.values()
        ]
        table.add_row(Text(row.label, style="bold"), _difference(row.against_first), *beside)
    out.print(table)
    table = _table(
        out,
        "Majority at every budget",
        ["budget", *(f"{name} {of}" for name in VARIANTS for of in (what, "tokens"))],
    )
    lines = {name: [row for row in summary.frontier if row.kind == name] for name in VARIANTS}
    for at in _spread(len(lines["majority"])):
        pair = [lines[name][at] for name in VARIANTS]
        cells = [
            cell for row in pair for cell in (_share(row.accuracy), f"{row.tokens.value:,.0f}")
        ]
        table.add_row(f"{pair[0].budget:,}", *cells)
    out.print(table)
    if any(equal.beyond for row in summary.rows for equal in row.same_tokens.values()):
        _say(out, "<, > where no budget costs as much, or as little: that of the nearest")
    _say(out, summary.closing, style="bold")


def show_beside(out: Console, policies: Iterable[Beside]) -> None:
    """Prints live runs beside their replay."""
    table = _table(
        out,
        "Live, and replayed on the recorded traces with the same seeds; means a question",
        ["policy", "accuracy", "replayed", "tokens", "replayed", "same answer", "and stops"],
    )
    for each in policies:
        table.add_row(
            Text(each.label, style="bold"),
            *map(ratio, each.accuracy),
            *(f"{tokens:,.0f}" for tokens in each.tokens),
            f"{each.same_answer} of {each.questions}",
            f"{each.exact} of {each.questions}",
        )
    out.print(table)


def show_tuning(out: Console, tuning: Tuning) -> None:
    """Prints what was chosen, what it was compared with, and what that is worth."""
    what = "accuracy" if tuning.gold else "agreement"
    asked = f"{tuning.objective} with {tuning.goal}".replace("accuracy", what)
    table = _table(
        out,
        f"{asked}: chosen on some of "
        f"{counted(tuning.questions, 'question')} "
        f"and measured on the others, {tuning.folds} times",
        ["", f"{what} [95%]", "tokens", "of full", "goal"],
    )
    full = tuning.full["tokens"]
    for choice in (tuning.confidence, tuning.majority):
        style = "bold green" if choice.label == tuning.label else ""
        table.add_row(
            Text(choice.label, style=style),
            _interval(choice.accuracy, ratio),
            f"{choice.tokens.value:,.0f}",
            ratio(choice.tokens.value / full) if full else "–",
            _goal(choice),
        )
    table.add_section()
    for name, equal in tuning.same_tokens.items():
        table.add_row(
            f"{VARIANTS[name]}, same tokens",
            f"{ratio(equal.accuracy)}{_mark(equal.beyond)}",
            f"{equal.tokens:,.0f}",
            ratio(equal.tokens / full) if full else "–",
            "",
        )
    table.add_row(
        "plain majority, full budget", ratio(tuning.full["accuracy"]), f"{full:,.0f}", "100.0%", ""
    )
    out.print(table)
    _say(out, tuning.closing, style="bold")
    _notes(out, tuning.notes)


def show_diagnosis(out: Console, found: Diagnosis) -> None:
    """Prints how well scores tell right from wrong, and what the candidates are."""
    if found.separation:
        table = _table(
            out,
            f"Right against wrong traces, AUROC (0.5 is chance); window {found.window}",
            ["score", "pooled", "within questions [95%]"],
        )
        for name, each in found.separation.items():
            table.add_row(
                name.replace("_", " "),
                "–" if each.pooled is None else f"{each.pooled:.3f}",
                "–" if each.within is None else _interval(each.within, "{:.3f}".format),
            )
        out.print(table)
        table = _table(
            out,
            "Accuracy by tenths, from the least confident to the most",
            ["of", *(str(at + 1) for at in range(BINS))],
        )
        for kind, curves in (
            ("", found.reliability),
            (", rank in question", found.reliability_within),
        ):
            for name, bins in curves.items():
                cells = [f"{each.accuracy:.0%}" for each in bins]
                empty = [""] * (BINS - len(cells))
                table.add_row(f"{name.replace('_', ' ')}{kind}", *cells, *empty)
        out.print(table)
    answers = found.answers
    known = "" if found.known == found.questions else f", {found.known} with known answers"
    lines = [
        (
            "traces",
            f"{found.traces:,} of {counted(found.questions, 'question')}{known}; "
            f"{counted(found.tokens, 'token')}",
        ),
        ("armed", f"{ratio(found.armed)} of the traces are at least a window long"),
        (
            "answers",
            f"{ratio(answers.answered)} of the traces have one; the leading one has "
            f"{ratio(answers.agreement)} of them; {answers.distinct:.1f} different ones, entropy "
            f"{answers.entropy:.2f} nats",
        ),
    ]
    if answers.pass_1 is not None and answers.majority is not None and answers.pass_n is not None:
        lines.append(
            (
                "right",
                f"one trace {_share(answers.pass_1)}, majority {_share(answers.majority)}, "
                f"any of them {_share(answers.pass_n)}",
            )
        )
        wrong = answers.wrong_concentration
        among = "" if wrong is None else f"; of wrong answers, the leading one is {ratio(wrong)}"
        lines.append(
            (
                "majority",
                f"wrong in {counted(answers.majority_wrong or 0, 'question')}, in "
                f"{answers.within_reach} of them "
                f"with a right answer among the candidates{among}",
            )
        )
    for name, text in lines:
        out.print(Text.assemble((f"{name:<10}", "dim"), text), soft_wrap=True)
    _say(out, found.closing, style="bold")
    if found.thumb:
        _say(out, found.thumb)
    _notes(out, found.notes)


def _table(out: Console, title: str, columns: list[str]) -> Table:
    """A table below its title, which may be longer than it is wide."""
    _say(out, title, style="bold")
    if not out.is_terminal:
        out.width = WIDE
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(columns):
        # Labels may go on in the next line, numbers not.
        table.add_column(
            name, justify="right" if place else "left", overflow="fold", no_wrap=bool(place)
        )
    return table


def _say(out: Console, text: str, style: str = "") -> None:
    out.print(Text(text, style=style), soft_wrap=True)


def _notes(out: Console, notes: Iterable[str]) -> None:
    for note in notes:
        _say(out, f"note: {note}", style="yellow")


def _share(found: Estimate) -> str:
    return ratio(found.value) + ("" if found.error is None else f" ± {100 * found.error:.1f}")


def _interval(found: Estimate, text: Callable[[float], str]) -> str:
    if found.low is None or found.high is None:
        return text(found.value)
    return f"{text(found.value)} [{text(found.low)}, {text(found.high)}]"


def _difference(found: Difference) -> str:
    if found.low is None:
        return points(found.value)
    return f"{points(found.value)} [{points(found.low)}, {points(found.high)}]"


def _mark(beyond: str | None) -> str:
    return {"below": " >", "above": " <"}.get(beyond or "", "")


def _goal(choice: Choice) -> str:
    return "met" if choice.meets_goal else "missed"


def _spread(count: int) -> list[int]:
    """Some places of many: each about twice the one before, and the last."""
    some = {2**power - 1 for power in range(count.bit_length())}
    return sorted({*(at for at in some if at < count), count - 1})
