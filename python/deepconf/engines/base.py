"""What every engine does, as a protocol."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from deepconf.errors import EngineError, InvalidInput, InvalidType

__all__ = [
    "ENGINE_THREADS",
    "Chunk",
    "Ending",
    "Engine",
    "Finish",
    "Signal",
    "Step",
    "SteppingEngine",
    "Take",
    "as_messages",
    "check_counted",
    "generate_by_stream",
    "result_of",
    "settings_of",
]

T = TypeVar("T")

ENGINE_THREADS: WeakSet[threading.Thread] = WeakSet()
"""Threads of engines' event loops, on which nothing may wait for an engine."""


@dataclass(frozen=True, slots=True)
class Signal:
    """What a policy wants of the log-probabilities."""

    top_logprobs: int = 20
    """k, how many of the most likely tokens count."""
    entries: Literal["topk", "returned"] = "topk"
    """Exactly the top k, or the sampled token too where it is not among them."""
    logprob_floor: float | None = None
    """Raises smaller log-probabilities to this, nats."""
    window: int = 2048
    """w, tokens in a group; this and what follows are for engines that stop traces themselves."""
    threshold: float | None = None
    """s, nats: this trace stops where a group falls below it; None where it may not."""
    online: bool = False
    """Whether traces of the run may stop, those of the warmup apart."""


