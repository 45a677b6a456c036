"""What policies would have done with recorded traces: the controller's own decisions, in seconds.

>>> import deepconf
>>> list(deepconf.grid({"low": deepconf.Policy.low(warmup=8)}, keep=[0.1, 0.5], budget=[16]))
['low keep=0.1 budget=16', 'low keep=0.5 budget=16']

How time, tokens and draws are counted: DESIGN.md, "Replay".
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deepconf import _layers
from deepconf._bars import bar
from deepconf._core import Policy, ReplayPool
from deepconf._progress import Told
from deepconf._words import counted
from deepconf.errors import InvalidInput, InvalidType, SignalNeverArmed
from deepconf.lab import _fit
from deepconf.lab._draws import draws as _draws
from deepconf.lab._reading import Recorded, read, sized
from deepconf.lab.played import RUN_COLUMNS, Frontier, Replay

__all__ = ["Pool", "grid", "laid", "plain", "replay"]

ShortPools = Literal["error", "resample", "skip"]

MOST_POLICIES = 100_000
"""No grid has more."""
MOST_RUNS = 20_000_000
"""More runs than this are asked for by mistake, or with `most_runs`."""
# Beyond these something else was meant: tokens of a delay, and traces drawn for a question.
_MOST_LAG = 1_000_000
_MOST_DRAWN = 1 << 27
# The vote that is beside every policy: at these budgets and those of the policies.
_BUDGETS = sorted({round(2 ** (i / 2)) for i in range(64)})


def grid(base: Policy | Mapping[str, Policy] | str, **axes: Sequence[Any]) -> dict[str, Policy]:
    """Every combination of some settings, over each of some policies.

    Offline, where nothing is stopped, `warmup` stays 0 and what only it would tell apart is one
    policy. Online, one that was given nowhere is a quarter of a smaller budget, as in `Policy`.

    Args:
        base: policies by label; one alone is called "policy". Or the name of a preset.
        axes: for each setting the values to try.

    Returns:
        policies by label, as "low keep=0.1 warmup=8"; combinations that cannot be, such as a warmup
        above the budget, are left out, and those that are the same as one before.

    Raises:
        InvalidInput: a value that none of the policies can have, nothing is left, or there are too
            many.
        InvalidType: `base` holds no policies, or a setting has one value and no sequence of them.
    """
    if isinstance(base, Policy):
        base = {"policy": base}
    elif isinstance(base, str):
        base = {base: Policy.preset(base)}
    if not isinstance(base, Mapping) or not all(isinstance(p, Policy) for p in base.values()):
        raise InvalidType(f"base is {base!r:.100}: must be a Policy, or policies by label")
    for setting, some in axes.items():
        if isinstance(some, str) or not isinstance(some, Iterable):
            raise InvalidType(f"{setting}={some!r:.100}: must be a sequence of values to try")
    policies = dict(base)
    axes = {name: list(values) for name, values in axes.items()}
    return laid(policies, axes, lambda label, settings: policies[label].replace(**settings))


def laid(
    base: Mapping[str, Policy],
    axes: Mapping[str, Sequence[Any]],
    changed: Callable[[str, dict[str, Any]], Policy],
) -> dict[str, Policy]:
    """A `grid`, of policies that are changed by a function.

    Args:
        base: policies by label.
        axes: for each setting the values to try.
        changed: the policy of a label with these settings.

    Raises:
        InvalidInput, InvalidType: as `grid`.
    """
    count = len(base) * math.prod(map(len, axes.values()))
    if count > MOST_POLICIES:
        raise InvalidInput(f"grid: has {count:,} policies: must have {MOST_POLICIES:,} at the most")
    found: dict[str, Policy] = {}
    seen: set[tuple[Any, ...]] = set()
    useful: set[tuple[str, int]] = set()
    refused: dict[tuple[str, int], str] = {}
    for label, policy in base.items():
        # Offline nothing is stopped, and there is no warmup.
        mine = [name for name in axes if policy.mode == "online" or name != "warmup"]
        for places in itertools.product(*(range(len(axes[name])) for name in mine)):
            values = list(zip(mine, places, strict=True))
            settings = {name: axes[name][place] for name, place in values}
            name = " ".join([label, *(f"{key}={value}" for key, value in settings.items())])
            try:
                made = changed(label, settings)
            except InvalidType:
                raise
            except InvalidInput as error:
                for value in values:
                    refused.setdefault(value, f"{name}: {error}")
                continue
            useful.update(values)
            key = tuple(made.as_dict().items())
            if key not in seen:
                seen.add(key)
                found[name] = made
    if not found:
        reason = next(iter(refused.values()), None)
        raise InvalidInput(f"grid: none of its policies can be{f' ({reason})' if reason else ''}")
    for (name, place), why in refused.items():
        if (name, place) not in useful:
            raise InvalidInput(f"grid: no policy can have {name}={axes[name][place]!r} ({why})")
    return found


class Pool:
    """Recorded traces, read once: then policies can be replayed on them as often as one likes.

    Kept of a trace are its scores for each different `window`, `tail`, `bottom` and `decimals`,
    and the record lows of its groups, 12 bytes each: kilobytes for long traces, tens of them where
    confidence falls all along, and no confidences.

    Use `Pool.read`.
    """

    def __init__(self, policies: dict[str, Policy], recorded: Recorded) -> None:
        self.policies = policies
        """Those that it was read for, by label."""
        self._recorded = recorded

    @classmethod
    def read(
        cls,
        traces: Any,
        policies: Mapping[str, Policy | str] | Sequence[str] | Policy | str,
        *,
        progress: Told | bool | None = None,
    ) -> Pool:
        """Reads traces for policies: one pass over the tokens, streaming, on all cores.

        Args:
            traces: what `deepconf.read_traces` takes, or its reader.
            policies: policies by label, or names of presets. A preset takes from the file how it
                was measured (k, entries, window, tail, bottom) and its budget. Where it says no
                budget, that is the fewest traces of a question; where no window, an eighth of the
                median length, rounded to a power of two.
            progress: called with traces read and, where known, in all (else 0); True for a bar.

        Raises:
            InvalidInput: the traces are not complete, have other k or entries than a policy, or
                have the same number twice in a question; a confidence is not finite; an answer is
                marked right and wrong.
            TraceFileError: a file cannot be read as traces.
        """
        from deepconf.traces import TraceReader, read_traces

        reader = traces if isinstance(traces, TraceReader) else read_traces(traces)
        settings = sized(reader)
        chosen = _chosen(policies, settings)
        pool = ReplayPool(list(chosen.values()))
        with bar(progress, "reading traces") as tell:
            return cls(chosen, read(reader, pool, settings, tell))

    @property
    def questions(self) -> list[str]:
        """The names of the questions."""
        return self._recorded.questions

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Traces of each question, `[questions]`."""
        return np.array([len(lengths) for lengths in self._recorded.lengths], np.int64)

    @property
    def gold(self) -> bool:
        """Whether the right answers are known."""
        return self._recorded.gold

    @property
    def left_out(self) -> int:
        """Traces that failed when they were recorded, and are not in the pool."""
        return self._recorded.failed

    def __repr__(self) -> str:
        """One line."""
        sizes = self.sizes
        return (
            f"<deepconf.Pool: {counted(sizes.sum(), 'trace')} of {counted(len(sizes), 'question')}>"
        )

    def replay(
        self,
        policies: Mapping[str, Policy | str] | Sequence[str] | Policy | str | None = None,
        *,
        repeats: int | None = 64,
        seed: int = 0,
        lag: int = 0,
        short_pools: ShortPools = "error",
        most_runs: int = MOST_RUNS,
        progress: Told | bool | None = None,
    ) -> Replay:
        """Replays policies; as `deepconf.replay`, without reading anything.

        Args:
            policies: by label, scoring as those the pool was read for do; None for those.
            repeats: as all that follows: see `replay`.
            seed: likewise.
            lag: likewise.
            short_pools: likewise.
            most_runs: likewise.
            progress: likewise.
        """
        policies = _chosen(self.policies if policies is None else policies, self._recorded.settings)
        _check(repeats, seed, lag, short_pools, most_runs)
        most = max(policy.budget for policy in policies.values())
        questions, short = self._long_enough(policies, short_pools)
        if most * (repeats or 1) > _MOST_DRAWN:
            raise InvalidInput(
                f"a budget of {most:,} and {repeats or 1:,} repeats are {most * (repeats or 1):,} "
                f"traces drawn for each question: must be at most {_MOST_DRAWN:,}"
            )
        frontier = _frontier_policies(policies, most)
        check_runs(policies, len(questions), repeats, most_runs)
        runs = _Runs(self._recorded, policies, frontier, most, repeats, seed, lag)
        with bar(progress, "replaying questions") as tell:
            for done, question in enumerate(questions, 1):
                runs.add(question)
                if tell is not None:
                    tell(done, len(questions))
        played = runs.replay(
            questions,
            {
                "repeats": repeats,
                "seed": seed,
                "lag": lag,
                "short_pools": short_pools,
                "resampled": short if short_pools == "resample" else [],
                "skipped": short if short_pools == "skip" else [],
            },
        )
        for note in played.unarmed:
            warnings.warn(note, SignalNeverArmed, stacklevel=2)
        return played

    def _long_enough(
        self, policies: Mapping[str, Policy], short_pools: ShortPools
    ) -> tuple[list[int], list[str]]:
        """The questions to replay, and the names of those with too few traces."""
        label, policy = max(policies.items(), key=lambda item: item[1].budget)
        sizes = self.sizes
        if not sizes.sum():
            raise InvalidInput(
                f"traces: there is none to replay: all {self.left_out} failed when they were "
                "recorded"
            )
        short = np.flatnonzero(sizes < policy.budget)
        names = [self.questions[at] for at in short]
        if len(short) and short_pools == "error":
            others = f" ({len(short) - 1} more have too few)" if len(short) > 1 else ""
            raise InvalidInput(
                f"budget={policy.budget} of policy {label!r}: question {names[0]!r} has only "
                f"{counted(sizes[short[0]], 'trace')}{others}: take a smaller budget, or "
                "short_pools, on the command line --short-pools: 'resample' draws those beyond "
                "again, 'skip' leaves such questions out"
            )
        if short_pools == "skip":
            if len(short) == len(sizes):
                raise InvalidInput(
                    f"budget={policy.budget} of policy {label!r}: no question has so many traces "
                    f"(the most are {sizes.max(initial=0)}), and all would be skipped"
                )
            return [at for at in range(len(sizes)) if sizes[at] >= policy.budget], names
        if len(sizes) and not sizes.min():
            empty = self.questions[int(sizes.argmin())]
            raise InvalidInput(f"question {empty!r} has no trace that could be replayed")
        return list(range(len(sizes))), names


