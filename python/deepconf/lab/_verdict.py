"""What figures come to, in a sentence: the one place where it is said whether confidence helps.

Two rules decide, wherever it is said. A difference of accuracies is one where its 95% interval over
questions leaves out 0 and, where each question is won or lost, the sign test agrees. Confidence
tells right traces from wrong ones where the interval of an AUROC within questions is above 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from deepconf._statistics import Difference, Estimate, paired
from deepconf._words import counted

if TYPE_CHECKING:
    from deepconf.lab._summary import Equal

__all__ = [
    "AGREEMENT",
    "GIVE_GOLD",
    "VARIANTS",
    "Compared",
    "beside",
    "closing",
    "counts_in_words",
    "difference_in_words",
    "gainable",
    "is_blind",
    "points",
    "ratio",
    "separated",
]

VARIANTS = {"majority": "plain majority", "consensus": "majority with early consensus"}
"""The two ways a majority is counted, by their names in a frontier, in words."""
GIVE_GOLD = (
    "give the right answers when traces are imported (gold=, --gold), or to traces that are there: "
    "deepconf.Traces.read(file).marked(gold)"
)
"""How answers become known."""
AGREEMENT = (
    "no answers are known: agreement is with the vote of all traces of a question, to which a "
    f"majority is nearest by itself; {GIVE_GOLD}"
)
# Above this share of pairs, a score is said to tell right from wrong well.
_WELL = 0.65


class Compared(Protocol):
    """A policy beside majority at the same tokens."""

    @property
    def label(self) -> str: ...
    @property
    def accuracy(self) -> Estimate: ...
    @property
    def tokens(self) -> Estimate: ...
    @property
    def same_tokens(self) -> dict[str, Equal]: ...


def closing(rows: Sequence[Compared], gold: bool) -> str:
    """Whether the best policy beats the better majority at its tokens, in a sentence."""
    best = min(rows, key=lambda row: (-row.accuracy.value, row.tokens.value))
    which = f"{best.label} (the most accurate of {len(rows)})" if len(rows) > 1 else best.label
    return beside(which, best.accuracy.value, best.same_tokens, gold)


def beside(which: str, accuracy: float, same_tokens: Mapping[str, Equal], gold: bool) -> str:
    """How a policy compares with the better majority at its tokens, in a sentence."""
    name, equal = max(same_tokens.items(), key=lambda item: item[1].accuracy)
    found = equal.difference
    what = "accuracy" if gold else "agreement"
    mine, its = ratio(accuracy), ratio(equal.accuracy)
    figures = f"{mine} against {its} ({difference_in_words(found)})"
    turned = f"{its} against {mine} ({difference_in_words(-found)})"
    at = "at the same tokens"
    if equal.beyond == "above":
        at = "at the whole budget (which costs fewer tokens)"
    elif equal.beyond == "below":
        at = "at its smallest budget (which costs more tokens)"
    if not found.value:
        said = f"{VARIANTS[name]} {at} is as good as {which}: {turned}"
    elif not found.clear:
        said = f"{which} cannot be told apart here from {VARIANTS[name]} {at}: {figures}"
    elif found.value < 0:
        said = f"{VARIANTS[name]} {at} is better here than {which}: {turned}"
    else:
        said = f"{which} is better here than {VARIANTS[name]} {at}: {figures}"
    return f"{what}: {said}."


def is_blind(separation: Estimate | None) -> bool:
    """Whether the interval of an AUROC within questions holds 0.5, or what is worse."""
    return separation is not None and separation.low is not None and separation.low <= 0.5


def separated(score: str, found: Estimate) -> str:
    """Whether a score tells right traces from wrong ones within questions, in a sentence."""
    figure = f"{score.replace('_', ' ')}, AUROC {found.value:.2f} within questions"
    if found.low is None or found.high is None:
        return f"One question says little about whether confidence helps ({figure})."
    figure += f" [{found.low:.2f}, {found.high:.2f}]"
    if is_blind(found) and found.high >= _WELL:
        return (
            "These questions are too few to say whether confidence tells right traces from wrong "
            f"ones ({figure}): majority is the safer choice."
        )
    if is_blind(found):
        return (
            f"Confidence does not tell right traces from wrong ones here ({figure}): majority is "
            "the better choice."
        )
    little = "" if found.value >= _WELL else " a little"
    return f"Confidence tells right traces from wrong ones{little} ({figure})."


def gainable(questions: int, wrong: int, within_reach: int) -> str:
    """How many answers any other vote could gain over the majority of all, in a sentence.

    Args:
        questions: those with known answers.
        wrong: in how many of them the majority is wrong.
        within_reach: in how many of those a candidate is right.
    """
    if not wrong:
        return "The majority of all traces misses no question, so no vote could gain an answer."
    misses = (
        f"The majority of all traces misses {wrong:,} of {counted(questions, 'question')}, of which"
    )
    if not within_reach:
        return f"{misses} none has a right answer among the candidates: no vote could gain one."
    won = np.zeros((1, questions))
    won[0, :within_reach] = 1.0
    has = "has" if within_reach == 1 else "have"
    reach = f"{misses} {within_reach:,} {has} a right answer among the candidates"
    if not paired(won, np.zeros(questions))[0].clear:
        return f"{reach}: a vote that gained all of that could not be told from chance."
    return f"{reach}: that much a vote could gain."


def difference_in_words(found: Difference) -> str:
    """A difference of accuracies, its interval, and the questions it comes from."""
    interval = "" if found.low is None else f" [{points(found.low)}, {points(found.high)}]"
    return f"{points(found.value)}{interval} points; {counts_in_words(found)}"


def counts_in_words(found: Difference) -> str:
    """The questions lost and won, with their p; over draws, where it is higher and lower."""
    if found.p is None:
        return f"higher on {counted(found.won, 'question')}, lower on {found.lost}"
    return f"{found.lost} lost, {found.won} won, p = {found.p:.2g}"


def ratio(value: float) -> str:
    """A share as text: `91.7%`."""
    return f"{value:.1%}"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, signed: `-0.6`."""
    if value is None:
        return "–"
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text