Finish = Literal["finished", "length", "aborted"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of one trace."""

    confidence: NDArray[np.float32]
    """Their token confidences, float32 `[n_new]`, nats."""
    num_tokens: int
    """How many there are; more than `confidence` has where one came without log-probabilities."""
    text: str
    """Text to append. An engine that decodes at the end gives all of it in the last chunk."""
    finish_reason: Finish | None
    """Set on the last chunk only."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of an engine generated, of the traces of one run."""

    traces: Sequence[int]
    """`[n]`, the trace of each token; a trace's own stand together and in order."""
    confidence: NDArray[np.float32]
    """Their token confidences, float32 `[n]`, nats."""
    unscored: Mapping[int, int] = field(default_factory=dict)
    """By trace, how many tokens more came without log-probabilities."""
    relaunched: Sequence[int] = ()
    """Traces that broke off and begin anew before these tokens: what came of them is void."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a trace ended."""

    finish_reason: Finish
    text: str
    """All of it."""
    final: str | None = None
    """The part that answers, where the engine tells it from reasoning; None for all of it."""


Take = Callable[[Step], Collection[int]]
"""Takes a step in and says which of its traces are to be aborted."""


class Engine(Protocol):
    """Generates traces of one model.

    An engine owns an event loop, on which `stream` and `abort` are called. It is also a context
    manager, which closes it.

    It may have more, which is used where it is there: `misfit(traces, prompt, sampling)`, what to
    warn of before so many traces are generated at once, or None; `remarks(request_ids)`, what the
    reader of their result must know, asked once when all have ended; and `capabilities`, what it
    was found to give, with `as_dict()` for JSON and a `str` for people.
    """

    model: str
    """The model's name or folder."""

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs a coroutine on the engine's event loop."""
        ...

    def check(self, signal: Signal, sampling: Mapping[str, Any] | None = None) -> None:
        """Raises `InvalidInput`, saying what to set, when it cannot give this signal.

        Also where `sampling`, the parameters of one run, does not suit it.
        """
        ...

    def settings(self, sampling: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What of its settings results depend on, as JSON values; with a run's own `sampling`.

        Two engines with the same settings and model are the same to an evaluation that carries on.
        """
        ...

    def prepare(self, question: str | Sequence[Mapping[str, Any]]) -> Any:
        """A prompt or chat messages as what `stream` takes; done once a question."""
        ...

    def stream(
        self,
        prompt: Any,
        *,
        request_id: str,
        seed: int | None,
        signal: Signal,
        sampling: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[Chunk]:
        """Generates one trace.

        The last chunk has a `finish_reason`: after an abort too, which then brings the text so
        far.

        Args:
            prompt: what `prepare` gave.
            request_id: its name, for `abort`.
            seed: what to sample with; None for the engine to draw for itself.
            signal: what log-probabilities are wanted.
            sampling: the run's parameters, over those of the engine.

        Raises:
            EngineDied: nothing can be generated any more, of this trace or any other.
            Exception: anything else is this trace's failure, and no other's.
        """
        ...

    async def abort(self, request_ids: Sequence[str]) -> None:
        """Ends these traces, whose `stream` has begun; those that have ended are left alone."""
        ...

    async def late_tokens(self, request_ids: Sequence[str]) -> dict[str, int]:
        """Tokens of aborted traces that came too late for their `stream`, by request.

        Asked once, when all of these have ended; waits until what is on its way has come.
        """
        ...

    def close(self) -> None:
        """Frees everything; may be called again."""
        ...

    def __enter__(self) -> Engine:
        """The engine itself."""
        ...

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        ...


class SteppingEngine(Engine, Protocol):
    """An engine that hands over whole steps, which costs less than a stream for each trace."""

    async def generate_into(
        self,
        take: Take,
        prompt: Any,
        *,
        trace: int,
        request_id: str,
        seed: int | None,
        signal: Signal,
        sampling: Mapping[str, Any] | None = None,
    ) -> Ending:
        """Generates one trace to its end, as `stream` does; its tokens go into `take`.

        Those of all traces with an equal `take` that one step brings come in one call, on the event
        loop; what it returns is aborted. No token of a trace comes after its end.

        Args:
            take: where the tokens go.
            prompt: what `prepare` gave.
            trace: what its tokens are marked with.
            request_id: its name, for `abort`.
            seed: what to sample with; None for the engine to draw for itself.
            signal: what log-probabilities are wanted.
            sampling: the run's parameters, over those of the engine.

        Raises:
            EngineDied: nothing can be generated any more, of this trace or any other.
            Exception: anything else is this trace's failure, and no other's.
        """
        ...


async def generate_by_stream(
    engine: Engine, take: Take, prompt: Any, *, trace: int, request_id: str, **options: Any
) -> Ending:
    """`SteppingEngine.generate_into` of an engine that streams: every chunk is a step.

    Raises:
        EngineError: the stream ended without saying why.
        Exception: whatever the engine raises.
    """
    texts: list[str] = []
    stream = engine.stream(prompt, request_id=request_id, **options)
    try:
        async for chunk in stream:
            scored, reason = len(chunk.confidence), chunk.finish_reason
            texts.append(chunk.text)
            unscored = {trace: chunk.num_tokens - scored} if chunk.num_tokens != scored else {}
            unwanted = take(Step([trace] * scored, chunk.confidence, unscored))
            if reason in ("finished", "length", "aborted"):
                return Ending(reason, "".join(texts))
            if reason is not None:
                raise EngineError(
                    f"finish_reason={reason!r} of trace {trace}: must be 'finished', 'length' or "
                    "'aborted'"
                )
            if unwanted:
                with contextlib.suppress(Exception):  # It then runs to its end.
                    await engine.abort([request_id])
    finally:
        if hasattr(stream, "aclose"):  # The engine is to be at rest when the run is over.
            with contextlib.suppress(Exception):
                await stream.aclose()
    raise EngineError(f"the engine ended trace {trace} without saying why")


def settings_of(engine: Engine, sampling: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the engine says that results depend on; its sampling parameters where it says nothing.

    Engines of others may be written after an older protocol.
    """
    if hasattr(engine, "settings"):
        return engine.settings(sampling)
    own = getattr(engine, "sampling", None)
    merged = {**(own if isinstance(own, Mapping) else {}), **(sampling or {})}
    return {"sampling": merged} if merged else {}


def result_of(future: Future[T], timeout: float | None = None) -> T:
    """Waits for a future and gives its result; Ctrl-C gets through within a moment.

    A plain `future.result()` is deaf to it where a library, such as polars, has put in a signal
    handler that does not interrupt system calls.

    Raises:
        EngineError: on an engine's own thread, where it would wait for ever.
        TimeoutError: it is not done after `timeout` seconds.
    """
    if threading.current_thread() in ENGINE_THREADS and not future.done():
        raise EngineError("an engine's own thread cannot wait for a run: await arun(), or return")
    end = None if timeout is None else time.monotonic() + timeout
    while not future.done():
        left = 0.2 if end is None else min(0.2, end - time.monotonic())
        if left <= 0:
            raise TimeoutError(f"not done after {timeout} seconds")
        wait([future], timeout=left)
    return future.result()


def check_counted(k: int | None, entries: str) -> None:
    """Refuses what makes no token confidence.

    Args:
        k: how many of the most likely tokens count; None for all.
        entries: which entries of a token do.

    Raises:
        InvalidInput: fewer than two of them, or entries that there are not.
    """
    if entries not in ("topk", "returned"):
        raise InvalidInput(f"entries={entries!r}: must be 'topk' or 'returned'")
    if k is not None and k < 2:
        raise InvalidInput(
            f"k={k}: must be at least 2 (minus the log-probability of the likeliest token alone is "
            "lowest where the model is surest; the paper takes 20), or None for all that there are"
        )


def as_messages(question: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A question as chat messages; a string is one message of the user.

    Raises:
        InvalidInput: a message has no role or content, or there is none.
        InvalidType: it is neither a string nor a sequence.
    """
    if isinstance(question, str):
        return [{"role": "user", "content": question}]
    if not isinstance(question, Sequence) or isinstance(question, (bytes, bytearray)):
        kind = type(question).__name__
        raise InvalidType(f"the question is a {kind}: must be a string or chat messages")
    if not question:
        raise InvalidInput("the question has no messages: must have at least one")
    if all(isinstance(message, str) for message in question):
        raise InvalidInput(
            f"the question is {len(question)} strings: must be one, or chat messages; several "
            "questions are asked one by one, or at once by asyncio.gather of arun"
        )
    messages: list[dict[str, Any]] = []
    for place, message in enumerate(question):
        if not (isinstance(message, Mapping) and "role" in message and "content" in message):
            raise InvalidInput(
                f"message {place} of the question is {message!r}: must be a mapping with role and "
                "content"
            )
        messages.append(dict(message))
    return messages
