"""Choosing a policy on recorded traces, and saying honestly what it is worth."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deepconf import _settings
from deepconf._bars import bars
from deepconf._core import Policy
from deepconf._progress import Stages, Told
from deepconf._statistics import (
    Difference,
    Estimate,
    estimates,
    paired,
    per_question,
)
from deepconf._words import counted, in_lines
from deepconf.errors import InvalidInput
from deepconf.lab._goal import Condition, Metric, parse
from deepconf.lab._summary import Equal, equal_tokens
from deepconf.lab._verdict import VARIANTS, beside, is_blind, ratio, separated
from deepconf.lab.diagnose import Diagnosis, diagnose
from deepconf.lab.played import Replay
from deepconf.lab.replay import MOST_RUNS, Pool, ShortPools, replay

__all__ = ["Choice", "Tuning", "tune"]

Floats = NDArray[np.float64]

GOAL = "accuracy >= majority - 0.005"
"""What a policy must reach, unless something else is asked for."""
FOLDS = 10
"""How often the questions are divided into those to choose on and those to report on."""
DEFAULT = ("low",)
_FEW = 2


@dataclass(frozen=True)
class Choice:
    """What was chosen among some candidates, and what that is worth."""

    label: str
    policy: Policy
    """The choice on all questions."""
    accuracy: Estimate
    """Cross-fitted: of what was chosen without the question it is measured on."""
    tokens: Estimate
    """Likewise, tokens a question."""
    steps: Estimate
    """Likewise, the step in which the answer was given."""
    meets_goal: bool
    """Whether these figures do."""
    fitted_accuracy: float
    """Of this policy on the questions it was chosen on, which flatters it."""
    fitted_tokens: float
    candidates: int
    """Among how many it was chosen."""
    close: int
    """How many others the questions do not tell from it: the interval of the paired difference in
    accuracy holds 0."""
    by_fold: dict[str, int]
    """What the folds chose, and how many of them."""


@dataclass(frozen=True, repr=False)
class Tuning:
    """The policy that was chosen, with what it was compared with."""

    policy: Policy
    """The recommended one."""
    label: str
    majority_is_better: bool
    """Whether that is a majority, because confidence adds nothing here."""
    confidence: Choice
    """The choice among the policies asked for."""
    majority: Choice
    """The choice among majorities of every budget, with and without early consensus."""
    against_majority: Difference
    """Cross-fitted accuracy of the one minus that of the other."""
    same_tokens: dict[str, Equal]
    """By variant, majority at the tokens of the chosen policy."""
    full: dict[str, float]
    """Accuracy and tokens of the plain majority at the full budget."""
    separation: Estimate | None
    """AUROC of the lowest group within questions; None where it was not measured."""
    goal: str
    objective: str
    gold: bool
    """Whether accuracy is against known answers; else it is agreement with all traces' vote."""
    questions: int
    repeats: int
    folds: int
    notes: list[str] = field(default_factory=list)
    """What its reader must know."""
    closing: str = ""
    """What is recommended, in a sentence."""

    def __repr__(self) -> str:
        """What is recommended."""
        over = f"{counted(self.questions, 'question')}, {counted(self.repeats, 'draw')} of each"
        return in_lines(f"deepconf.Tuning: {over}", [*self.notes, self.closing])

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    def save(self, path: str | os.PathLike[str], name: str = "tuned") -> None:
        """Writes the policy to a settings file, as one of its `policies`, and chooses it there.

        What else the file holds stays.

        Raises:
            InvalidInput: `name` is that of a preset, or the file that is there is none of settings.
            RunFileError: it cannot be written.
        """
        _settings.store(Path(path), name, self.policy)


def _plain(value: Any) -> Any:
    if isinstance(value, Policy):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value