def replay(
    traces: Any,
    policies: Mapping[str, Policy | str] | Sequence[str] | Policy | str | None = None,
    *,
    repeats: int | None = 64,
    seed: int = 0,
    lag: int = 0,
    short_pools: ShortPools = "error",
    most_runs: int = MOST_RUNS,
    progress: Told | bool | None = None,
) -> Replay:
    """What policies would have done with recorded traces, and plain voting beside them.

    Decisions are the `Controller`'s own: the same traces fed to it token by token, by the schedule
    of DESIGN.md, give the same answers, tokens, stops and reasons to the bit.

    Args:
        traces: what `deepconf.read_traces` takes, its reader, or a `Pool`. Only complete traces can
            be replayed: record an offline policy.
        policies: policies by label (`grid` makes many), or names of presets; see `Pool.read`.
            None for those of the `Pool`, else `low` and `high`.
        repeats: how many runs each policy has on each question, on traces drawn without
            replacement, the same for every policy; None for one run in launch order.
        seed: of the draws.
        lag: tokens more for each trace stopped or aborted, for an engine's delay.
        short_pools: where a question has fewer traces than a budget: "error"; "resample" to draw
            those beyond with replacement; "skip" to leave the question out for all policies.
        most_runs: more runs are refused before anything begins.
        progress: called with questions replayed and in all; True for a bar.

    Raises:
        InvalidInput: as `Pool.read`; too many runs, or a budget above the traces of a question.
        InvalidType: `policies` is none of these.
        TraceFileError: a file cannot be read as traces.
    """
    if policies is None and not isinstance(traces, Pool):
        policies = ("low", "high")
    if isinstance(policies, Mapping):  # Before hours are spent on reading.
        _check(repeats, seed, lag, short_pools, most_runs)
        check_runs(policies, 1, repeats, most_runs)
    pool = (
        traces
        if isinstance(traces, Pool)
        else Pool.read(traces, policies or (), progress=progress is True)
    )
    return pool.replay(
        policies,
        repeats=repeats,
        seed=seed,
        lag=lag,
        short_pools=short_pools,
        most_runs=most_runs,
        progress=progress,
    )


