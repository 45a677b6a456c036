"""One question being answered: carries events to the `Controller` and its actions to the engine.

Lives on the engine's event loop. What is the user's own, extracting answers and callbacks, and what
may take long, comparing answers, happens aside: a trace's end is reported at once, and its answer
when it is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import time
from array import array
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from deepconf._aside import Aside, TookTooLong
from deepconf._core import Action, Controller, Outcome, Policy, TraceScores, score
from deepconf._words import counted
from deepconf.answers import AnswerBook
from deepconf.engines.base import (
    Ending,
    Engine,
    Finish,
    Signal,
    Step,
    generate_by_stream,
)
from deepconf.errors import (
    DeepConfError,
    DeepConfWarning,
    EngineDied,
    EngineError,
    InvalidInput,
    RunWarning,
    SignalNeverArmed,
)
from deepconf.result import WHOLE, Question, Result, Timing, Tokens, Trace

__all__ = ["Run", "Task"]

T = TypeVar("T")
# Seconds. An answer found within these goes to the controller together with the trace's end.
_SOON = 0.5
# What the next answer may still take once the run is over, and what all of them may.
_GRACE = 2.0
_GRACE_OF_ALL = 10.0
# What the engine may take to bring to an end what it was asked to abort.
_REST = 30.0
# What callbacks may still take then.
_CALLBACKS = 10.0
# Extractions that hang before no more is tried, and comparisons.
_HANGS = 3
_HANGING_COMPARISONS = 8
# Tokens after a stop, on average, that are worth a warning where they grow.
_LAG = 16

_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Task:
    """What all runs of a `DeepThink` have in common."""

    engine: Engine
    policy: Policy
    signal: Signal
    sampling: Mapping[str, Any] | None
    extract: Callable[[str], str | None]
    extract_limit: float
    math: Literal["auto"] | bool
    on_trace: Callable[[Trace], object] | None
    keep_confidence: bool
    metadata: Mapping[str, str]


class _Record:
    """A trace as it comes in: 4 bytes of confidence a token, and at last its text."""

    def __init__(self) -> None:
        self.growing = array("f")
        self.unscored = 0  # Tokens that have no confidence.
        self.tries = 1
        self.lost = 0  # Tokens of tries that broke off.
        self.text = ""
        self.final: str | None = None  # What of the text answers, if not all of it.
        self.scores: TraceScores | None = None
        self.finish: Finish | None = None  # How it ended, if it did while the run went on.
        self.answer: str | None = None
        self.stop_token: int | None = None
        self.error: str | None = None
        self.finish_order: int | None = None
        self._closed: tuple[int, NDArray[np.float32]] | None = None

    def close(self, finish_order: int, scores: TraceScores, *, keep: bool) -> None:
        """Nothing more comes; `keep` says whether the confidences are still wanted."""
        self._closed = (self.num_tokens, self.confidence if keep else np.empty(0, np.float32))
        self.growing = array("f")  # Had grown in advance.
        self.finish_order = finish_order
        self.scores = scores

    def begin_anew(self) -> None:
        """What came of it is void."""
        self.tries += 1
        self.lost += self.num_tokens
        self.growing = array("f")
        self.unscored = 0

    @property
    def num_tokens(self) -> int:
        return len(self.growing) + self.unscored if self._closed is None else self._closed[0]

    @property
    def confidence(self) -> NDArray[np.float32]:
        """A copy while it grows, since an array that is looked at cannot."""
        return np.array(self.growing, np.float32) if self._closed is None else self._closed[1]


class Run:
    """One question being answered."""

    def __init__(self, task: Task, question: Question) -> None:
        self.task = task
        self.engine = task.engine
        self.policy = task.policy
        self.question = question
        self.controller = Controller(task.policy)
        self.book = AnswerBook(math=task.math)
        self.name = f"deepconf-{next(_numbers)}"
        self.records: list[_Record] = []
        # How traces have ended of which the controller does not know yet.
        self.untold: dict[int, Finish] = {}
        self.tasks: set[asyncio.Task[Any]] = set()
        self.callbacks: set[asyncio.Task[Any]] = set()
        self.done = asyncio.Event()
        self.over: asyncio.Future[Any]  # Done when `done` is set: to wait for beside others.
        self.whole: asyncio.Task[Any] | None = None  # While it runs.
        self.prompt: Any = None
        self.defect: BaseException | None = None
        self.given_up = False
        self.progress = 0.0  # When the last answer came, or the run was over.
        self.death: EngineDied | None = None
        self.moments: dict[str, float] = {}
        self.complaints: dict[str, str] = {}
        self.warnings: list[DeepConfWarning] = []
        self.hangs = 0
        self.ends = itertools.count()
        self.extracting = Aside(f"{self.name}-answers")
        self.calling = Aside(f"{self.name}-on_trace")

    # ---- from the question to the result -----------------------------------------------------

    async def think(self) -> Result:
        """The result; `EngineDied` carries it where the engine is gone."""
        self.whole = asyncio.current_task()
        self.over = asyncio.ensure_future(self.done.wait())
        try:
            self.prompt = self.engine.prepare(self.question)
            self.fit()
            self.moments["start"] = time.perf_counter()
            self.obey(self.controller.start())
            await self.done.wait()
            await self.rest()
            late = await self.late()
            self.remark()
            self.moments["end"] = time.perf_counter()
            await self.callbacks_done()
        finally:
            self.whole = None  # Its exception would hold this run.
            self.over.cancel()
            self.extracting.close()
            self.calling.close()
        if self.defect is not None:
            defect, self.defect = self.defect, None  # Its traceback holds this run.
            raise defect
        outcome = self.controller.outcome
        assert outcome is not None, "the controller has answered"
        return self.result(outcome, late)

    async def join(self) -> Result:
        """The result, for whoever does not wait for `think` itself.

        Raises:
            EngineError: it does not run.
            Exception: what `think` does.
        """
        if self.whole is None:
            raise EngineError("the run has not begun, or is over")
        result: Result = await asyncio.shield(self.whole)
        return result

    def fit(self) -> None:
        """Asks an engine that can tell whether so many traces fit it at once."""
        misfit = getattr(self.engine, "misfit", None)
        if misfit is None:
            return
        traces = min(self.policy.budget, self.policy.concurrency or self.policy.budget)
        complaint = misfit(traces, self.prompt, self.task.sampling)
        if complaint is not None:
            self.complaints["cache"] = complaint

    async def rest(self) -> None:
        """Waits until all that was asked to end has ended, but not for ever."""
        end = time.monotonic() + _REST
        while self.tasks and time.monotonic() < end:
            await asyncio.wait(self.tasks, timeout=end - time.monotonic())
        if self.tasks:
            self.given_up = True
            for task in self.tasks:
                task.cancel()
            await asyncio.wait(self.tasks, timeout=_GRACE)
            self.complaints["rest"] = (
                f"the engine did not end what it was asked to abort within {_REST:.0f} seconds, "
                "and may be generating still"
            )

    async def cancel(self) -> None:
        """Ends it now, with the vote of the traces that have ended."""
        self.tell_ends()
        self.obey(self.controller.cancel())

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
                    self.book.hurry()
                    self.progress = time.monotonic()
                    self.done.set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.ended)

    def ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None and not self.given_up:
            # Not an engine's failure, which `follow` deals with, but a defect: do not wait on.
            self.defect = self.defect or error
            self.obey(self.controller.cancel())
            self.done.set()

    # ---- one trace ---------------------------------------------------------------------------

    async def follow(self, trace: int) -> None:
        """Reports one trace to the controller, from its launch to its answer."""
        record = self.records[trace]
        self.controller.launched(trace)
        try:
            too_late = self.controller.status(trace) == "aborting"
            ending = Ending("aborted", "") if too_late else await self.generate(trace)
        except (Exception, asyncio.CancelledError) as error:
            # Whatever an engine raises is its trace's failure, and no other's.
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            if isinstance(error, EngineDied):
                self.death = self.death or error
                self.tell_ends()
                self.obey(self.controller.engine_died())
            else:
                await self.abort([trace])
            self.close(record)
            self.fail(trace, error)
        else:
            record.text, record.final = ending.text, ending.final
            self.close(record)
            if record.error is None:
                await self.end(trace, record, ending.finish_reason)
        self.report(trace)

    async def generate(self, trace: int) -> Ending:
        engine, sampling, signal = self.engine, self.task.sampling, self.task.signal
        if self.controller.threshold is not None and trace >= self.policy.warmup:
            signal = dataclasses.replace(signal, threshold=self.controller.threshold)
        generate = getattr(engine, "generate_into", functools.partial(generate_by_stream, engine))
        ending: Ending = await generate(
            self.take,
            self.prompt,
            trace=trace,
            request_id=self.request_id(trace),
            seed=None if self.policy.seed is None else self.policy.seed + trace,
            signal=signal,
            **({} if sampling is None else {"sampling": sampling}),
        )
        return ending

    def take(self, step: Step) -> Collection[int]:
        """Takes in what a step generated; the traces that are to end now."""
        records = self.records
        for trace in step.relaunched:
            self.controller.relaunched(trace)
            records[trace].begin_anew()
        stops, errors = self.controller.step(step.traces, step.confidence)
        of = step.traces
        if of[:1] == of[-1:] and len(set(of)) == 1 and not errors:  # A whole trace, say.
            records[of[0]].growing.frombytes(np.asarray(step.confidence, np.float32).tobytes())
        else:
            for trace, confidence in zip(step.traces, step.confidence.tolist(), strict=True):
                if trace in errors:  # They were generated, and cannot be scored.
                    records[trace].unscored += 1
                else:
                    records[trace].growing.append(confidence)
        for trace, count in step.unscored.items():
            records[trace].unscored += count
        for stop in stops:
            records[stop.trace].stop_token = stop.token
        for trace, error in errors.items():
            self.fail(trace, error)
        return [stop.trace for stop in stops] + list(errors)

    def fail(self, trace: int, error: BaseException) -> None:
        """Gives a trace up, once."""
        record = self.records[trace]
        if record.error is None:
            record.error = str(error) if isinstance(error, DeepConfError) else repr(error)
            self.obey(self.controller.failed(trace))

    def close(self, record: _Record) -> None:
        keep = self.task.keep_confidence
        record.close(next(self.ends), self.scores(record), keep=keep)

    async def end(self, trace: int, record: _Record, finish: Finish) -> None:
        """Reports the end: together with the answer if that is known soon, else ahead of it."""
        if self.done.is_set():  # Too late to vote.
            self.obey(self.controller.finished(trace, finish, None))
            return
        self.untold[trace] = record.finish = finish
        naming = asyncio.ensure_future(self.answer_in(record))
        try:
            await asyncio.wait(
                {naming, self.over}, timeout=_SOON, return_when=asyncio.FIRST_COMPLETED
            )
            if naming.done() and trace in self.untold:
                del self.untold[trace]
                record.answer = naming.result()
                self.obey(self.controller.finished(trace, finish, record.answer))
                return
            self.tell_end(trace)
            record.answer = await naming
            self.obey(self.controller.answered(trace, record.answer))
        finally:
            naming.cancel()

    def tell_end(self, trace: int) -> None:
        if trace in self.untold:
            self.obey(self.controller.ended(trace, self.untold.pop(trace)))

    def tell_ends(self) -> None:
        """Before a run is cut short: what has ended has ended, named or not."""
        for trace in list(self.untold):
            self.tell_end(trace)

    async def abort(self, traces: Sequence[int]) -> None:
        # A trace that cannot be aborted runs to its end, or fails by itself.
        with contextlib.suppress(Exception):
            await self.engine.abort([self.request_id(trace) for trace in traces])

    def request_id(self, trace: int) -> str:
        return f"{self.name}-{trace}"

    async def late(self) -> dict[int, int]:
        """Tokens that came for aborted traces when their streams were over."""
        aborted = {
            self.request_id(trace): trace
            for trace in range(len(self.records))
            if self.controller.status(trace) in ("stopped", "aborted", "failed")
        }
        if not aborted or self.death is not None:
            return {}
        try:
            counts = await asyncio.wait_for(self.engine.late_tokens(list(aborted)), _REST)
        except Exception as error:
            self.complaints["late"] = f"tokens that came after aborts are not counted: {error!r}"
            return {}
        return {aborted[name]: count for name, count in counts.items() if count}

    def remark(self) -> None:
        """Asks an engine that can tell what there is to know of these traces."""
        remarks = getattr(self.engine, "remarks", None)
        if remarks is None:
            return
        try:
            found = remarks([self.request_id(trace) for trace in range(len(self.records))])
            self.complaints |= {f"remark {at}": str(text) for at, text in enumerate(found)}
        except Exception as error:
            self.complaints["remarks"] = f"the engine's remarks are lost: {error!r}"

    # ---- answers and callbacks ---------------------------------------------------------------

    async def answer_in(self, record: _Record) -> str | None:
        """The trace's answer by the name that all have that are the same."""
        try:
            if self.hangs >= _HANGS:
                raise TookTooLong
            limit = self.task.extract_limit
            text = record.text if record.final is None else record.final
            call = self.extracting.call(self.task.extract, text, limit=limit)
            found = await self.within_grace(call)
            if found is None:
                return None
            found.encode()  # Half of a surrogate pair is no text that can be compared.
            if self.book.timeouts >= _HANGING_COMPARISONS:
                self.book.hurry()
            # In turn, so that which spelling comes first is no accident.
            return await self.extracting.call(self.book.canonical, found)
        except TookTooLong:
            self.hangs += not self.done.is_set()
            record.error = "the answer could not be extracted: extracting it takes too long"
        except Exception as error:
            # The user's own code: its failure must not cost the other traces.
            record.error = f"the answer could not be extracted: {error!r}"
        finally:
            self.progress = time.monotonic()
        self.complaints.setdefault("answer", f"{record.error} (the first such failure)")
        return None

    async def within_grace(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result; once the run is over it has little time left."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self.over}, return_when=asyncio.FIRST_COMPLETED)
            end = time.monotonic() + _GRACE_OF_ALL
            while not task.done():
                left = min(end, self.progress + _GRACE) - time.monotonic()
                if left <= 0:
                    raise TookTooLong
                await asyncio.wait({task}, timeout=left)
            return task.result()
        finally:
            task.cancel()
            del task  # Its exception holds this frame, which must not hold it in turn.

    def report(self, trace: int) -> None:
        if self.task.on_trace is None:
            return
        call = asyncio.ensure_future(self.calling.call(self.task.on_trace, self.trace(trace)))
        self.callbacks.add(call)
        call.add_done_callback(self.called)

    def called(self, call: asyncio.Task[Any]) -> None:
        self.callbacks.discard(call)
        error = None if call.cancelled() else call.exception()
        if error is not None:
            self.complaints.setdefault(
                "on_trace", f"on_trace failed, the first time with: {error!r}"
            )

    async def callbacks_done(self) -> None:
        if self.callbacks:
            await asyncio.wait(self.callbacks, timeout=_CALLBACKS)
        if self.callbacks:
            count = len(self.callbacks)
            self.complaints["on_trace"] = (
                f"on_trace is slower than the traces end: {count} calls of it were not waited for"
            )
            for call in self.callbacks:
                call.cancel()

    # ---- the result --------------------------------------------------------------------------

    def result(self, outcome: Outcome, late: Mapping[int, int]) -> Result:
        voters = set(outcome.voters)
        traces = [
            self.trace(trace, voted=trace in voters, late=late.get(trace, 0))
            for trace in range(len(self.records))
        ]
        failed = [trace for trace in traces if trace.status == "failed"]
        if failed and len(failed) == len(traces) and self.death is None:
            raise EngineError(f"every trace failed, the first with: {failed[0].error}")
        cut_short = outcome.reason in ("cancelled", "engine_died")
        self.complain(traces, None if cut_short else outcome.unarmed)
        answer = self.moments["answer"]
        known = self.moments.get(
            "threshold", answer if self.policy.mode == "online" else self.moments["start"]
        )
        capabilities = getattr(self.engine, "capabilities", None)
        result = Result(
            question=self.question,
            answer=outcome.answer,
            vote=outcome.vote,
            threshold=outcome.threshold,
            reason=outcome.reason,
            unarmed=None if cut_short else outcome.unarmed,
            traces=traces,
            tokens=_tokens(traces, self.policy, cut_short),
            timing=Timing(
                warmup=known - self.moments["start"],
                sampling=answer - known,
                drain=self.moments["end"] - answer,
            ),
            policy=self.policy,
            model=self.engine.model,
            capabilities={} if capabilities is None else capabilities.as_dict(),
            warnings=tuple(str(warning) for warning in self.warnings),
            metadata=dict(self.task.metadata),
        )
        death, self.death = self.death, None  # Its traceback holds this run.
        if death is not None:
            whole = sum(trace.status in ("finished", "length", "stopped") for trace in traces)
            raise EngineDied(
                f"the engine died when {whole} of {self.policy.budget} traces had ended: {death}",
                result if whole else None,
            ) from death
        return result

    def trace(self, trace: int, *, voted: bool = False, late: int = 0) -> Trace:
        record = self.records[trace]
        return Trace(
            trace=trace,
            seed=None if self.policy.seed is None else self.policy.seed + trace,
            status=self.status(trace),
            answer=record.answer,
            text=record.text,
            num_tokens=record.num_tokens + late,
            confidence=record.confidence,
            scores=record.scores or self.scores(record),
            stop_token=record.stop_token,
            voted=voted,
            error=record.error,
            finish_order=record.finish_order,
            tries=record.tries,
            lost_tokens=record.lost,
        )

    def status(self, trace: int) -> str:
        told = self.controller.status(trace)
        finish = self.records[trace].finish
        # One that ended by itself while the run did was not aborted, though it came too late.
        if told == "aborted" and finish is not None:
            return finish
        # Of what an engine never brought to its end, only what was asked is known.
        asked = {"stopping": "stopped", "aborting": "aborted", "running": "aborted"}
        return asked.get(told or "", told or "failed")

    def scores(self, record: _Record) -> TraceScores:
        """Up to the token that asked for a stop."""
        policy = self.policy
        end = None if record.stop_token is None else record.stop_token + 1
        confidence = record.confidence[:end]
        scored = functools.partial(
            score,
            window=policy.window,
            tail=policy.tail,
            bottom=policy.bottom,
            decimals=policy.decimals,
            threads=1,
        )
        try:
            return scored([confidence])[0]
        except InvalidInput:
            # What came after the decision to abort has not been looked at before.
            return scored([confidence[:0]])[0]

    def complain(self, traces: Sequence[Trace], unarmed: str | None) -> None:
        """Collects what the reader of the result must know."""
        failed = [trace for trace in traces if trace.status == "failed"]
        if failed:
            self.complaints["failed"] = (
                f"{len(failed)} of {counted(len(traces), 'trace')} failed, the first with: "
                f"{failed[0].error}"
            )
        whole = [trace for trace in traces if trace.status in WHOLE]
        if whole and all(trace.answer is None for trace in whole):
            self.complaints["no answer"] = (
                f"none of the {counted(len(whole), 'trace')} that ran to their end has an answer: "
                f"{self.looked_for()}. The last one ends with {whole[-1].text[-120:]!r}"
            )
        again = [trace for trace in traces if trace.tries > 1]
        if again:
            tries = sum(trace.tries - 1 for trace in again)
            self.complaints["again"] = (
                f"{len(again)} of {len(traces)} traces broke off and began anew, {tries} times in "
                f"all: {sum(trace.lost_tokens for trace in again)} tokens of what was given up "
                "were generated beside those that are counted"
            )
        lag = _lag(traces)
        if lag:
            self.complaints["lag"] = lag
        if self.book.timeouts:
            self.complaints["comparing"] = (
                f"{self.book.timeouts} comparisons of answers by algebra took too long: these "
                "answers count as different, and after "
                f"{_HANGING_COMPARISONS} of them all are compared by string and value only"
            )
        if self.book.trouble:
            self.complaints["math"] = f"answers were not compared by algebra: {self.book.trouble}"
        self.warnings = [RunWarning(text) for text in self.complaints.values()]
        if unarmed is not None:
            self.warnings.append(SignalNeverArmed(unarmed))

    def looked_for(self) -> str:
        name = getattr(self.task.extract, "__name__", "")
        if name.startswith("regex:"):
            return f"looked for {name}, which must match what the model is asked to write"
        if name != "boxed":
            return "the extractor given as answer= found none"
        return (
            r"looked for \boxed{...}, which a model writes when it is asked to: add "
            r"'Put your final answer within \boxed{}.' to the question"
        )


def _is_cancelled() -> bool:
    """Whether it is this task that was cancelled, and not something it waits for."""
    task = asyncio.current_task()
    # Python 3.10 cannot tell.
    return task is None or not hasattr(task, "cancelling") or task.cancelling() > 0


def _lag(traces: Sequence[Trace]) -> str | None:
    """What to say where stops take effect later and later."""
    after = [t.num_tokens - t.stop_token - 1 for t in traces if t.stop_token is not None]
    quarter = len(after) // 4
    if quarter < 4:
        return None
    first, last = (sum(part) / quarter for part in (after[:quarter], after[-quarter:]))
    if last < _LAG or last < 2 * first:
        return None
    return (
        f"stops take effect late, and later and later: {first:.0f} tokens came after each of the "
        f"first {quarter} stops and {last:.0f} after each of the last: this process cannot keep up "
        "with the engine, run fewer traces at once (concurrency) or give it a core of its own"
    )


def _tokens(traces: Sequence[Trace], policy: Policy, cut_short: bool) -> Tokens:
    """What was generated, beside what the whole budget without stops would have taken."""
    first = policy.warmup if policy.mode == "online" else len(traces)
    whole = [t.num_tokens for t in traces[:first] if t.status in ("finished", "length")]
    kind = "warmup traces" if policy.mode == "online" else "traces"
    failed = sum(trace.status == "failed" for trace in traces)
    baseline = None
    if cut_short:
        compared_with = "nothing: the run was cut short"
    elif failed:
        compared_with = f"nothing: {failed} of {counted(len(traces), 'trace')} failed"
    elif not whole:
        compared_with = f"nothing: none of the {kind} ran to its end"
    else:
        mean = sum(whole) / len(whole)
        baseline = policy.budget * mean
        compared_with = (
            f"the budget of {counted(policy.budget, 'trace')} at {mean:.1f} tokens each, the "
            "mean of the "
            f"{len(whole)} {kind} that ran to their end"
        )
    return Tokens(
        generated=sum(trace.num_tokens for trace in traces),
        lost=sum(trace.lost_tokens for trace in traces),
        warmup=sum(trace.num_tokens for trace in traces[: policy.warmup]),
        after_stop=sum(t.num_tokens - t.stop_token - 1 for t in traces if t.stop_token is not None),
        baseline=baseline,
        compared_with=compared_with,
    )