def tune(
    traces: Any,
    policies: Mapping[str, Policy | str] | Sequence[str] | Policy | str | None = None,
    *,
    goal: str = GOAL,
    minimise: Literal["tokens", "steps"] | None = None,
    maximise: Literal["accuracy"] | None = None,
    folds: int = FOLDS,
    repeats: int | None = 64,
    seed: int = 0,
    lag: int = 0,
    short_pools: ShortPools = "error",
    out: str | os.PathLike[str] | None = None,
    name: str = "tuned",
    diagnosis: Diagnosis | None = None,
    progress: Stages | bool | None = None,
) -> Tuning:
    """Chooses a policy on recorded traces, and says what it is worth beside plain majority.

    Cross-fitted: the questions are divided into folds; for each, a policy is chosen on the other
    questions and measured on these. So no figure is one of those it was chosen by. The policy that
    is recommended is chosen on all questions.

    Without known answers, accuracy is agreement with the vote of all of a question's traces.

    Args:
        traces: what `deepconf.read_traces` takes, a `Pool`, or a `Replay` that is there already.
        policies: the candidates, as `deepconf.grid` makes them; None for those of the `Pool` or
            `Replay`, else `low`.
        goal: what must be reached: `METRIC >= BOUND` or `METRIC <= BOUND`, several joined by `and`.
            Metrics are accuracy, tokens and steps, means over questions; a bound is a number or
            `majority`, the same metric of the plain majority at the full budget, with a factor
            before it or something added.
        minimise: what is to be lowest among those that reach it; `"tokens"` by default.
        maximise: or what is to be highest.
        folds: into how many parts the questions are divided, at least 2; as many as there are
            questions at the most.
        repeats: of the replay.
        seed: of the replay, and of how the questions are divided.
        lag: of the replay.
        short_pools: of the replay.
        out: a settings file to write the policy to, for `think` and `eval`.
        name: what the policy is called there.
        diagnosis: of these traces; by default it is made where they can be read twice.
        progress: called with what is done, how many are, and of how many; True for bars.

    Raises:
        InvalidInput: the goal means nothing, there is no candidate, or fewer than two questions.
    """
    conditions = parse(goal)
    objective = _objective(minimise, maximise)
    if isinstance(folds, bool) or not isinstance(folds, int) or folds < _FEW:
        raise InvalidInput(f"folds={folds!r}: must be a whole number of at least {_FEW}")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InvalidInput(f"seed={seed!r}: must be a whole number of at least 0")
    if out is not None:
        _settings.check_target(Path(out), name)

    from deepconf.traces import read_traces

    with bars(progress) as tell:

        def watch(what: str) -> Told | None:
            return None if tell is None else functools.partial(tell, what)

        if isinstance(traces, Replay):
            played = traces
        else:
            pool = traces
            if not isinstance(traces, Pool):
                if isinstance(policies, Mapping):
                    _check_size(len(policies), repeats)
                pool = Pool.read(
                    traces,
                    DEFAULT if policies is None else policies,
                    progress=watch("reading traces"),
                )
            played = replay(
                pool,
                pool.policies if policies is None else policies,
                repeats=repeats,
                seed=seed,
                lag=lag,
                short_pools=short_pools,
                progress=watch("replaying questions"),
            )

        def separation(policy: Policy) -> Estimate | None:
            found = diagnosis
            pooled = isinstance(traces, Pool | Replay)
            if found is None and played.gold and not pooled and not read_traces(traces).once:
                found = diagnose(
                    traces,
                    window=policy.window,
                    tail=policy.tail,
                    bottom=policy.bottom,
                    progress=watch("scoring traces"),
                )
            lowest = None if found is None else found.separation.get("lowest_group")
            return None if lowest is None else lowest.within

        task = _Task(goal.strip(), conditions, objective, folds, seed)
        found = _tuned(played, task, separation)
    if out is not None:
        found.save(out, name)
    return found


def _objective(minimise: str | None, maximise: str | None) -> Metric:
    if minimise is not None and maximise is not None:
        raise InvalidInput(f"minimise={minimise!r} and maximise={maximise!r}: one of them only")
    if maximise is not None and maximise != "accuracy":
        raise InvalidInput(f"maximise={maximise!r}: must be 'accuracy'")
    if minimise is not None and minimise not in ("tokens", "steps"):
        raise InvalidInput(f"minimise={minimise!r}: must be 'tokens' or 'steps'")
    return "accuracy" if maximise else "steps" if minimise == "steps" else "tokens"


def _check_size(policies: int, repeats: int | None) -> None:
    """Before hours of reading: whether that many could be replayed on a single question."""
    if isinstance(repeats, int) and (count := policies * repeats) > MOST_RUNS:
        raise InvalidInput(
            f"{policies:,} policies and {repeats:,} repeats are {count:,} runs of each question: "
            f"narrow the grid (at the most {MOST_RUNS:,} in all)"
        )


