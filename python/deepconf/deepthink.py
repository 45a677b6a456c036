"""Thinking with confidence: runs an engine under a policy.

The `Controller` decides, the engine generates, and this module carries events one way and actions
the other. Everything of a run happens on the engine's event loop, so many runs share one engine
without locks; `run` and `arun` hand a run over and wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deepconf._core import Action, Controller, Outcome, Policy, TraceScores, score
from deepconf.answers import AnswerBook, extractor
from deepconf.engines.base import Chunk, Engine, Signal, result_of
from deepconf.errors import (
    DeepConfError,
    EngineError,
    InvalidInput,
    InvalidType,
    SignalNeverArmed,
)
from deepconf.provenance import versions
from deepconf.result import Question, Result, Timing, Tokens, Trace

__all__ = ["DeepThink"]

Finish = Literal["finished", "length", "aborted"]

_run_numbers = itertools.count()


class DeepThink:
    r"""Answers questions by parallel thinking with confidence.

    Args:
        engine: what generates, such as `deepconf.engines.VLLM(...)`.
        policy: the settings, such as `Policy.low(budget=64)`.
        answer: how an answer is found in a text: "boxed" for the last `\boxed{...}`, a regular
            expression with one group, or any callable from text to answer or None. Where it fails,
            that trace has no answer.
        math: whether answers that are mathematically equal share a ballot: "auto" where math-verify
            is installed, True to insist on it, False to compare normalised strings only.
        on_trace: called with the status of each trace as it ends, on the engine's thread.

    Raises:
        InvalidInput: the engine cannot give the log-probabilities that the policy asks for.
        InvalidType: the policy is none.
        MissingExtra: `math=True` and math-verify is not installed.

    A run can be repeated where the engine repeats itself: trace i is sampled with seed
    `policy.seed + i`.

    What fails in `answer` or `on_trace` costs no traces: once the run is over, it warns of it by a
    `RuntimeWarning`. It warns by `SignalNeverArmed` when it could not have stopped anything.
    """

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        *,
        answer: Any = "boxed",
        math: Literal["auto"] | bool = "auto",
        on_trace: Callable[[str], None] | None = None,
    ) -> None:
        if not isinstance(policy, Policy):
            raise InvalidType(
                f"policy={policy!r}: must be a deepconf.Policy, such as Policy.low(budget=64)"
            )
        self.engine = engine
        self.policy = policy
        self._extract = extractor(answer)
        self._math = math
        self._on_trace = on_trace
        AnswerBook(math=math)  # Says at once when math-verify is missing.
        self._signal = Signal(
            top_logprobs=policy.top_logprobs,
            entries=policy.entries,
            logprob_floor=policy.logprob_floor,
        )
        engine.check(self._signal)

    def run(self, question: Question) -> Result:
        """Answers one question; blocks until it is done.

        Ctrl-C aborts what is being generated and returns what is finished, with
        `reason == "cancelled"`. A second Ctrl-C does not wait for that.

        Args:
            question: a prompt, or chat messages as `{"role": ..., "content": ...}`.

        Raises:
            InvalidInput: the prompt does not fit the model.
            EngineError: the engine failed before any trace had ended, or was closed.
        """
        run = self._new_run(question)
        future = self.engine.submit(run.think())
        cancelled = False
        while True:
            try:
                result = result_of(future)
            except KeyboardInterrupt:
                if cancelled:
                    raise
                cancelled = True
                self.engine.submit(run.cancel())
            except futures.CancelledError:
                raise EngineError("the engine was closed before it had answered") from None
            else:
                return run.checked(result)

    async def arun(self, question: Question) -> Result:
        """As `run`, from any event loop; start many at once with `asyncio.gather`.

        A cancelled call (by `asyncio.timeout`, say) aborts what is being generated and returns what
        is finished, with `reason == "cancelled"`.
        """
        run = self._new_run(question)
        future = self.engine.submit(run.think())
        while True:
            try:
                result = await asyncio.shield(asyncio.wrap_future(future))
            except asyncio.CancelledError:
                if future.cancelled():
                    raise EngineError("the engine was closed before it had answered") from None
                self.engine.submit(run.cancel())
            else:
                return run.checked(result)

    def _new_run(self, question: Question) -> _Run:
        book = AnswerBook(math=self._math)
        return _Run(
            self.engine, self.policy, self._signal, question, self._extract, book, self._on_trace
        )


@dataclass
class _Record:
    """A trace as it comes in."""

    chunks: list[Chunk] = field(default_factory=list)
    answer: str | None = None
    stop_token: int | None = None
    error: str | None = None

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks)

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    def confidence(self) -> NDArray[np.float32]:
        parts = [chunk.confidence for chunk in self.chunks]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)


class _Run:
    """One question being answered; lives on the engine's event loop."""

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        signal: Signal,
        question: Question,
        extract: Callable[[str], str | None],
        book: AnswerBook,
        on_trace: Callable[[str], None] | None,
    ) -> None:
        self.engine = engine
        self.policy = policy
        self.signal = signal
        self.question = question
        self.extract = extract
        self.book = book
        self.on_trace = on_trace
        self.controller = Controller(policy)
        self.name = f"deepconf-{next(_run_numbers)}"
        self.records: list[_Record] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.done = asyncio.Event()
        self.prompt: Any = None
        self.failure: BaseException | None = None
        self.moments: dict[str, float] = {}
        self.complaints: dict[str, str] = {}
        self.naming = asyncio.Lock()

    async def think(self) -> Result:
        self.prompt = self.engine.prepare(self.question)
        self.moments["start"] = time.perf_counter()
        self.obey(self.controller.start())
        await self.done.wait()
        while self.tasks:
            await asyncio.wait(self.tasks)
        self.moments["end"] = time.perf_counter()
        if self.failure is not None:
            raise self.failure
        outcome = self.controller.outcome
        assert outcome is not None, "the controller has answered"
        return self.result(outcome)

    async def cancel(self) -> None:
        self.obey(self.controller.cancel())

    def checked(self, result: Result) -> Result:
        """Warns whoever called `run` or `arun` of what was not as it should be."""
        for complaint in self.complaints.values():
            warnings.warn(complaint, RuntimeWarning, stacklevel=3)
        if result.unarmed is not None:
            warnings.warn(result.unarmed, SignalNeverArmed, stacklevel=3)
        return result

    def obey(self, actions: list[Action]) -> None:
        if self.controller.threshold is not None:
            self.moments.setdefault("threshold", time.perf_counter())
        for action in actions:
            match action:
                case Action.Launch(traces):
                    for trace in traces:
                        self.records.append(_Record())
                        self.spawn(self.follow(trace))
                case Action.Abort(traces):
                    self.spawn(self.abort(traces))
                case Action.Answer():
                    self.moments.setdefault("answer", time.perf_counter())
                    self.done.set()

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.ended)

    def ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            # Not an engine's failure, which `follow` deals with, but a defect: do not wait on.
            self.failure = self.failure or error
            self.obey(self.controller.cancel())
            self.done.set()

    def request_id(self, trace: int) -> str:
        return f"{self.name}-{trace}"

    async def abort(self, traces: Sequence[int]) -> None:
        # A trace that cannot be aborted runs to its end, or fails by itself.
        with contextlib.suppress(DeepConfError):
            await self.engine.abort([self.request_id(trace) for trace in traces])

    async def follow(self, trace: int) -> None:
        """Reports one trace to the controller, from its launch to its end."""
        record = self.records[trace]
        self.controller.launched(trace)
        try:
            too_late = self.controller.status(trace) == "aborting"
            finish = "aborted" if too_late else await self.generate(trace, record)
        except DeepConfError as error:
            record.error = str(error)
            await self.abort([trace])
            self.obey(self.controller.failed(trace))
        else:
            record.answer = await self.answer_in(record)
            self.obey(self.controller.finished(trace, finish, record.answer))
        self.report(trace)

    def report(self, trace: int) -> None:
        if self.on_trace is None:
            return
        try:
            self.on_trace(self.controller.status(trace) or "")
        except Exception as error:
            self.complaints.setdefault(
                "on_trace", f"on_trace failed, the first time with: {error!r}"
            )

    async def generate(self, trace: int, record: _Record) -> Finish:
        stream = self.engine.stream(
            self.prompt,
            request_id=self.request_id(trace),
            seed=self.policy.seed + trace,
            signal=self.signal,
        )
        try:
            async for chunk in stream:
                record.chunks.append(chunk)
                if len(chunk.confidence):
                    await self.score(trace, record)
                if chunk.finish_reason is not None:
                    return chunk.finish_reason
        finally:
            if hasattr(stream, "aclose"):  # The engine is to be at rest when the run is over.
                await stream.aclose()
        raise EngineError(f"the engine ended trace {trace} without saying why")

    async def score(self, trace: int, record: _Record) -> None:
        chunk = record.chunks[-1]
        try:
            stop = self.controller.tokens(trace, chunk.confidence)
        except DeepConfError:
            # They were generated, and cannot be scored.
            record.chunks[-1] = replace(chunk, confidence=chunk.confidence[:0])
            raise
        if stop is not None:
            record.stop_token = stop.token
            if chunk.finish_reason is None:
                await self.abort([trace])

    async def answer_in(self, record: _Record) -> str | None:
        try:
            found = self.extract(record.text)
        except Exception as error:
            # The user's own code: its failure must not cost the other traces.
            record.error = f"the answer could not be extracted: {error!r}"
            self.complaints.setdefault("answer", f"{record.error} (the first such failure)")
            return None
        if found is None:
            return None
        # A comparison of formulas may take seconds, and the engine must not wait for it. In turn,
        # so that which spelling comes first is no accident.
        async with self.naming:
            return await asyncio.to_thread(self.book.canonical, found)

    def result(self, outcome: Outcome) -> Result:
        traces = self.traces(set(outcome.voters))
        finished = any(trace.status != "failed" for trace in traces)
        failed = next((trace.error for trace in traces if trace.status == "failed"), None)
        if failed is not None and not finished:
            raise EngineError(f"every trace failed, the first with: {failed}")
        answer = self.moments["answer"]
        first = "answer" if self.policy.mode == "online" else "start"
        known = self.moments.get("threshold", self.moments[first])
        cancelled = outcome.reason == "cancelled"
        return Result(
            question=self.question,
            answer=outcome.answer,
            vote=outcome.vote,
            threshold=outcome.threshold,
            reason=outcome.reason,
            unarmed=None if cancelled else outcome.unarmed,
            traces=traces,
            tokens=_tokens(traces, self.policy),
            timing=Timing(
                warmup=known - self.moments["start"],
                sampling=answer - known,
                drain=self.moments["end"] - answer,
            ),
            policy=self.policy,
            model=self.engine.model,
            metadata={
                "model": self.engine.model,
                "k": str(self.policy.top_logprobs),
                "window": str(self.policy.window),
                "seed": str(self.policy.seed),
                "policy": json.dumps(self.policy.as_dict()),
                "versions": json.dumps(versions()),
            },
        )

    def traces(self, voters: set[int]) -> list[Trace]:
        confidences = [record.confidence() for record in self.records]
        scored = [
            c if r.stop_token is None else c[: r.stop_token + 1]
            for c, r in zip(confidences, self.records, strict=True)
        ]
        policy = self.policy
        scores = self.scores(scored)
        return [
            Trace(
                trace=trace,
                seed=policy.seed + trace,
                status=self.controller.status(trace) or "failed",
                answer=record.answer,
                text=record.text,
                num_tokens=record.num_tokens,
                confidence=confidences[trace],
                scores=scores[trace],
                stop_token=record.stop_token,
                voted=trace in voters,
                error=record.error,
            )
            for trace, record in enumerate(self.records)
        ]

    def scores(self, confidences: list[NDArray[np.float32]]) -> Sequence[TraceScores]:
        policy = self.policy
        scored = functools.partial(
            score,
            window=policy.window,
            tail=policy.tail,
            bottom=policy.bottom,
            decimals=policy.decimals,
        )
        try:
            return list(scored(confidences))
        except InvalidInput:
            # What came after the decision to abort has not been looked at before.
            return [scored([c if _in_range(c) else c[:0]])[0] for c in confidences]


def _in_range(confidences: NDArray[np.float32]) -> bool:
    try:
        score([confidences], threads=1)
    except InvalidInput:
        return False
    return True


def _tokens(traces: list[Trace], policy: Policy) -> Tokens:
    """What was generated, beside what the whole budget without stops would have taken."""
    first = policy.warmup if policy.mode == "online" else len(traces)
    whole = [t.num_tokens for t in traces[:first] if t.status in ("finished", "length")]
    kind = "warmup traces" if policy.mode == "online" else "traces"
    if whole:
        mean = sum(whole) / len(whole)
        baseline = policy.budget * mean
        compared_with = (
            f"the budget of {policy.budget} traces at {mean:.1f} tokens each, the mean of the "
            f"{len(whole)} {kind} that ran to their end"
        )
    else:
        baseline = None
        compared_with = f"nothing: none of the {kind} ran to its end"
    return Tokens(
        generated=sum(trace.num_tokens for trace in traces),
        warmup=sum(trace.num_tokens for trace in traces[: policy.warmup]),
        after_stop=sum(t.num_tokens - t.stop_token - 1 for t in traces if t.stop_token is not None),
        baseline=baseline,
        compared_with=compared_with,
    )
