"""What the workers found of a trace, on its way to a run: no worker, and no engine core."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", exc_type=ModuleNotFoundError)

from deepconf import DeepThink, Policy
from deepconf._run import Run
from deepconf.engines import Ending, Signal, Step
from deepconf.engines.vllm.inside import _reports
from deepconf.errors import EngineDied, InvalidInput, RunWarning
from pretended_core import PretendedLLM, output, pretended, settle

SIGNAL = Signal(2, window=2, threshold=1.0, online=True)


def ended(
    text: str,
    confidence: Sequence[float],
    stop: int | None = None,
    *,
    reason: str = "STOP",
    **sampling: Any,
) -> tuple[Ending, list[Step]]:
    """How a request ends of which the workers found this, and what its run was told."""
    llm = PretendedLLM()
    engine = pretended(llm, inside=True, **sampling)
    values = np.array(confidence, np.float32).tobytes()
    llm.workers["deepconf_fetch"] = lambda names: [(name, values, stop, None) for name in names]
    steps: list[Step] = []

    def take(step: Step) -> list[int]:
        steps.append(step)
        return []

    async def work() -> Ending:
        generate = engine.generate_into(take, [1], trace=3, request_id="r", seed=0, signal=SIGNAL)
        task = asyncio.ensure_future(generate)
        await settle(lambda: "r" in llm.names)
        llm.outputs([output("r", text[:1])])
        llm.outputs([output("r", text[1:], end=reason)])
        return await task

    return asyncio.run(work()), steps


@pytest.mark.parametrize("include", [False, True])
def test_a_token_that_was_forced_is_counted_and_no_part_of_the_text(include: bool) -> None:
    sampling = {"include_stop_str_in_output": include}
    ending, (step,) = ended("abcd\0", [9.0, 9.0, 0.0, 0.0], 3, **sampling)
    assert (ending.finish_reason, ending.text) == ("aborted", "abcd")
    assert (step.traces, step.unscored) == ([3] * 4, {3: 1})


def test_a_trace_that_ends_by_itself_keeps_its_text() -> None:
    ending, (step,) = ended("abcd\0", [9.0] * 5)
    assert (ending.finish_reason, ending.text) == ("finished", "abcd")
    assert (step.traces, step.unscored) == ([3] * 5, {})
    # It was decided too late: nothing was forced.
    ending, _ = ended("abcd\0", [9.0, 9.0, 9.0, 0.0, 0.0], 4)
    assert (ending.finish_reason, ending.text) == ("aborted", "abcd")
    ending, _ = ended("abcde", [9.0, 9.0, 9.0, 0.0, 0.0], 4, reason="LENGTH")
    assert (ending.finish_reason, ending.text) == ("aborted", "abcde")


@pytest.mark.parametrize("budget", [1, 3])
def test_an_engine_that_dies_while_it_is_asked_is_noticed(
    budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_reports, "_PULSE", 0.01)
    llm = PretendedLLM()
    engine = pretended(llm, inside=True)
    asked: list[str] = []

    async def never(names: list[str]) -> None:
        asked.extend(names)
        await asyncio.Event().wait()

    llm.workers["deepconf_fetch"] = never

    async def work() -> None:
        settings = Policy.offline(budget=budget, top_logprobs=2)
        run = Run(DeepThink(engine, settings, answer=lambda _: "7")._task, "?")
        task = asyncio.ensure_future(run.think())
        await settle(lambda: len(llm.names) == budget)
        llm.outputs([output(name, "ab", end="STOP") for name in llm.names])
        await settle(lambda: len(asked) > 0)
        llm.errored = True
        await task

    began = time.monotonic()
    with pytest.raises(EngineDied, match=f"when 0 of {budget} traces had ended"):
        asyncio.run(work())
    assert time.monotonic() - began < 5


def test_an_engine_core_that_has_just_answered_may_fall_asleep_before_it_is_ended() -> None:
    llm = PretendedLLM()
    engine = pretended(llm, inside=True)
    llm.workers["deepconf_count"] = lambda: 0
    paused: list[float] = []

    async def work() -> None:
        assert engine._inside is not None
        await engine._inside.count()
        answered = time.monotonic()
        llm.shutdown = lambda timeout: paused.append(  # type: ignore[attr-defined]
            time.monotonic() - answered
        )
        engine._loop, engine._frozen = asyncio.get_running_loop(), False
        await engine._stop()

    asyncio.run(work())
    assert paused[0] > 0.05


def test_a_vllm_that_cannot_be_asked_has_its_traces_scored_here() -> None:
    llm = PretendedLLM()
    engine = pretended(llm)
    engine._wanted = "auto"
    llm.engine_core = SimpleNamespace()
    with pytest.warns(RunWarning, match="scored in this process: the vLLM is new to us"):
        asyncio.run(engine._take_place(None))
    assert engine.scoring == "client"
    engine._wanted = "engine"
    with pytest.raises(InvalidInput, match="not possible here: the vLLM is new to us"):
        asyncio.run(engine._take_place(None))