@dataclass(frozen=True)
class _Task:
    """What is asked for."""

    goal: str
    conditions: Sequence[Condition]
    objective: Metric
    folds: int
    seed: int

    def missed(self, values: Mapping[Metric, Any], full: Mapping[Metric, float]) -> Any:
        """How far these are beyond the conditions, in shares of their bounds, added up."""
        total = 0.0
        for condition in self.conditions:
            majority = full.get(condition.metric, 0.0)
            scale = max(abs(condition.bound(majority)), 1e-9)
            total = total + condition.missed_by(values[condition.metric], majority) / scale
        return total


@dataclass(frozen=True)
class _Candidates:
    """Some ways to answer: their labels, and `[candidates, questions]` of each metric."""

    labels: list[str]
    policies: Callable[[int], Policy]
    metrics: dict[Metric, Floats]

    def choose(self, some: NDArray[np.bool_], full: Mapping[Metric, Floats], task: _Task) -> int:
        """The best on these questions: least beyond the goal, then by the objective."""
        means = {name: values[:, some].mean(axis=1) for name, values in self.metrics.items()}
        bounds = {name: float(values[some].mean()) for name, values in full.items()}
        order: list[Metric] = [task.objective, "tokens", "accuracy"]
        keys = [-means[name] if name == "accuracy" else means[name] for name in order]
        return int(np.lexsort((*reversed(keys), task.missed(means, bounds)))[0])


def _tuned(
    played: Replay, task: _Task, separation_of: Callable[[Policy], Estimate | None]
) -> Tuning:
    questions = len(played.questions)
    if questions < _FEW:
        raise InvalidInput(
            f"traces: {counted(questions, 'question')}: tuning chooses on some questions and "
            "reports on "
            f"others, so there must be {_FEW} at least"
        )
    folds = min(task.folds, questions)
    fold = np.random.default_rng(task.seed).permutation(np.arange(questions) % folds)
    frontier = played.frontier
    full: dict[Metric, Floats] = {
        "accuracy": frontier.correct["majority"][-1],
        "tokens": frontier.tokens["majority"][-1],
        "steps": frontier.steps["majority"][-1],
    }
    asked = _Candidates(
        list(played.policies),
        list(played.policies.values()).__getitem__,
        {
            "accuracy": per_question(played.correct),
            "tokens": per_question(played.tokens),
            "steps": per_question(played.steps),
        },
    )
    confidence, figures = _choice(asked, fold, full, task)
    equal = equal_tokens(frontier, figures["accuracy"][None], figures["tokens"][None])[0]
    majority, others = _choice(_majorities(played), fold, full, task)
    against = paired(figures["accuracy"][None], others["accuracy"][None])[0]
    separation = separation_of(confidence.policy)
    why = _why_majority(confidence, majority, equal, separation, task)
    chosen = majority if why else confidence
    found = Tuning(
        policy=chosen.policy,
        label=chosen.label,
        majority_is_better=bool(why),
        confidence=confidence,
        majority=majority,
        against_majority=against,
        same_tokens=equal,
        full={name: float(values.mean()) for name, values in full.items()},
        separation=separation,
        goal=task.goal,
        objective=("maximise " if task.objective == "accuracy" else "minimise ") + task.objective,
        gold=played.gold,
        questions=questions,
        repeats=played.correct.shape[2],
        folds=folds,
    )
    return replace(
        found,
        notes=[*played.unarmed, *played.notes, *_notes(found, chosen)],
        closing=_closing(found, chosen, why),
    )


def _majorities(played: Replay) -> _Candidates:
    """Majority at every budget, with early consensus first: of two that are equal it is chosen."""
    frontier = played.frontier
    kinds = ("consensus", "majority")
    variants = [(kind, budget) for kind in kinds for budget in frontier.budgets.tolist()]
    return _Candidates(
        [f"{VARIANTS[variant]}, budget={budget}" for variant, budget in variants],
        [policy for kind in kinds for policy in frontier.policies[kind]].__getitem__,
        {
            "accuracy": np.concatenate([frontier.correct[kind] for kind in kinds]),
            "tokens": np.concatenate([frontier.tokens[kind] for kind in kinds]),
            "steps": np.concatenate([frontier.steps[kind] for kind in kinds]),
        },
    )


