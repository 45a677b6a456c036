"""An engine that plays traces back: the `Engine` protocol on arrays, deterministic and fast."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
from deepconf.engines.base import Chunk, Signal
from deepconf.errors import EngineDied, EngineError, InvalidInput

T = TypeVar("T")

Recorded = tuple[Any, str, str]
"""Token confidences, text, and how it ended: `finished`, `length`; `failed`, an error; or
`died`, the end of the engine."""


class RecordedEngine:
    """Plays back traces; the trace is found by its seed.

    Args:
        traces: `[traces]` of (confidences float32 `[n]`, text, finish reason); or such a list for
            each question, by the question.
        base_seed: the seed of trace 0.
        chunk: tokens in a chunk.
        delays: seconds before each chunk, for all traces or one each.

    Abort is honoured between chunks and during delays; the last chunk then says "aborted".

    Attributes:
        started: how often each question was prepared.
        aborted: request ids that were asked to end.
        sampled: the sampling parameters of each stream.
        late: tokens to be told of by `late_tokens`, by request.
        running, most_running: streams that are open now, and were at the same time.
    """

    model = "recorded"

    def __init__(
        self,
        traces: Sequence[Recorded] | Mapping[str, Sequence[Recorded]],
        *,
        base_seed: int = 0,
        chunk: int = 8,
        delays: float | Sequence[float] = 0.0,
        max_logprobs: int = 20,
    ) -> None:
        self._traces = traces
        self._base_seed = base_seed
        self._chunk = chunk
        self._delays = delays
        self._max_logprobs = max_logprobs
        self._aborts: dict[str, asyncio.Event] = {}
        self.started: Counter[str] = Counter()
        self.aborted: list[str] = []
        self.sampled: list[Mapping[str, Any] | None] = []
        self.late: dict[str, int] = {}
        self.running = self.most_running = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="recorded-engine", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._rest())
        self._loop.close()

    async def _rest(self) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        if not self._thread.is_alive():
            coroutine.close()
            raise EngineError("the engine is closed")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def settings(self, sampling: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return {"sampling": dict(sampling)} if sampling else {}

    def check(self, signal: Signal, sampling: Mapping[str, Any] | None = None) -> None:
        if signal.top_logprobs > self._max_logprobs:
            raise InvalidInput(
                f"top_logprobs={signal.top_logprobs}: {self._max_logprobs} were recorded"
            )

    def prepare(self, question: str | Sequence[Mapping[str, Any]]) -> Any:
        text = question if isinstance(question, str) else str(question[-1]["content"])
        if isinstance(self._traces, Mapping):
            if text not in self._traces:
                raise InvalidInput(f"nothing was recorded for {text!r}")
            traces = self._traces[text]
        else:
            traces = self._traces
        self.started[text] += 1
        return traces

    async def stream(
        self,
        prompt: Any,
        *,
        request_id: str,
        seed: int | None,
        signal: Signal,
        sampling: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[Chunk]:
        # As a rule the trace is found by its seed; without one, by its place in the run.
        number = int(request_id.rsplit("-", 1)[1])
        trace = number if seed is None else seed - self._base_seed
        self.sampled.append(sampling)
        if not 0 <= trace < len(prompt):
            raise EngineError(f"seed {seed} is not among the {len(prompt)} recorded traces")
        values, text, reason = prompt[trace]
        confidences = np.asarray(values, np.float32)
        delay = self._delays if isinstance(self._delays, float) else self._delays[trace]
        abort = self._aborts.setdefault(request_id, asyncio.Event())
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            for start in range(0, max(len(confidences), 1), self._chunk):
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(abort.wait(), delay or 1e-6)
                if abort.is_set():
                    yield Chunk(np.empty(0, np.float32), 0, "", "aborted")
                    return
                part = confidences[start : start + self._chunk]
                last = start + self._chunk >= len(confidences)
                if last and reason == "failed":
                    raise EngineError(f"request {request_id} was recorded as failed")
                if last and reason == "died":
                    raise EngineDied("the engine was recorded as dead")
                ending: Any = reason if last else None
                yield Chunk(part, len(part), text if last else "", ending)
        finally:
            self.running -= 1
            del self._aborts[request_id]

    async def abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self.aborted.append(request_id)
            if request_id in self._aborts:
                self._aborts[request_id].set()

    async def late_tokens(self, request_ids: Sequence[str]) -> dict[str, int]:
        return {name: self.late.pop(name) for name in request_ids if name in self.late}

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def __enter__(self) -> RecordedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def recorded(
    level: float, answer: str | None, *, tokens: int = 24, reason: str = "finished"
) -> Recorded:
    """A trace with one confidence throughout."""
    text = "no idea" if answer is None else f"thinking \\boxed{{{answer}}}"
    return np.full(tokens, level, np.float32), text, reason
