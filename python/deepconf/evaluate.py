"""Evaluation: many questions under several policies on one engine, resumable.

>>> import deepconf
>>> from deepconf.evaluate import evaluate
>>> engine = deepconf.engines.VLLM("examples/tiny-reasoner/model")        # doctest: +SKIP
>>> policies = {"low": deepconf.Policy.low(window=32), "offline": deepconf.Policy.offline()}
>>> report = evaluate(engine, "questions.jsonl", policies, "run.jsonl")   # doctest: +SKIP
>>> print(report.table())                                                 # doctest: +SKIP

Policies run one after the other, so that each has its own wall time; their questions run at once.
With `out` every finished question goes to a file, and the same call again carries on. With `record`
the traces of one policy, each token's confidence and text, are kept too.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deepconf._bars import watched
from deepconf._core import Policy
from deepconf._progress import Guarded, Progress
from deepconf._reckoning import summarise
from deepconf.answers import extractor, marks
from deepconf.deepthink import DeepThink
from deepconf.engines.base import Engine, result_of, settings_of
from deepconf.errors import (
    DeepConfError,
    DeepConfWarning,
    EngineDied,
    EngineError,
    InvalidInput,
    InvalidType,
    MissingExtra,
    RunFileError,
    RunWarning,
)
from deepconf.provenance import code_name, fingerprint, trace_settings, versions
from deepconf.questions import Question, load_questions, posed, read_questions
from deepconf.recording import Recording, check_target, journal_of
from deepconf.report import Report
from deepconf.result import Result
from deepconf.runs import RunFile

if TYPE_CHECKING:
    from deepconf.deepthink import Thinking

__all__ = [
    "Evaluation",
    "IncompleteRun",
    "Progress",
    "ProgressWarning",
    "Question",
    "evaluate",
    "load_questions",
]


class IncompleteRun(DeepConfError, RuntimeError):
    """An evaluation that had to stop; `report` is of what is finished, `__cause__` says why."""

    def __init__(self, message: str, report: Report) -> None:
        self.report = report
        super().__init__(message)


class ProgressWarning(RunWarning):
    """A `Progress` that failed; where warnings are errors, `report` is what was reckoned."""

    def __init__(self, message: str, report: Report) -> None:
        self.report = report
        super().__init__(message)


class Evaluation:
    """What is to be run, and what is finished of it; needs no engine before `run`.

    Args:
        questions: a file (see `load_questions`), or `Question`s, or mappings with the same keys.
        policies: names of presets, or policies by any label.
        model: its name or folder, as the run file has it.
        out: the run file; None to keep nothing.
        settings: what of the engine's settings results depend on, as `Engine.settings(sampling)`
            says.
        sampling: parameters of this run, over those of the engine.
        limit: the first so many questions only.
        answer: as in `DeepThink`. With `out`, a callable must have something to be told by, see
            `deepconf.provenance.code_name`.
        math: as in `DeepThink`; marking follows it too.
        system: a system message, put before every question.
        suffix: appended to every question, see `deepconf.questions.posed`.
        max_failed: the share of a question's traces that may fail, in [0, 1). With more of them
            the question is not saved, and is asked again when the run is carried on.
        overwrite: starts the run file anew, once there is an engine, and the recording with it.
        record: the trace file to be of one policy's traces, see `deepconf.recording`: of the only
            policy, or the only offline one. Must be on from the first question, and needs `out`.

    Attributes:
        recording: where traces are kept, None where they are not.
        failure: what stopped the run or kept a question from being saved, None if nothing did.
        complaint: what a `Progress` raised first, None if nothing.
        interrupted: whether it was told to stop.
        unsaved: records that were finished and could not be written to the run file.

    Raises:
        InvalidInput: questions, policies or another argument are wrong.
        MissingExtra: `math=True` and math-verify is not installed; `record` and pyarrow is not.
        RunFileError: see `RunFile` and `Recording`.
    """

    def __init__(
        self,
        questions: str | Path | Iterable[Question | Mapping[str, Any]],
        policies: Sequence[str] | Mapping[str, Policy],
        *,
        model: str,
        out: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
        sampling: Mapping[str, Any] | None = None,
        limit: int | None = None,
        answer: Any = "boxed",
        math: Literal["auto"] | bool = "auto",
        system: str | None = None,
        suffix: str | None = None,
        max_failed: float = 0.1,
        overwrite: bool = False,
        record: str | Path | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise InvalidInput(f"limit={limit}: must be at least 1")
        if isinstance(max_failed, bool) or not isinstance(max_failed, int | float):
            raise InvalidType(f"max_failed={max_failed!r}: must be a number in [0, 1)")
        if not 0.0 <= max_failed < 1.0:
            raise InvalidInput(f"max_failed={max_failed}: must be in [0, 1)")
        extractor(answer)  # Says at once what is wrong with it.
        every, digest = read_questions(questions)
        self.model = model
        self.questions = every[:limit]
        self.policies = _named(policies)
        self.recorded: str | None = None
        """The policy whose traces are recorded."""
        if record is not None:
            self.recorded = _recorded(record, out, self.policies, self.questions)
        self.failure: DeepConfError | None = None
        self.complaint: str | None = None
        self.interrupted = False
        self._prompts = {
            question.id: _prompt(question, system, suffix) for question in self.questions
        }
        self._answer = answer
        self._math = _math(math)
        self._sampling = None if sampling is None else dict(sampling)
        self._max_failed = max_failed
        self._halt = False
        self._failures = 0
        self.unsaved: list[dict[str, Any]] = []
        self._thinking: set[Thinking] = set()
        self.file: RunFile | None = None
        self.recording: Recording | None = None
        if out is not None:
            header = {
                "model": model,
                "model_fingerprint": fingerprint(model),
                "questions_sha256": digest,
                "system": system,
                "suffix": suffix,
                "answer": _answer_name(answer),
                "math": self._math,
                "settings": dict(settings or {}),
                "policies": {label: policy.as_dict() for label, policy in self.policies.items()},
                "versions": versions(),
            }
            self.file = RunFile(out, header, overwrite=overwrite)
            if record is not None:
                try:
                    self.recording = self._start_recording(record, header, overwrite)
                except BaseException:
                    self.file.close()
                    raise
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

        A question that cannot be answered, or of which too many traces fail, is left out, and the
        others go on. When the engine has died or a question cannot be saved, those in flight are
        aborted and no more are asked. `failure` says why. Ctrl-C aborts those in flight.

        Args:
            engine: generates for all policies.
            concurrency: how many questions are asked at once.
            progress: told how it goes.

        Raises:
            InvalidInput: the engine cannot give what a policy asks for.
            RunFileError: the run file could not be started anew.
            KeyboardInterrupt: after Ctrl-C, once the engine is at rest.
        """
        if concurrency < 1:
            raise InvalidInput(f"concurrency={concurrency}: must be at least 1")
        guarded = Guarded(progress or Progress())
        thinkers = {
            label: DeepThink(
                engine,
                policy,
                answer=self._answer,
                math=self._math,
                sampling=self._sampling,
                on_trace=guarded.trace,
            )
            for label, policy in self.policies.items()
        }
        if self.recording is not None:
            self.recording.begin()
        if self.file is not None:
            capabilities = getattr(engine, "capabilities", None)
            if capabilities is not None:
                self.file.note(capabilities=capabilities.as_dict())
            self.file.begin()
        try:
            with warnings.catch_warnings():
                # The report says so, once for each policy.
                warnings.simplefilter("ignore", DeepConfWarning)
                self._wait(self._run(thinkers, concurrency, guarded))
        finally:
            self.complaint = self.complaint or guarded.complaint

    def seal(self, progress: Callable[[int, int], object] | None = None) -> None:
        """Makes the recording's trace file, where all its questions are finished.

        To be called when `run` has returned; where it fails, `failure` says why, and nothing that
        was finished is lost.

        Args:
            progress: told how many questions are written, from 0, and of how many.
        """
        if self.recording is None or self.missing(self.recorded):
            return
        try:
            self.recording.seal(progress)
        except DeepConfError as error:
            self._fail(error)

    @property
    def is_recorded(self) -> bool:
        """Whether the recording is complete, and its trace file made."""
        recording = self.recording
        return recording is not None and recording.where == recording.path

    def interrupt(self) -> None:
        """Aborts what is being generated, from any thread; `run` then returns."""
        self.interrupted = self._halt = True
        self._abort()

    def report(self) -> Report:
        """The report of what is finished, and saved where there is a run file."""
        ids = [question.id for question in self.questions]
        name = "/".join(Path(self.model).parts[-2:]) or self.model  # Many folders are a `model`.
        report = summarise(name, ids, self.policies, self._records)
        report.notes.extend(_of_servers(self._records))
        if self.complaint is not None:
            report.notes.append(self.complaint)
        return report

    def incomplete(self) -> IncompleteRun | None:
        """What to raise where something stopped the run, None otherwise.

        It says how much is finished, where, and what was lost.
        """
        if self.failure is None:
            return None
        missing = len(self.missing())
        total = len(self.questions) * len(self.policies)
        parts = [str(self.failure).rstrip(".")]
        if self._failures > 1:
            parts.append(f"{self._failures - 1} more failed")
        if self.unsaved:
            names = ", ".join(f"{record['id']!r} ({record['policy']})" for record in self.unsaved)
            parts.append(f"finished but not saved: {names}")
        standing = f"{total - missing} of {total} questions are finished"
        if self.file is not None:
            standing += f" and in {self.file.path}: the same call or command carries on"
        error = IncompleteRun("; ".join([*parts, standing]), self.report())
        error.__cause__ = self.failure
        return error

    def close(self) -> None:
        """Closes the run file and the recording."""
        if self.file is not None:
            self.file.close()
        if self.recording is not None:
            self.recording.close()

    def _start_recording(
        self, path: str | Path, header: Mapping[str, Any], overwrite: bool
    ) -> Recording:
        assert self.file is not None, "the run file says what is finished"
        label = self.recorded
        assert label is not None, "one policy is recorded"
        sampling = header["settings"].get("sampling", {})
        sampling = sampling if isinstance(sampling, Mapping) else None
        return Recording(
            path,
            {**{key: header[key] for key in header if key != "policies"}, "recorded_policy": label},
            trace_settings(self.model, self.policies[label], sampling),
            finished=[record["id"] for record in self.file.records if record["policy"] == label],
            overwrite=overwrite,
        )

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
        except BaseException:
            if not done.done():
                self.interrupt()
                result_of(done)
            raise

    async def _run(
        self, thinkers: Mapping[str, DeepThink], concurrency: int, progress: Progress
    ) -> None:
        saving = asyncio.Lock()
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
                    record = await self._ask(think, label, question, saving)
                    if record is not None:
                        progress.question(record)

            await asyncio.gather(*(work() for _ in range(min(concurrency, len(missing)))))

    async def _ask(
        self, think: DeepThink, label: str, question: Question, saving: asyncio.Lock
    ) -> dict[str, Any] | None:
        """One question from its prompt to its line in the file; None if it came to nothing."""
        started = time.time()
        where = f"question {question.id!r}, policy {label}"
        try:
            result = await self._think(think, self._prompts[question.id])
        except Exception as error:  # An engine's `prepare` may raise what it likes.
            self._fail_question(where, error)
            return None
        if result.reason == "cancelled":
            return None
        lost = [trace.error for trace in result.traces if trace.status == "failed"]
        if len(lost) > self._max_failed * len(result.traces):
            # Not what the policy would have answered: to be asked again another time.
            self._fail(
                EngineError(
                    f"{where}: {len(lost)} of {len(result.traces)} traces failed, more than "
                    f"max_failed={self._max_failed:g} allows, the first with: {lost[0]}"
                )
            )
            return None
        record = await asyncio.to_thread(
            _record, label, question, result, started, time.time(), self._math
        )
        if self.file is not None:
            try:
                # One at a time, so that a kill leaves no more than one in the recording only.
                async with saving:
                    await asyncio.to_thread(self._save, record, result)
            except RunFileError as error:
                self.unsaved.append(record)
                if len(self.unsaved) == 1:
                    self._fail(error, halt=True)
                    self._abort()
                return None
        self._records.append(record)
        self._done.add((label, question.id))
        return record

    def _save(self, record: dict[str, Any], result: Result) -> None:
        """Its traces to the recording, and then its line to the run file."""
        assert self.file is not None, "there is a run file"
        recording = self.recording if record["policy"] == self.recorded else None
        if recording is None:
            self.file.append(record)
            return
        correct = [trace["correct"] for trace in record["result"]["traces"]]
        recording.append(record["id"], result, correct, record["gold"])
        try:
            self.file.append(record)
        except BaseException:
            recording.take_back()
            raise

    async def _think(self, think: DeepThink, prompt: Any) -> Result:
        thinking = think.start(prompt)
        self._thinking.add(thinking)
        try:
            if self.interrupted:
                thinking.cancel()
            return await thinking
        except DeepConfWarning as warning:  # Another thread may have made them errors.
            if warning.result is None:
                raise
            return warning.result
        finally:
            self._thinking.discard(thinking)

    def _abort(self) -> None:
        for thinking in list(self._thinking):
            thinking.cancel()

    def _fail_question(self, where: str, error: Exception) -> None:
        """A question that came to nothing."""
        if self.interrupted:
            return
        text = f"{where}: {error if isinstance(error, DeepConfError) else repr(error)}"
        if isinstance(error, EngineDied):
            self._fail(EngineDied(text), error, halt=True)
            self._abort()
        elif isinstance(error, InvalidInput):
            self._fail(InvalidInput(text), error)
        else:
            self._fail(EngineError(text), error)

    def _fail(
        self, failure: DeepConfError, cause: Exception | None = None, *, halt: bool = False
    ) -> None:
        self._failures += 1
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
    sampling: Mapping[str, Any] | None = None,
    limit: int | None = None,
    answer: str | Callable[[str], str | None] = "boxed",
    math: Literal["auto"] | bool = "auto",
    system: str | None = None,
    suffix: str | None = None,
    max_failed: float = 0.1,
    overwrite: bool = False,
    progress: Progress | bool | None = None,
    record: str | Path | None = None,
) -> Report:
    """Asks every question under every policy, and reports accuracy, tokens and time.

    Args:
        engine: generates for all policies.
        questions: a file (see `load_questions`), or `Question`s, or mappings with the same keys.
        policies: names of presets, or policies by any label.
        out: the run file: carries on with what is finished there. None to keep nothing.
        concurrency: how many questions are asked at once.
        sampling: parameters of this run, over those of the engine.
        limit: the first so many questions only.
        answer: as in `DeepThink`. With `out`, a callable must have something to be told by, see
            `deepconf.provenance.code_name`.
        math: as in `DeepThink`; marking follows it too.
        system: a system message, put before every question.
        suffix: appended to every question, see `deepconf.questions.posed`.
        max_failed: the share of a question's traces that may fail, in [0, 1). With more of them
            the question is not saved, and is asked again when the run is carried on.
        overwrite: starts the run file anew, and the recording with it.
        progress: told how it goes; True for bars on standard error.
        record: a trace file (`.parquet`, `.arrow` or `.feather`) for all traces of the only policy,
            or of the only offline one. Until every question is finished it is `RECORD.part`, which
            `read_traces` reads as well. Must be on from the first question, and needs `out`.

    Returns:
        The report.

    Raises:
        InvalidInput: questions or policies are wrong, or the engine cannot give what they ask for.
        MissingExtra: `math=True` and math-verify is not installed; `record` and pyarrow is not.
        RunFileError: the run file or the recording cannot be used.
        IncompleteRun: it could not go on, or left out a question; `report` is of what is finished,
            `__cause__` says why.
    """
    if sampling is not None and not isinstance(sampling, Mapping):
        raise InvalidType(f"sampling={sampling!r}: must be a mapping, such as a dict")
    evaluation = Evaluation(
        questions,
        policies,
        model=engine.model,
        out=out,
        settings=settings_of(engine, sampling),
        sampling=sampling,
        limit=limit,
        answer=answer,
        math=math,
        system=system,
        suffix=suffix,
        max_failed=max_failed,
        overwrite=overwrite,
        record=record,
    )
    try:
        with watched(progress) as told:
            evaluation.run(engine, concurrency=concurrency, progress=told)
        evaluation.seal()
    finally:
        evaluation.close()
    if (stopped := evaluation.incomplete()) is not None:
        raise stopped
    report = evaluation.report()
    if evaluation.complaint is not None:
        warnings.warn(ProgressWarning(evaluation.complaint, report), stacklevel=2)
    return report


