"""The rule of thumb: is majority enough, or may confidence gain answers? Three figures decide.

A filter can only gain where the majority misses questions. It misses them where wrong traces agree;
where they scatter, more traces are enough. And then confidence must tell right from wrong.

>>> print(rule_of_thumb(0.03, 0.41, 0.72))
Rule of thumb: majority is enough. It misses 3% of the questions (10% would be worth it), and of \
wrong traces the leading wrong answer has 41% (half would be agreement).
>>> print(rule_of_thumb(0.25, 0.7, 0.8))
Rule of thumb: confidence may gain answers. The majority misses 25% of the questions, of wrong \
traces the leading wrong answer has 70%, and the best score has an AUROC of 0.80 within questions.
"""

from __future__ import annotations

__all__ = ["rule_of_thumb"]

_MISSED, _SHARED, _TOLD = 0.10, 0.50, 0.65


def rule_of_thumb(missed: float, shared: float | None, told: float | None) -> str:
    """Which of the two cases this is, and by which figures.

    Args:
        missed: the share of questions in which the majority of all traces is wrong.
        shared: the leading wrong answer's share of the wrong traces, a mean over questions that
            have any; None where none has.
        told: the best score's AUROC within questions; None where there is nothing to tell apart.
    """
    if shared is None or told is None:
        return "Rule of thumb: majority is enough. No question has right traces beside wrong ones."
    figures = [
        (missed >= _MISSED, f"misses {missed:.0%} of the questions", "10% would be worth it"),
        (
            shared >= _SHARED,
            f"of wrong traces the leading wrong answer has {shared:.0%}",
            "half would be agreement",
        ),
        (
            told >= _TOLD,
            f"the best score has an AUROC of {told:.2f} within questions",
            f"{_TOLD} would tell right from wrong",
        ),
    ]
    against = [f"{figure} ({wanted})" for holds, figure, wanted in figures if not holds]
    if not against:
        first, *others, last = (figure for _, figure, _ in figures)
        listed = f"{', '.join([first, *others])}, and {last}"
        return f"Rule of thumb: confidence may gain answers. The majority {listed}."
    if against[0].startswith("misses"):
        against[0] = f"It {against[0]}"
    else:
        against[0] = against[0][0].upper() + against[0][1:]
    return f"Rule of thumb: majority is enough. {', and '.join(against)}."
