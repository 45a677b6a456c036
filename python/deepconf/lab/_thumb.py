"""The rule of thumb: is majority enough, or may confidence gain answers? Three figures decide.

A filter can only gain where the majority misses questions. It misses them where wrong traces agree;
where they scatter, more traces are enough. And then confidence must tell right from wrong.

>>> print(rule_of_thumb(0.02, 0.17, 0.69))
Rule of thumb: majority is enough. It misses 2% of the questions (10% would be worth it), and two \
wrong traces of a question agree in 17% of cases (20% would be a shared trap).
>>> print(rule_of_thumb(0.15, 0.39, 0.83))
Rule of thumb: confidence may gain answers, or save tokens. The majority misses 15% of the \
questions, two wrong traces of a question agree in 39% of cases, and the best score has an AUROC \
of 0.83 within questions.
"""

from __future__ import annotations

__all__ = ["rule_of_thumb"]

_MISSED, _SHARED, _TOLD = 0.10, 0.20, 0.65


def rule_of_thumb(missed: float, shared: float | None, told: float | None) -> str:
    """Which of the two cases this is, and by which figures.

    Args:
        missed: the share of questions in which the majority of all traces is wrong.
        shared: how often two wrong traces of a question agree, over all such pairs; None where
            there is no pair.
        told: the best score's AUROC within questions; None where there is nothing to tell apart.
    """
    if told is None and missed == 1.0:
        return (
            "Rule of thumb: none. Not one trace is right, so look at an answer beside its gold "
            "first: what is taken for either is said where traces are imported."
        )
    if shared is None or told is None:
        return "Rule of thumb: majority is enough. No question has right traces beside wrong ones."
    figures = [
        (
            missed >= _MISSED,
            f"misses {missed:.0%} of the questions",
            f"{_MISSED:.0%} would be worth it",
        ),
        (
            shared >= _SHARED,
            f"two wrong traces of a question agree in {shared:.0%} of cases",
            f"{_SHARED:.0%} would be a shared trap",
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
        return f"Rule of thumb: confidence may gain answers, or save tokens. The majority {listed}."
    if against[0].startswith("misses"):
        against[0] = f"It {against[0]}"
    else:
        against[0] = against[0][0].upper() + against[0][1:]
    return f"Rule of thumb: majority is enough. {', and '.join(against)}."