# ---- policies -----------------------------------------------------------------------------------


def _chosen(
    policies: Mapping[str, Policy | str] | Sequence[str] | Policy | str, settings: Mapping[str, Any]
) -> dict[str, Policy]:
    if isinstance(policies, str):
        policies = {policies: policies}
    elif isinstance(policies, Policy):
        policies = {"policy": policies}
    elif not isinstance(policies, Mapping):
        if not isinstance(policies, Iterable) or not all(isinstance(p, str) for p in policies):
            raise InvalidType(
                f"policies is {policies!r:.100}: must be policies by label, as "
                '{"mine": policy}, or names of presets'
            )
        policies = {name: name for name in policies}
    if not policies:
        raise InvalidInput("policies: there is none")
    return {label: _policy(label, policy, settings) for label, policy in policies.items()}


def _policy(label: str, policy: Policy | str, settings: Mapping[str, Any]) -> Policy:
    if isinstance(policy, str):
        Policy.preset(policy)  # Says which there are.
        return _layers.build([policy], {}, {}, {}, below=_layers.of_traces(settings))[policy]
    if not isinstance(policy, Policy):
        raise InvalidType(f"policies[{label!r}] is a {type(policy).__name__}: must be a Policy")
    for name, of_policy in (("k", policy.top_logprobs), ("entries", policy.entries)):
        if settings.get(name) not in (None, of_policy):
            raise InvalidInput(
                f"policies[{label!r}] wants {name}={of_policy!r} and the traces were recorded with "
                f"{name}={settings[name]!r}: their confidences are others"
            )
    return policy


