"""Evaluation: many questions under several policies on one engine, resumable.

>>> import deepconf
>>> from deepconf.evaluate import evaluate
>>> engine = deepconf.engines.VLLM("examples/tiny-reasoner/model")        # doctest: +SKIP
>>> policies = {"low": deepconf.Policy.low(window=32), "offline": deepconf.Policy.offline()}
>>> report = evaluate(engine, "questions.jsonl", policies, "run.jsonl")   # doctest: +SKIP
>>> print(report.table())                                                 # doctest: +SKIP

Policies run one after the other, so that each has its own wall time; their questions run at once.
With `out` every finished question goes to a file, and the same call again carries on.
"""

from __future__ import annotations

import asyncio
import importlib.util
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from deepconf._core import Policy
from deepconf.answers import marks
from deepconf.deepthink import DeepThink
from deepconf.engines.base import Engine, result_of
from deepconf.errors import (
    DeepConfError,
    EngineError,
    InvalidInput,
    InvalidType,
    RunFileError,
    SignalNeverArmed,
)
from deepconf.provenance import fingerprint, versions
from deepconf.questions import Question, load_questions, read_questions
from deepconf.report import Report, summarise
from deepconf.result import Result
from deepconf.runs import RunFile

__all__ = ["Evaluation", "IncompleteRun", "Progress", "Question", "evaluate", "load_questions"]


class IncompleteRun(DeepConfError, RuntimeError):
    """An evaluation that had to stop; `report` is of what is finished, `__cause__` says why."""

    def __init__(self, message: str, report: Report) -> None:
        self.report = report
        super().__init__(message)


class Progress:
    """Told how an evaluation goes; override what is of interest."""

    def policy(self, label: str, done: int, total: int) -> None:
        """A policy's turn: so many of its questions are done already."""

    def question(self, record: Mapping[str, Any]) -> None:
        """A question is finished."""

    def trace(self, status: str) -> None:
        """A trace has ended; called on the engine's thread."""