def _choice(
    candidates: _Candidates, fold: NDArray[np.int64], full: Mapping[Metric, Floats], task: _Task
) -> tuple[Choice, dict[Metric, Floats]]:
    """The choice on all questions, with the figures of those on the other folds."""
    chosen = np.empty(len(fold), np.int64)
    by_fold: Counter[str] = Counter()
    for part in range(int(fold.max()) + 1):
        best = candidates.choose(fold != part, full, task)
        chosen[fold == part] = best
        by_fold[candidates.labels[best]] += 1
    figures = {
        name: values[chosen, np.arange(len(fold))] for name, values in candidates.metrics.items()
    }
    means = dict(zip(figures, estimates(np.stack(list(figures.values()))), strict=True))
    best = candidates.choose(np.ones(len(fold), np.bool_), full, task)
    accuracy = candidates.metrics["accuracy"]
    values = {name: mean.value for name, mean in means.items()}
    bounds = {name: float(of.mean()) for name, of in full.items()}
    choice = Choice(
        label=candidates.labels[best],
        policy=candidates.policies(best),
        accuracy=means["accuracy"],
        tokens=means["tokens"],
        steps=means["steps"],
        meets_goal=not task.missed(values, bounds),
        fitted_accuracy=float(accuracy[best].mean()),
        fitted_tokens=float(candidates.metrics["tokens"][best].mean()),
        candidates=len(candidates.labels),
        close=sum(not each.clear for each in paired(accuracy, accuracy[best])) - 1,
        by_fold=dict(by_fold.most_common()),
    )
    return choice, figures


def _why_majority(
    confidence: Choice,
    majority: Choice,
    equal: Mapping[str, Equal],
    separation: Estimate | None,
    task: _Task,
) -> str:
    """Why a majority does what is asked for as well or better; empty where it does not."""
    ahead = all(each.difference.clear and each.difference.value > 0 for each in equal.values())
    if is_blind(separation) and not ahead:  # Whatever it reaches, it reaches by luck.
        return "these questions do not show that confidence tells right traces from wrong ones"
    if majority.meets_goal != confidence.meets_goal:
        return "it alone reaches the goal" if majority.meets_goal else ""
    if task.objective == "accuracy" or not majority.meets_goal:
        worse, why = majority.accuracy.value < confidence.accuracy.value, "it is as accurate"
    elif task.objective == "steps":
        worse, why = majority.steps.value > confidence.steps.value, "it takes no more steps"
    else:
        worse, why = majority.tokens.value > confidence.tokens.value, "it takes no more tokens"
    return "" if worse else why


def _notes(found: Tuning, chosen: Choice) -> list[str]:
    notes = []
    if not found.gold:
        notes.append(
            "no answers are known: accuracy here is agreement with the vote of all traces of a "
            "question, which is right only as often as that vote is, and to which a majority is "
            "nearer than confidence by itself"
        )
    if not chosen.meets_goal:
        notes.append(
            f"on questions it was not chosen on, what is chosen misses the goal ({found.goal})"
        )
    if chosen.close:
        notes.append(
            f"{counted(found.questions, 'question')} are too few to tell {chosen.label} by its "
            "accuracy from "
            f"{chosen.close} of the {chosen.candidates - 1} other candidates"
        )
    if len(chosen.by_fold) > 1:
        notes.append(
            f"the {found.folds} folds chose {len(chosen.by_fold)} different candidates, so the "
            f"choice hangs on few questions"
        )
    if found.separation is not None and is_blind(found.separation):
        notes.append(separated("lowest_group", found.separation))
    return notes


def _closing(found: Tuning, chosen: Choice, why: str) -> str:
    """What is recommended, and how the best policy by confidence compares with majority."""
    full, other = found.full["tokens"], found.confidence
    what = "accuracy" if found.gold else "agreement"
    share = f"{ratio(chosen.tokens.value / full)} of " if full else ""
    since = f", since {why}" if why else ""
    atonce = chosen.policy.concurrency
    if why and atonce is not None:
        since += f"; it runs {counted(atonce, 'trace')} at a time"
    # Where folds chose others, the figures are not those of this one.
    whose = "it has" if set(chosen.by_fold) == {chosen.label} else "what is chosen so has"
    mine = other.label if set(other.by_fold) == {other.label} else "what is chosen by confidence"
    compared = beside(mine, other.accuracy.value, found.same_tokens, found.gold)
    return (
        f"recommended: {chosen.label}{since}; {whose} {ratio(chosen.accuracy.value)} {what} on "
        f"questions it was not chosen on, for {share}the tokens of the full budget, whose majority "
        f"has {ratio(found.full['accuracy'])}. {compared[0].upper()}{compared[1:]}"
    )