def _check(
    repeats: int | None,
    seed: int,
    lag: int,
    short_pools: str,
    most_runs: int,
) -> None:
    for name, value, least in (("repeats", repeats, 1), ("seed", seed, 0), ("lag", lag, 0)):
        if value is None and name == "repeats":
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InvalidInput(f"{name}={value!r}: must be a whole number of at least {least}")
    if lag > _MOST_LAG:
        raise InvalidInput(f"lag={lag}: must be at most {_MOST_LAG:,} tokens")
    if isinstance(most_runs, bool) or not isinstance(most_runs, int | np.integer):
        raise InvalidInput(f"most_runs={most_runs!r}: must be a whole number")
    if short_pools not in ("error", "resample", "skip"):
        raise InvalidInput(f"short_pools={short_pools!r}: must be 'error', 'resample' or 'skip'")


def check_runs(
    policies: Mapping[str, Any], questions: int, repeats: int | None, most_runs: int
) -> None:
    """An error where so many runs are surely a mistake; majority's are not counted."""
    count = len(policies) * questions * (repeats or 1)
    if count > most_runs:
        of = f"{questions:,} questions" if questions != 1 else "each question"
        raise InvalidInput(
            f"{len(policies):,} policies, {of} and {repeats or 1:,} repeats are {count:,} runs: "
            f"narrow the grid, or allow more than most_runs={most_runs:,}"
        )


def _frontier_policies(policies: Mapping[str, Policy], most: int) -> dict[str, list[Policy]]:
    """Plain voting at every budget up to the largest: of all traces, and until they agree."""
    budgets = {budget for budget in _BUDGETS if budget < most}
    budgets |= {policy.budget for policy in policies.values()}
    # Whichever it is, in whatever order they were given: only what a majority ignores differs.
    return plain(min(policies.values(), key=lambda policy: str(policy.as_dict())), sorted(budgets))