class Evaluation:
    """What is to be run, and what is finished of it; needs no engine before `run`.

    Args:
        questions: a file (see `load_questions`), or `Question`s, or mappings with the same keys.
        policies: names of presets, or policies by any label.
        model: its name or folder, as the run file has it.
        out: the run file; None to keep nothing.
        settings: what else must be the same for results to go together, such as `sampling`.
        limit: the first so many questions only.
        answer: as in `DeepThink`.
        overwrite: starts the run file anew.

    Attributes:
        failure: what stopped the run, None if nothing did.
        interrupted: whether it was told to stop.

    Raises:
        InvalidInput: questions or policies are wrong.
        RunFileError: see `RunFile`.
    """

    def __init__(
        self,
        questions: str | Path | Iterable[Question | Mapping[str, Any]],
        policies: Sequence[str] | Mapping[str, Policy],
        *,
        model: str,
        out: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
        limit: int | None = None,
        answer: Any = "boxed",
        overwrite: bool = False,
    ) -> None:
        if limit is not None and limit < 1:
            raise InvalidInput(f"limit={limit}: must be at least 1")
        every, digest = read_questions(questions)
        self.model = model
        self.questions = every[:limit]
        self.policies = _named(policies)
        self.failure: DeepConfError | None = None
        self.interrupted = False
        self._answer = answer
        self._halt = False
        self._thinking: dict[asyncio.Task[Result], asyncio.AbstractEventLoop] = {}
        header = {
            "model": model,
            "model_fingerprint": fingerprint(model),
            "questions_sha256": digest,
            "answer": answer if isinstance(answer, str) else _name(answer),
            "math": importlib.util.find_spec("math_verify") is not None,
            "settings": dict(settings or {}),
            "policies": {label: policy.as_dict() for label, policy in self.policies.items()},
            "versions": versions(),
        }
        self.file = None if out is None else RunFile(out, header, overwrite=overwrite)
        self._records = [] if self.file is None else list(self.file.records)
        self._done = {(record["policy"], record["id"]) for record in self._records}

    def missing(self, label: str | None = None) -> list[tuple[str, Question]]:
        """What is not finished, as policy and question, in the order of running."""
        return [
            (of, question)
            for of in self.policies
            for question in self.questions
            if label in (None, of) and (of, question.id) not in self._done
        ]

    def run(
        self, engine: Engine, *, concurrency: int = 4, progress: Progress | None = None
    ) -> None:
        """Runs what is missing; blocks until that is done, or cannot go on (see `failure`).

        When a question cannot be answered or saved, those in flight are brought to their end, and
        `failure` says why there are no more. Ctrl-C aborts those in flight.

        Args:
            engine: generates for all policies.
            concurrency: how many questions are asked at once.
            progress: told how it goes.

        Raises:
            InvalidInput: the engine cannot give what a policy asks for.
            KeyboardInterrupt: after Ctrl-C, once the engine is at rest.
        """
        if concurrency < 1:
            raise InvalidInput(f"concurrency={concurrency}: must be at least 1")
        progress = progress or Progress()
        thinkers = {
            label: DeepThink(engine, policy, answer=self._answer, on_trace=progress.trace)
            for label, policy in self.policies.items()
        }
        with warnings.catch_warnings():
            # The report says so, once for each policy.
            warnings.simplefilter("ignore", SignalNeverArmed)
            self._wait(self._run(thinkers, concurrency, progress))

    def interrupt(self) -> None:
        """Aborts what is being generated, from any thread; `run` then returns."""
        self.interrupted = self._halt = True
        for task, loop in list(self._thinking.items()):
            loop.call_soon_threadsafe(task.cancel)

    def report(self) -> Report:
        """The report of what is finished."""
        ids = [question.id for question in self.questions]
        name = Path(self.model).name or self.model
        return summarise(name, ids, self.policies, self._records)

    def close(self) -> None:
        """Closes the run file."""
        if self.file is not None:
            self.file.close()

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs it on a thread of its own: this one may have an event loop, as in notebooks."""
        done: Future[None] = Future()

        def body() -> None:
            try:
                asyncio.run(work)
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        threading.Thread(target=body, name="deepconf-evaluate", daemon=True).start()
        try:
            result_of(done)
        except KeyboardInterrupt:
            self.interrupt()
            result_of(done)
            raise

    async def _run(
        self, thinkers: Mapping[str, DeepThink], concurrency: int, progress: Progress
    ) -> None:
        for label, think in thinkers.items():
            missing = self.missing(label)
            if not missing or self._halt:
                continue
            total = len(self.questions)
            progress.policy(label, total - len(missing), total)
            queue = iter(missing)

            async def work(think: DeepThink = think, queue: Any = queue) -> None:
                for label, question in queue:
                    if self._halt:
                        return
                    record = await self._ask(think, label, question)
                    if record is not None:
                        progress.question(record)

            await asyncio.gather(*(work() for _ in range(min(concurrency, len(missing)))))

    async def _ask(self, think: DeepThink, label: str, question: Question) -> dict[str, Any] | None:
        """One question from its prompt to its line in the file; None if it came to nothing."""
        started = time.time()
        task = asyncio.ensure_future(think.arun(question.question))
        self._thinking[task] = asyncio.get_running_loop()
        if self.interrupted:
            task.cancel()
        where = f"question {question.id!r}, policy {label}"
        try:
            result = await task
        except DeepConfError as error:
            if not self.interrupted:
                kind = InvalidInput if isinstance(error, InvalidInput) else EngineError
                self._fail(kind(f"{where}: {error}"), error)
            return None
        except asyncio.CancelledError:
            if not self.interrupted:
                raise
            return None
        finally:
            del self._thinking[task]
        if result.reason == "cancelled":
            return None
        lost = [trace.error for trace in result.traces if trace.status == "failed"]
        if lost:
            # Not what the policy would have answered: to be asked again another time.
            what = f"{where}: {len(lost)} of {len(result.traces)} traces failed, the first with"
            self._fail(EngineError(f"{what}: {lost[0]}"), halt=False)
            return None
        record = await asyncio.to_thread(_record, label, question, result, started, time.time())
        self._records.append(record)
        self._done.add((label, question.id))
        if self.file is not None:
            try:
                await asyncio.to_thread(self.file.append, record)
            except RunFileError as error:
                self._fail(error)
        return record

    def _fail(
        self, failure: DeepConfError, cause: Exception | None = None, *, halt: bool = True
    ) -> None:
        if self.failure is None or (halt and not self._halt):
            self.failure = failure
            self.failure.__cause__ = cause
        self._halt = self._halt or halt


def evaluate(
    engine: Engine,
    questions: str | Path | Iterable[Question | Mapping[str, Any]],
    policies: Sequence[str] | Mapping[str, Policy] = ("low", "high", "offline"),
    out: str | Path | None = None,
    concurrency: int = 4,
    *,
    limit: int | None = None,
    answer: str | Callable[[str], str | None] = "boxed",
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Asks every question under every policy, and reports accuracy, tokens and time.

    Args:
        engine: generates for all policies.
        questions: a file (see `load_questions`), or `Question`s, or mappings with the same keys.
        policies: names of presets, or policies by any label.
        out: the run file: carries on with what is finished there. None to keep nothing.
        concurrency: how many questions are asked at once.
        limit: the first so many questions only.
        answer: as in `DeepThink`.
        settings: what else must be the same for results to go together; the engine's sampling
            parameters, where it tells them, when None.
        overwrite: starts the run file anew.
        progress: told how it goes.

    Returns:
        The report.

    Raises:
        InvalidInput: questions or policies are wrong, or the engine cannot give what they ask for.
        RunFileError: the run file cannot be used.
        IncompleteRun: it could not go on; `report` is of what is finished, `__cause__` says why.
    """
    if settings is None:
        sampling = getattr(engine, "sampling", None)
        settings = {"sampling": sampling} if isinstance(sampling, dict) else {}
    evaluation = Evaluation(
        questions,
        policies,
        model=engine.model,
        out=out,
        settings=settings,
        limit=limit,
        answer=answer,
        overwrite=overwrite,
    )
    try:
        evaluation.run(engine, concurrency=concurrency, progress=progress)
    finally:
        evaluation.close()
    report = evaluation.report()
    if evaluation.failure is not None:
        raise IncompleteRun(str(evaluation.failure), report) from evaluation.failure
    return report


