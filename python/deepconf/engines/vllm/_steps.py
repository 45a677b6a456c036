"""Takes the tokens of our requests out of vLLM's hands, a step at a time.

vLLM's engine core sends the outputs of a whole step, with log-probabilities as arrays, and its
output processor makes lists, objects and wake-ups of them for each request. `Steps` stands in front
of it: it computes the confidences of a step at once and keeps 4 bytes a token, and leaves to vLLM
how a request begins and how it ends. So statistics, tracing, admission and aborts stay vLLM's. What
is taken for granted of vLLM's inside is what `misfits` looks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress
from typing import Any

import numpy as np

from deepconf._core import row_confidences
from deepconf.engines.base import Signal, Step, Take
from deepconf.errors import InvalidInput

__all__ = ["Request", "Steps", "misfits"]

# How many aborted requests that nobody asked about are remembered.
_REMEMBERED = 100_000


class Request:
    """One of our requests: its tokens, and how it ended."""

    def __init__(self, name: str, trace: int, *, detokenized: bool, inside: bool) -> None:
        self.name = name
        self.trace = trace
        self.detokenized = detokenized  # By vLLM, as it goes, to find stop strings.
        self.inside = inside  # Scored in the worker, which is asked at its end.
        self.tokens = array("i")
        self.text = ""  # Where it is detokenized.
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self.batch: _Batch

    def drop_last(self, count: int) -> None:
        """Takes tokens back that were forced, out of the text as well."""
        if count:
            del self.tokens[-count:]
            self.finish_reason, self.detokenized = "abort", False


class _Batch:
    """Requests whose tokens go to one place, and what the step at hand has brought of them."""

    def __init__(self, take: Take, signal: Signal) -> None:
        self.take = take
        self.signal = signal
        self.size = 0
        self.clear()

    def clear(self) -> None:
        self.members: dict[Request, None] = {}  # In order.
        self.requests: list[Request] = []  # One for each token that has log-probabilities.
        self.rows: list[Any] = []
        self.ranks: list[Any] = []
        self.unscored: dict[int, int] = {}
        self.failed: set[int] = set()

    def add(self, request: Request, tokens: Sequence[int], logprobs: Any) -> None:
        self.members[request] = None
        request.tokens.extend(tokens)
        count, width = len(tokens), self.signal.top_logprobs + 1
        if logprobs is None:
            self._leave(request, count)
            return
        rows = logprobs.logprobs
        if rows.shape[1] < width:
            self._leave(request, count)
            self.failed.add(request.trace)
            request.error = InvalidInput(
                f"logprobs has shape {rows.shape}: must have the sampled token and the "
                f"k={width - 1} most likely in each row"
            )
            return
        if rows.shape != (count, width):  # What followed a stop string was cut off.
            rows = rows[:count, :width]
        self.rows.append(rows)
        self.requests += [request] * len(rows)
        self._leave(request, count - len(rows))
        if self.signal.entries == "returned":
            self.ranks.append(logprobs.sampled_token_ranks[: len(rows)])

    def _leave(self, request: Request, count: int) -> None:
        """Counts tokens that cannot be scored."""
        if count:
            self.unscored[request.trace] = self.unscored.get(request.trace, 0) + count

    def step(self) -> Step:
        if not self.rows:
            return Step([], np.empty(0, np.float32), self.unscored)
        k, floor = self.signal.top_logprobs, self.signal.logprob_floor
        ranks = np.concatenate(self.ranks) if self.ranks else None
        confidence = row_confidences(np.concatenate(self.rows), k, ranks, floor)
        sound = np.isfinite(confidence)
        if not sound.all():
            self._give_up({self.requests[token] for token in np.flatnonzero(~sound)})
            sound = np.array([request.error is None for request in self.requests])
            confidence = confidence[sound]
        requests = self.requests if sound.all() else compress(self.requests, sound)
        return Step([request.trace for request in requests], confidence, self.unscored)

    def _give_up(self, requests: set[Request]) -> None:
        """What these brought is counted, and cannot be scored."""
        for request in requests:
            self._leave(request, self.requests.count(request))
            self.failed.add(request.trace)
            request.error = InvalidInput(
                f"log-probabilities of request {request.name} are not finite, at the latest at "
                f"token {len(request.tokens)}: where masked tokens are -inf, set logprob_floor"
            )


class Steps:
    """Stands in front of the output processor of an `AsyncLLM` in which `misfits` finds nothing."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._processor = llm.output_processor
        self._running: dict[str, Any] = self._processor.request_states
        self._plain: Callable[..., Any] = self._processor.process_outputs
        self._requests: dict[str, Request] = {}
        self._batches: dict[tuple[Take, Signal], _Batch] = {}
        self._aborted: dict[str, str] = {}  # vLLM's own names of requests, and ours.
        self._late: dict[str, int] = {}
        self._processor.process_outputs = self._process_outputs
        _decode_arrays_at_once(llm.engine_core)

    async def generate(
        self, request: Request, prompt: Any, params: Any, signal: Signal, take: Take
    ) -> None:
        """Generates a request to its end; its tokens go to `take`, and are kept.

        `params` are `SamplingParams` with n=1 and final outputs only.

        Raises:
            Exception: whatever vLLM raises, or `take`.
        """
        key = (take, signal)
        request.batch = self._batches.setdefault(key, _Batch(take, signal))
        request.batch.size += 1
        self._requests[request.name] = request
        try:
            queue = await self._llm.add_request(request.name, prompt, params)
            # Of final outputs there is one; or what went wrong with the engine.
            output = (await queue.get()).outputs[0]
        except BaseException:
            with contextlib.suppress(Exception):  # It died.
                await self.abort([request.name])
            raise
        finally:
            del self._requests[request.name]
            request.batch.size -= 1
            if not request.batch.size:
                del self._batches[key]
        if request.error is not None:
            raise request.error
        request.text, request.finish_reason = output.text, output.finish_reason

    async def abort(self, names: Sequence[str]) -> None:
        """Ends these requests, ours or not, at once."""
        self._remember(names)
        await self._llm.abort(list(names))

    async def late_tokens(self, names: Sequence[str]) -> dict[str, int]:
        """Tokens that came for aborted requests; gives each count once.

        What the engine core computed for a request and dropped itself, the rest of a step at the
        most, is not seen here. Waits five seconds at the most.
        """
        if not self._llm.errored:
            with contextlib.suppress(Exception):  # It died: there is nothing on its way.
                await asyncio.wait_for(self._arrival(), timeout=5)
        asked = set(names)
        late = {name: self._late.pop(name) for name in asked & self._late.keys()}
        self._aborted = {name: ours for name, ours in self._aborted.items() if ours not in asked}
        return late

    async def _arrival(self) -> None:
        """Returns when what the engine core had sent has been looked at."""
        core = self._llm.engine_core
        await core.get_supported_tasks_async()  # Its answer comes behind what was sent before it.
        queue = getattr(core, "outputs_queue", None)
        while queue is not None and not queue.empty():
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.005)  # For the parts in which a large step is looked at.

    def _remember(self, names: Iterable[str]) -> None:
        """Before they are aborted: what comes for them later is to be known as theirs."""
        for name in names:
            for internal in self._processor.external_req_ids.get(name, ()):
                self._aborted[internal] = name
        while len(self._aborted) > _REMEMBERED:
            self._late.pop(self._aborted.pop(next(iter(self._aborted))), None)

    # ---- one step ----------------------------------------------------------------------------

    def _process_outputs(
        self,
        engine_core_outputs: Sequence[Any],
        engine_core_timestamp: float | None = None,
        iteration_stats: Any = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        """In the place of vLLM's own."""
        stats, timestamp = iteration_stats, engine_core_timestamp
        running, requests = self._running, self._requests
        theirs: list[Any] = []
        ours: list[tuple[Request, Any, Any]] = []
        for output in engine_core_outputs:
            state = running.get(output.request_id)
            if state is None:  # vLLM drops it.
                name = self._aborted.get(output.request_id)
                if name is not None:
                    self._late[name] = self._late.get(name, 0) + len(output.new_token_ids)
                continue
            request = requests.get(state.external_req_id)
            if request is None:
                theirs.append(output)
                continue
            ours.append((request, output, output.new_logprobs))
            if state.is_prefilling or output.finish_reason is not None or request.detokenized:
                output.new_logprobs = None  # vLLM would keep them until the request ends.
                theirs.append(output)
            elif stats is not None:
                self._processor._update_stats_from_output(state, output, timestamp, stats)
        # Before ours, since it cuts off what follows a stop string.
        processed = self._plain(theirs, timestamp, stats, *more, **options)
        for names in self._deliver(ours):
            self._remember(names)
            ended = self._processor.abort_requests(names, internal=False)
            processed.reqs_to_abort.extend(ended)
        return processed

    def _deliver(self, ours: list[tuple[Request, Any, Any]]) -> Iterator[list[str]]:
        """Hands each batch its tokens; the names of requests that are to be aborted."""
        batches = set()
        for request, output, logprobs in ours:
            if request.inside:
                request.tokens.extend(output.new_token_ids)
            elif output.new_token_ids:
                request.batch.add(request, output.new_token_ids, logprobs)
                batches.add(request.batch)
        for batch in batches:
            requests = batch.members
            try:
                unwanted = set(batch.take(batch.step()))
            except Exception as error:  # vLLM's loop would end by it.
                for request in requests:
                    request.error = request.error or error
                unwanted = {request.trace for request in requests}
            if unwanted or batch.failed:
                unwanted |= batch.failed
                yield [request.name for request in requests if request.trace in unwanted]
            batch.clear()


def _decode_arrays_at_once(core: Any) -> None:
    """Spares half of what decoding a step takes: vLLM makes its small arrays in several calls.

    Where its decoder is another than the one known here, that one is left in place.
    """
    import msgspec
    from vllm.v1.engine import EngineCoreOutputs

    decoder: Any = getattr(core, "decoder", None)
    plain = getattr(decoder, "dec_hook", None)
    extend = getattr(decoder, "ext_hook", None)
    known = isinstance(getattr(decoder, "decoder", None), msgspec.msgpack.Decoder)
    if plain is None or extend is None or not known or not hasattr(decoder, "aux_buffers"):
        return
    kinds: dict[str, np.dtype[Any]] = {}

    def decode(kind: type, value: Any) -> Any:
        if kind is not np.ndarray or not decoder.share_mem:
            return plain(kind, value)
        name, shape, data = value
        if name not in kinds:
            kinds[name] = np.dtype(name)
        buffer = decoder.aux_buffers[data] if isinstance(data, int) else data
        return np.ndarray(shape, kinds[name], buffer)

    kind = EngineCoreOutputs
    decoder.decoder = msgspec.msgpack.Decoder(kind, ext_hook=extend, dec_hook=decode)


# ---- what is taken for granted -------------------------------------------------------------------


def misfits(llm: Any) -> list[str]:
    """What of an `AsyncLLM` is not as `Steps` needs it; each says what was looked for."""
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.engine.output_processor import OutputProcessorOutput, RequestState
    from vllm.v1.outputs import LogprobsLists

    found: list[str] = []

    def expect(what: str, wanted: Iterable[str], there: Iterable[str]) -> None:
        missing = sorted({*wanted} - {*there})
        if missing:
            found.append(f"{what} has no {', '.join(missing)}")

    processor = getattr(llm, "output_processor", None)
    members = ("add_request", "abort", "errored", "engine_core", "output_processor")
    expect("AsyncLLM", members, dir(llm))
    for method, parameters in (
        ("process_outputs", ["engine_core_outputs", "engine_core_timestamp", "iteration_stats"]),
        ("abort_requests", ["request_ids", "internal"]),
        (
            "_update_stats_from_output",
            ["req_state", "engine_core_output", "engine_core_timestamp", "iteration_stats"],
        ),
    ):
        takes = [*inspect.signature(getattr(processor, method, print)).parameters]
        if takes[: len(parameters)] != parameters:
            found.append(f"OutputProcessor.{method} takes {takes}, not {parameters}")
    for name in ("request_states", "external_req_ids"):
        if not isinstance(getattr(processor, name, None), dict):
            found.append(f"OutputProcessor.{name} is no dict")
    states = ("external_req_id", "is_prefilling", "queue")
    expect("RequestState", states, RequestState.__init__.__code__.co_names)
    fields = ("request_id", "new_token_ids", "new_logprobs", "finish_reason")
    expect("EngineCoreOutput", fields, EngineCoreOutput.__struct_fields__)
    expect("LogprobsLists", ("logprobs", "sampled_token_ranks"), LogprobsLists._fields)
    expect("OutputProcessorOutput", ("reqs_to_abort",), OutputProcessorOutput.__annotations__)
    return found
