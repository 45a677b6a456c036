"""Thinking with confidence: runs an engine under a policy.

The `Controller` decides, the engine generates, and a run carries events one way and actions the
other. Everything of a run happens on the engine's event loop, so many runs share one engine without
locks; `start` hands a run over, and `run` and `arun` wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Generator, Mapping
from concurrent import futures
from types import FrameType
from typing import Any, Literal

from deepconf._core import Policy
from deepconf._run import Run, Task
from deepconf.answers import AnswerBook, extractor
from deepconf.engines.base import Engine, Signal, result_of, settings_of
from deepconf.errors import (
    EngineDied,
    EngineError,
    Interrupted,
    InvalidInput,
    InvalidType,
)
from deepconf.provenance import trace_settings
from deepconf.result import Question, Result, Trace

__all__ = ["DeepThink", "Thinking"]

# Seconds in which a run that is given up comes to rest, before whoever gave it up goes on.
_REST = 10.0


class DeepThink:
    r"""Answers questions by parallel thinking with confidence.

    Args:
        engine: what generates, such as `deepconf.engines.VLLM(...)`.
        policy: the settings, such as `Policy.low(budget=64)`.
        answer: how an answer is found in a text: "boxed" for the last `\boxed{...}`; a regular
            expression, compiled or as "regex:...", whose group `answer`, first group or whole match
            is taken where it matches last; or any callable from text to answer or None. Where it
            fails, that trace has no answer.
        math: whether answers that are mathematically equal share a ballot: "auto" where math-verify
            is installed, True to insist on it, False to compare normalised strings only.
        sampling: parameters of these runs, over those of the engine, such as
            `dict(temperature=0.6)`.
        on_trace: called with each `Trace` as it ends, one after the other, on a thread of its own.
            Whether it voted is not known yet.
        answer_limit: seconds that finding one answer may take.
        keep_confidence: whether a result's traces keep their token confidences, 4 bytes a token.
            Without, their scores are the same, and the result cannot be recorded or replayed.

    Raises:
        InvalidInput: the engine cannot give the log-probabilities that the policy asks for, or does
            not take this sampling.
        InvalidType: the engine or the policy is none.
        MissingExtra: `math=True` and math-verify is not installed.

    A run can be repeated where the engine repeats itself: trace i is sampled with seed
    `policy.seed + i`.

    What fails on the way, traces, `answer` or `on_trace`, costs nothing else: `Result.warnings`
    says so, and so does a `RunWarning`. A run that could not have stopped anything warns by
    `SignalNeverArmed`. Both carry the result, for where warnings are errors.
    """

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        *,
        answer: Any = "boxed",
        math: Literal["auto"] | bool = "auto",
        sampling: Mapping[str, Any] | None = None,
        on_trace: Callable[[Trace], object] | None = None,
        answer_limit: float = 30.0,
        keep_confidence: bool = True,
    ) -> None:
        if not hasattr(engine, "stream"):
            raise InvalidType(
                f"engine={engine!r}: must be an engine, such as deepconf.engines.VLLM("
                f"{engine if isinstance(engine, str) else 'model'!r})"
            )
        if not isinstance(policy, Policy):
            raise InvalidType(
                f"policy={policy!r}: must be a deepconf.Policy, such as Policy.low(budget=64)"
            )
        if not answer_limit > 0:
            raise InvalidInput(f"answer_limit={answer_limit}: must be above 0 seconds")
        self.engine = engine
        self.policy = policy
        signal = Signal(
            top_logprobs=policy.top_logprobs,
            entries=policy.entries,
            logprob_floor=policy.logprob_floor,
            window=policy.window,
            online=policy.mode == "online",
        )
        self._task = Task(
            engine=engine,
            policy=policy,
            signal=signal,
            sampling=None if sampling is None else dict(sampling),
            extract=extractor(answer),
            extract_limit=answer_limit,
            math=math,
            on_trace=on_trace,
            keep_confidence=keep_confidence,
            metadata=trace_settings(engine.model, policy, _sampling(engine, sampling)),
        )
        AnswerBook(math=math)  # Says at once when math-verify is missing.
        engine.check(signal, **({} if sampling is None else {"sampling": sampling}))

    def start(self, question: Question) -> Thinking:
        """Begins to answer a question, and does not wait: see `Thinking`.

        Args:
            question: a prompt, or chat messages as `{"role": ..., "content": ...}`.

        Raises:
            EngineError: the engine is closed.
        """
        run = Run(self._task, question)
        return Thinking(run, self.engine.submit(run.think()))

    def run(self, question: Question, timeout: float | None = None) -> Result:
        """Answers one question; blocks until it is done.

        Args:
            question: a prompt, or chat messages as `{"role": ..., "content": ...}`.
            timeout: seconds after which it is cut short: what is being generated is aborted, and
                what is finished votes, with `reason == "cancelled"`.

        Raises:
            InvalidInput: the prompt does not fit the model, or the timeout is below 0.
            EngineDied: the engine died; its `result` is what was finished.
            EngineError: every trace failed, or the engine was closed.
            Interrupted: Ctrl-C, a KeyboardInterrupt; its `result` is what was finished. A second
                Ctrl-C does not wait for that.

        Whatever else interrupts the wait aborts the run too, and is raised on.
        """
        _check_timeout(timeout)
        run, thinking = Run(self._task, question), None
        try:
            thinking = Thinking(run, self.engine.submit(run.think()))
            with contextlib.suppress(TimeoutError):
                return thinking.result(timeout)
            thinking.cancel()
            return thinking.result()
        except KeyboardInterrupt:
            raise Interrupted(_cut_short(run, thinking)) from None
        except BaseException:
            if thinking is None or not thinking.done():
                _cut_short(run, thinking, _REST)
            raise

    async def arun(self, question: Question, timeout: float | None = None) -> Result:
        """As `run`, from any event loop; start many at once with `asyncio.gather`.

        Where the call is cancelled, by `asyncio.timeout` or a task group, say, what is being
        generated is aborted and the cancellation goes on its way. Whoever wants what was finished
        by then keeps the handle that `start` gives, or says `timeout=`.
        """
        _check_timeout(timeout)
        thinking = self.start(question)
        if timeout is None:
            return await thinking
        timer = asyncio.get_running_loop().call_later(timeout, thinking.cancel)
        try:
            return await thinking
        finally:
            timer.cancel()


class Thinking:
    """A question being answered, as `DeepThink.start` gives it.

    Wait for it from a thread (`result`) or an event loop (`await`), or both, and as often as
    needed. Where a task is cancelled that awaits it, what is being generated is aborted, and
    `result` has what was finished.
    """

    def __init__(self, run: Run, future: futures.Future[Result]) -> None:
        self._run = run
        self._future = future

    def cancel(self) -> None:
        """Ends it now, from any thread: `result` then is what had been finished."""
        with contextlib.suppress(EngineError):  # The engine is closed, and so is the run.
            if not self._future.done():
                self._run.engine.submit(self._run.cancel())

    def done(self) -> bool:
        """Whether `result` would not wait."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> Result:
        """Waits for the result; raises what `DeepThink.run` does, but goes on after Ctrl-C.

        Raises:
            TimeoutError: it is not done after so many seconds; it goes on.
        """
        try:
            result = result_of(self._future, timeout)
        except futures.CancelledError:
            raise _closed() from None
        return self._warned(result)

    def __await__(self) -> Generator[Any, None, Result]:
        """As `result`, on any event loop."""
        return self._wait().__await__()

    async def _wait(self) -> Result:
        waiting = asyncio.wrap_future(self._future)
        try:
            result = await asyncio.shield(waiting)
        except asyncio.CancelledError:
            if self._future.cancelled():
                raise _closed() from None
            self.cancel()
            await asyncio.wait({waiting}, timeout=_REST)
            if waiting.done() and not waiting.cancelled():
                waiting.exception()  # It is not lost: `result` has it.
            raise
        return self._warned(result)

    def _warned(self, result: Result) -> Result:
        for warning in self._run.warnings:
            # A new one each time: where warnings are errors, it is raised, and holds these frames.
            warnings.warn(type(warning)(str(warning), result), stacklevel=_depth())
        return result