def _recorded(
    path: str | Path,
    out: str | Path | None,
    policies: Mapping[str, Policy],
    questions: Sequence[Question],
) -> str:
    """Whose traces are recorded."""
    if not isinstance(path, str | Path):
        raise InvalidType(f"record={path!r}: must be a path")
    if "\0" in str(path):
        raise InvalidInput(f"record={str(path)!r}: is no path")
    if out is None:
        raise InvalidInput(
            f"record={str(path)!r} needs out, a run file: it says which questions are finished"
        )
    target = Path(path).expanduser()
    check_target(target, f"record={str(path)!r}")
    if Path(out).expanduser().absolute() in (target.absolute(), journal_of(target).absolute()):
        raise InvalidInput(f"record={str(path)!r} and out={str(out)!r}: must be two files")
    for question in questions:
        try:
            question.id.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"the id {question.id!r} cannot be recorded: {error}") from error
    offline = [label for label, policy in policies.items() if policy.mode == "offline"]
    if len(policies) > 1 and len(offline) != 1:
        raise InvalidInput(
            f"record={str(path)!r}: of several policies the offline one is recorded, whose traces "
            f"are all complete, and {len(offline)} of {', '.join(policies)} are offline: ask for "
            "one policy, or for one offline policy among others"
        )
    return (offline if len(policies) > 1 else list(policies))[0]


