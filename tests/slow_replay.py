"""What a policy would have done with recorded traces: token by token, on the live controller.

The schedule is that of DESIGN.md, "Replay". Slow and obvious, to hold what is fast against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from deepconf import Action, Controller, Outcome, Policy
from deepconf.lab._draws import draws
from deepconf.lab.played import Frontier, Replay
from numpy.typing import NDArray


@dataclass(frozen=True)
class Recorded:
    """A trace that ran to its end."""

    confidence: NDArray[np.float32]
    answer: str | None
    status: str = "finished"
    correct: bool = False


@dataclass
class Row:
    """A run: one policy, one question, one draw."""

    answer: str | None
    correct: bool
    tokens: int
    steps: int
    launched: int
    finished: int
    stopped: int
    aborted: int
    threshold: float | None
    fallback: bool
    reason: str
    unarmed: str | None


@dataclass
class _Run:
    """Where a run stands."""

    fed: dict[int, int] = field(default_factory=dict)  # Tokens of each trace that was launched.
    running: list[int] = field(default_factory=list)
    stopped: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    outcome: Outcome | None = None


def slow_replay(
    pool: Sequence[Recorded], policy: Policy, order: Sequence[int] | None = None, lag: int = 0
) -> Row:
    """Plays a policy on a question's traces.

    Args:
        pool: the question's traces.
        policy: what decides.
        order: trace i of the run is `pool[order[i]]`; by default as they are.
        lag: tokens added for each trace that is stopped or aborted.
    """
    traces = [pool[at] for at in (range(len(pool)) if order is None else order)]
    controller = Controller(policy)
    run = _Run()

    def obey(actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Action.Launch(new):
                    for trace in new:
                        controller.launched(trace)
                        run.fed[trace] = 0
                        run.running.append(trace)
                case Action.Abort(gone):
                    run.running = [trace for trace in run.running if trace not in gone]
                case Action.Answer(outcome):
                    run.outcome = outcome

    obey(controller.start())
    step = 0
    while run.outcome is None:
        step += 1
        over = []
        for trace in sorted(run.running):
            recorded = traces[trace]
            if len(recorded.confidence):
                token = recorded.confidence[run.fed[trace] : run.fed[trace] + 1]
                run.fed[trace] += 1
                if controller.tokens(trace, token) is not None:
                    run.stopped.add(trace)
            if trace in run.stopped or run.fed[trace] == len(recorded.confidence):
                over.append(trace)
        for trace in over:
            if run.outcome is not None:
                break
            run.running.remove(trace)
            if trace in run.stopped:
                obey(controller.finished(trace, "aborted", None))
            else:
                run.ended.add(trace)
                recorded = traces[trace]
                finish: Any = recorded.status
                obey(controller.finished(trace, finish, recorded.answer))
    outcome = run.outcome
    aborted = set(run.fed) - run.ended - run.stopped
    tokens = sum(run.fed.values()) + lag * (len(run.stopped) + len(aborted))
    return Row(
        answer=outcome.answer,
        correct=_right(traces, outcome.answer),
        tokens=tokens,
        steps=step,
        launched=len(run.fed),
        finished=len(run.ended),
        stopped=len(run.stopped),
        aborted=len(aborted),
        threshold=outcome.threshold,
        fallback=outcome.vote.fallback,
        reason=outcome.reason,
        unarmed=outcome.unarmed,
    )


def _right(traces: Sequence[Recorded], answer: str | None) -> bool:
    return answer is not None and any(t.correct for t in traces if t.answer == answer)


def slow_replays(
    pools: Mapping[str, Sequence[Recorded]],
    policies: Mapping[str, Policy],
    *,
    repeats: int = 4,
    seed: int = 0,
    lag: int = 0,
    budgets: Sequence[int] = (1, 2, 4, 8, 16),
) -> Replay:
    """Plays every policy, and majority at every budget, on the same draws."""
    most = max([*budgets, *(policy.budget for policy in policies.values())])
    orders = {
        (name, repeat): order
        for name, pool in pools.items()
        for repeat, order in enumerate(draws(len(pool), most, repeats, seed, name))
    }

    def play(some: Mapping[Any, Policy]) -> list[list[list[Row]]]:
        return [
            [
                [slow_replay(pool, p, orders[name, r].tolist(), lag) for r in range(repeats)]
                for name, pool in pools.items()
            ]
            for p in some.values()
        ]

    def figures(rows: list[list[list[Row]]], name: str, dtype: Any) -> NDArray[Any]:
        return np.array([[[getattr(r, name) for r in q] for q in p] for p in rows], dtype)

    stops: dict[str, Any] = {"majority": "budget", "consensus": "consensus"}
    plain = {
        kind: [
            Policy.offline(keep=1.0, weight="majority", stop=stop, budget=budget)
            for budget in budgets
        ]
        for kind, stop in stops.items()
    }
    played = {kind: play(dict(enumerate(some))) for kind, some in plain.items()}

    def means(name: str, dtype: Any) -> dict[str, NDArray[np.float64]]:
        return {kind: figures(rows, name, dtype).mean(axis=2) for kind, rows in played.items()}

    rows = play(policies)
    names = ("tokens", "steps", "launched", "finished", "stopped", "aborted", "fallback")
    columns = {name: figures(rows, name, np.int64) for name in names}
    lengths = {name: np.array([len(t.confidence) for t in pool]) for name, pool in pools.items()}
    full = [
        [
            [lengths[name][orders[name, r][: policy.budget]].sum() for r in range(repeats)]
            for name in pools
        ]
        for policy in policies.values()
    ]
    return Replay(
        policies=dict(policies),
        questions=list(pools),
        gold=True,
        correct=figures(rows, "correct", np.int8),
        tokens=columns["tokens"],
        full=np.array(full),
        steps=columns["steps"],
        columns=columns,
        answers=[],
        reasons=(),
        frontier=Frontier(
            budgets=np.array(budgets),
            correct=means("correct", np.int8),
            tokens=means("tokens", np.int64),
            policies=plain,
            steps=means("steps", np.int64),
        ),
        draws={},
    )


def synthetic(
    questions: int = 20, traces: int = 16, *, informative: float = 2.0, seed: int = 0
) -> dict[str, list[Recorded]]:
    """Pools of traces of 8 to 40 tokens; right ones are surer by `informative` nats."""
    random = np.random.default_rng(seed)
    pools = {}
    for at in range(questions):
        skill = random.uniform(0.15, 0.95)
        pool = []
        for _ in range(traces):
            right = bool(random.random() < skill)
            size = int(random.integers(8, 41))
            level = 8.0 + (informative if right else 0.0) + random.normal()
            values = np.clip(level + random.normal(size=size), 0.1, None).astype(np.float32)
            answer = "right" if right else f"wrong {random.integers(3)}"
            silent = random.random() < 0.05
            status = "length" if random.random() < 0.05 else "finished"
            pool.append(Recorded(values, None if silent else answer, status, right and not silent))
        pools[f"q{at}"] = pool
    return pools
