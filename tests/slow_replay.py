"""What a policy would have done with recorded traces: token by token, on the live controller.

The schedule is that of DESIGN.md, "Replay". Slow and obvious, to hold what is fast against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from deepconf import Action, Controller, Outcome, Policy
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
    # One that fell below the threshold in the last step, too late to be reported, was aborted.
    stopped = {trace for trace in run.stopped if controller.status(trace) == "stopped"}
    aborted = set(run.fed) - run.ended - stopped
    tokens = sum(run.fed.values()) + lag * (len(stopped) + len(aborted))
    return Row(
        answer=outcome.answer,
        correct=_right(traces, outcome.answer),
        tokens=tokens,
        steps=step,
        launched=len(run.fed),
        finished=len(run.ended),
        stopped=len(stopped),
        aborted=len(aborted),
        threshold=outcome.threshold,
        fallback=outcome.vote.fallback,
        reason=outcome.reason,
        unarmed=outcome.unarmed,
    )


def _right(traces: Sequence[Recorded], answer: str | None) -> bool:
    return answer is not None and any(t.correct for t in traces if t.answer == answer)


@dataclass(frozen=True)
class SlowLine:
    correct: NDArray[np.float64]
    tokens: NDArray[np.float64]


@dataclass(frozen=True)
class SlowFrontier:
    budgets: NDArray[np.int64]
    majority: SlowLine
    consensus: SlowLine


@dataclass
class SlowReplay:
    """A replay as the statistics want it, `[policies, questions, repeats]`."""

    policies: dict[str, Policy]
    questions: list[str]
    correct: NDArray[np.int8]
    tokens: NDArray[np.int64]
    steps: NDArray[np.int64]
    launched: NDArray[np.int64]
    stopped: NDArray[np.int64]
    aborted: NDArray[np.int64]
    fallback: NDArray[np.bool_]
    frontier: SlowFrontier
    gold: bool = True


def slow_replays(
    pools: Mapping[str, Sequence[Recorded]],
    policies: Mapping[str, Policy],
    *,
    repeats: int = 4,
    seed: int = 0,
    lag: int = 0,
    budgets: Sequence[int] = (1, 2, 4, 8, 16),
) -> SlowReplay:
    """Plays every policy, and majority at every budget, on the same draws."""
    most = max([*budgets, *(policy.budget for policy in policies.values())])
    orders = {
        (name, repeat): np.random.default_rng([seed, at, repeat]).permutation(len(pool))[:most]
        for at, (name, pool) in enumerate(pools.items())
        for repeat in range(repeats)
    }

    def play(some: Mapping[str, Policy]) -> list[list[list[Row]]]:
        return [
            [
                [slow_replay(pool, p, orders[name, r].tolist(), lag) for r in range(repeats)]
                for name, pool in pools.items()
            ]
            for p in some.values()
        ]

    def figures(rows: list[list[list[Row]]], name: str, dtype: Any) -> NDArray[Any]:
        return np.array([[[getattr(r, name) for r in q] for q in p] for p in rows], dtype)

    def line(stop: Any) -> SlowLine:
        vote = Policy.offline(keep=1.0, weight="majority", stop=stop, top_logprobs=20)
        rows = play({str(b): vote.replace(budget=b) for b in budgets})
        return SlowLine(
            figures(rows, "correct", np.int8).mean(axis=2),
            figures(rows, "tokens", np.int64).mean(axis=2),
        )

    rows = play(policies)
    counts = ("tokens", "steps", "launched", "stopped", "aborted")
    return SlowReplay(
        policies=dict(policies),
        questions=list(pools),
        correct=figures(rows, "correct", np.int8),
        fallback=figures(rows, "fallback", np.bool_),
        frontier=SlowFrontier(np.array(budgets), line("budget"), line("consensus")),
        **{name: figures(rows, name, np.int64) for name in counts},
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