def plain(policy: Policy, budgets: Iterable[int]) -> dict[str, list[Policy]]:
    """Plain voting at each of some budgets, by the names that a frontier has for it.

    With early consensus as many traces are in flight, and vote at least, as the paper's online
    policy has for a warmup at that budget: 16, or a quarter of it, and at least three votes. So it
    depends on the budget alone.

    Args:
        policy: what confidences are made of, as it has them.
        budgets: at least one.
    """
    budgets, paper = list(budgets), Policy.low()
    voting = policy.replace(
        mode="offline", warmup=0, budget=max(budgets), keep=1.0, weight="majority",
        max_weight=None, measure="mean", stop="budget", min_ballots=paper.min_ballots,
        stopped_vote=False, consensus=paper.consensus, concurrency=None,
    )  # fmt: skip

    def agreeing(budget: int) -> Policy:
        first_ones = Policy.low(budget=budget).warmup
        return voting.replace(
            budget=budget,
            stop="consensus",
            concurrency=first_ones,
            min_ballots=min(budget, max(paper.min_ballots, first_ones)),
        )

    return {
        "majority": [voting.replace(budget=budget) for budget in budgets],
        "consensus": list(map(agreeing, budgets)),
    }


# ---- runs ---------------------------------------------------------------------------------------


class _Runs:
    """Runs, question after question."""

    def __init__(
        self,
        recorded: Recorded,
        policies: dict[str, Policy],
        frontier: dict[str, list[Policy]],
        most: int,
        repeats: int | None,
        seed: int,
        lag: int,
    ) -> None:
        self._recorded, self._policies, self._frontier = recorded, policies, frontier
        self._most, self._repeats, self._seed, self._lag = most, repeats, seed, lag
        plain = [policy for kind in frontier.values() for policy in kind]
        self._all = [*policies.values(), *plain]
        self._budgets = np.array([policy.budget for policy in policies.values()])
        self._columns: dict[str, list[NDArray[Any]]] = {name: [] for name in RUN_COLUMNS}
        self._correct: list[NDArray[np.int8]] = []
        self._full: list[NDArray[np.int64]] = []
        self._plain: list[NDArray[np.float64]] = []

    def add(self, question: int) -> None:
        """Replays all policies on one question."""
        recorded = self._recorded
        lengths = recorded.lengths[question]
        drawn = _draws(
            len(lengths), self._most, self._repeats, self._seed, recorded.questions[question]
        )
        runs = recorded.pool.run(question, self._all, drawn, self._lag)
        shape = (-1, len(drawn))
        marks = np.append(recorded.marks[question], np.int8(0))  # The last is no answer's.
        correct = marks[runs["answer"]].reshape(shape)
        count = len(self._policies)
        for name, found in self._columns.items():
            found.append(runs[name].reshape(shape)[:count])
        self._correct.append(correct[:count])
        self._full.append(np.cumsum(lengths[drawn], axis=1)[:, self._budgets - 1].T)
        plain = [correct, *(runs[name].reshape(shape) for name in ("tokens", "steps"))]
        self._plain.append(np.stack([figures[count:].mean(axis=1) for figures in plain]))

    def replay(self, questions: list[int], how: Mapping[str, Any]) -> Replay:
        """All of them."""
        columns = {name: np.stack(found, axis=1) for name, found in self._columns.items()}
        recorded, kinds = self._recorded, list(self._frontier)
        # [correct, tokens or steps; kind; budget; question]
        plain = np.stack(self._plain, axis=2).reshape(3, len(kinds), -1, len(questions))
        correct, tokens, steps = (dict(zip(kinds, each, strict=True)) for each in plain)
        budgets = [policy.budget for policy in self._frontier[kinds[0]]]
        lengths = [recorded.lengths[at] for at in questions]
        shares = columns["unarmed"].mean(axis=(1, 2))
        return Replay(
            policies=self._policies,
            questions=[recorded.questions[at] for at in questions],
            gold=recorded.gold,
            correct=np.stack(self._correct, axis=1),
            tokens=columns["tokens"],
            full=np.stack(self._full, axis=1),
            steps=columns["steps"],
            columns=columns,
            answers=[recorded.answers[at] for at in questions],
            reasons=tuple(ReplayPool.REASONS),
            frontier=Frontier(np.array(budgets), self._frontier, correct, tokens, steps),
            draws=how,
            unarmed=_fit.unarmed(self._policies, shares, np.concatenate(lengths)),
            notes=_fit.alone([len(each) for each in lengths]),
        )