def _of_servers(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Notes on servers: what they were found to give, and what was generated in vain."""
    from deepconf.engines.openai import Capabilities

    results = [record["result"] for record in records]
    found = [one for result in results if (one := result.get("capabilities"))]
    each = {json.dumps(one, sort_keys=True): one for one in found}
    notes = [str(Capabilities.of(one)) for one in each.values()]
    again = [t for result in results for t in result["traces"] if t.get("tries", 1) > 1]
    if again:
        lost = sum(result["tokens"].get("lost", 0) for result in results)
        notes.append(
            f"{len(again)} traces broke off and began anew: the {lost} tokens that were given up "
            "are in no figure"
        )
    return notes


def _answer_name(answer: Any) -> str:
    if isinstance(answer, re.Pattern) and re.compile(answer.pattern).flags == answer.flags:
        return f"regex:{answer.pattern}"  # As the same expression is given in words.
    return answer if isinstance(answer, str) else code_name(answer)


def _prompt(question: Question, system: str | None, suffix: str | None) -> Any:
    try:
        return posed(question.question, system=system, suffix=suffix)
    except InvalidInput as error:
        raise InvalidInput(f"question {question.id!r}: {error}") from error


def _math(math: Literal["auto"] | bool) -> bool:
    """Whether answers are compared by algebra."""
    if math not in ("auto", True, False):
        raise InvalidInput(f'math={math!r}: must be "auto", True or False')
    installed = importlib.util.find_spec("math_verify") is not None
    if math is True and not installed:
        raise MissingExtra("math", "math-verify")
    return installed if math == "auto" else bool(math)


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


def _record(
    label: str, question: Question, result: Result, started: float, ended: float, math: bool
) -> dict[str, Any]:
    """A finished question as plain JSON values, its traces and its answer marked right or wrong.

    None where nothing is known to compare with.
    """
    answers = {trace.answer for trace in result.traces if trace.answer is not None}
    gold = question.answer
    right = {} if gold is None else marks(sorted(answers), gold, math=math)

    def mark(answer: str | None) -> bool | None:
        return None if gold is None else answer is not None and right[answer]

    summary = result.summary()
    for trace in summary["traces"]:
        trace["correct"] = mark(trace["answer"])
    return {
        "policy": label,
        "id": question.id,
        "gold": question.answer,
        "correct": mark(result.answer),
        "started": started,
        "ended": ended,
        "result": summary,
    }