def _named(policies: Sequence[str] | Mapping[str, Policy]) -> dict[str, Policy]:
    if isinstance(policies, str):
        policies = [policies]
    if isinstance(policies, Mapping):
        named = dict(policies)
    else:
        twice = [name for at, name in enumerate(policies) if name in policies[:at]]
        if twice:
            raise InvalidInput(f"policy {twice[0]!r} is there twice")
        named = {name: Policy.preset(name) for name in policies}
    if not named:
        raise InvalidInput(f"policies: at least one is needed, of {', '.join(Policy.presets())}")
    for label, policy in named.items():
        if not isinstance(policy, Policy):
            raise InvalidType(f"policies[{label!r}] is {policy!r}: must be a deepconf.Policy")
    return named


def _name(answer: Any) -> str:
    return f"{getattr(answer, '__module__', '?')}.{getattr(answer, '__qualname__', repr(answer))}"


def _record(
    label: str, question: Question, result: Result, started: float, ended: float
) -> dict[str, Any]:
    """A finished question as plain JSON values, its traces and its answer marked right or wrong."""
    answers = {trace.answer for trace in result.traces if trace.answer is not None}
    right = marks(sorted(answers), question.answer)
    summary = result.summary()
    for trace in summary["traces"]:
        trace["correct"] = right.get(trace["answer"], False)
    return {
        "policy": label,
        "id": question.id,
        "gold": question.answer,
        "correct": right.get(result.answer, False) if result.answer is not None else False,
        "started": started,
        "ended": ended,
        "result": summary,
    }