def _cut_short(run: Run, thinking: Thinking | None, timeout: float | None = None) -> Result | None:
    """Ends a run and waits until nothing is generated any more; what was finished, if anything.

    Args:
        run: which may have begun though what interrupted it came before there was a handle.
        thinking: the handle.
        timeout: seconds to wait.
    """
    try:
        thinking = thinking or Thinking(run, run.engine.submit(run.join()))
        thinking.cancel()
        return result_of(thinking._future, timeout)
    except EngineDied as error:
        return error.result
    except (Exception, futures.CancelledError):
        return None


def _sampling(engine: Engine, given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The sampling parameters of a run, where the engine can say them as JSON values."""
    try:
        found = dict(settings_of(engine, given).get("sampling", {}))
        json.dumps(found)
    except Exception:  # It is a note on the result, and no reason to refuse a run.
        return None
    return found


def _check_timeout(timeout: Any) -> None:
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise InvalidType(f"timeout={timeout!r}: must be a number of seconds, or None")
    if not timeout >= 0:
        raise InvalidInput(f"timeout={timeout}: must be at least 0 seconds")


def _depth() -> int:
    """The `stacklevel` at which whoever called into this package stands."""
    frame: FrameType | None = sys._getframe(1)
    depth = 1
    while frame is not None and frame.f_globals.get("__name__", "").startswith("deepconf."):
        frame, depth = frame.f_back, depth + 1
    return depth


def _closed() -> EngineError:
    return EngineError("the engine was closed before it had answered")
