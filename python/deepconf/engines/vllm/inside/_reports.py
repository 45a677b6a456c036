"""Has traces scored in vLLM's workers, and asks them what they found; on this side."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from deepconf.engines.base import Signal, Step, Take
from deepconf.engines.vllm._steps import Request
from deepconf.engines.vllm.inside._ledger import Found
from deepconf.engines.vllm.inside._watch import Watch, unwatchable
from deepconf.errors import EngineDied, EngineError, InvalidInput

__all__ = ["CALL", "Inside", "engine_args", "refusal"]

CALL = "call_utility_all_async"
"""The method by which vLLM's client asks all engine cores."""

_EXTENSION = "deepconf.engines.vllm.inside._extension.Extension"

# Seconds between two looks at whether an engine that is asked something lives.
_PULSE = 1.0


def refusal(given: Mapping[str, Any], vllm_config: Any) -> str | None:
    """Why an engine of these arguments, and what vLLM makes of them, cannot score inside.

    A model may bring speculative decoding of its own. None where it can.
    """
    if given.get("worker_extension_cls"):
        return f"worker_extension_cls={given['worker_extension_cls']!r} has the place of ours"
    return unwatchable(vllm_config)


def engine_args(given: Mapping[str, Any], v2: bool) -> dict[str, Any]:
    """Engine arguments by which the workers score; ours is the last of the logits processors."""
    processor = f"deepconf.engines.vllm.inside._v{2 if v2 else 1}:Processor"
    others = given.get("logits_processors") or []
    return {"logits_processors": [*others, processor], "worker_extension_cls": _EXTENSION}


class Inside:
    """Traces that the workers of an `AsyncLLM` score.

    Those that end while one question is under way are asked about in the next, all at once.
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._tokenizer = llm.get_tokenizer()
        self._vocabulary = llm.vllm_config.model_config.get_vocab_size()
        self._asked: dict[str, asyncio.Future[Found | None]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def begin(self) -> bool:
        """Whether the workers score; asked once, before any request."""
        return any(await self._call("deepconf_begin"))

    def unfit(self, signal: Signal, sampling: Mapping[str, Any]) -> str | None:
        """Why traces of this signal and sampling cannot be scored there; None where they can."""
        if signal.entries != "topk":
            return f"entries={signal.entries!r}: a token is scored before it is sampled"
        if sampling.get("structured_outputs"):
            return "structured_outputs: a grammar does not take the token that ends a trace"
        if signal.online and self._stop_token(sampling) is None:
            return (
                "ignore_eos=True: no token of this model ends a trace, give one in stop_token_ids"
                if sampling.get("ignore_eos")
                else "this model has no token that ends a trace, give one in stop_token_ids"
            )
        return None

    def params(self, trace: str, signal: Signal, sampling: Mapping[str, Any]) -> dict[str, Any]:
        """The sampling parameters by which the trace of this name is scored."""
        token = self._stop_token(sampling)
        watch = Watch(
            trace=trace,
            top_logprobs=signal.top_logprobs,
            window=signal.window,
            logprob_floor=signal.logprob_floor,
            threshold=signal.threshold,
            stop_token=token,
        )
        extra = {**(sampling.get("extra_args") or {}), **watch.as_extra_args()}
        stops = list(sampling.get("stop_token_ids") or ())
        if token is not None and token != self._eos(sampling) and token not in stops:
            stops.append(token)
        return {**sampling, "extra_args": extra, "stop_token_ids": stops}

    def _stop_token(self, sampling: Mapping[str, Any]) -> int | None:
        """A token that ends a request: the model's own, a user's, or one without a meaning."""
        eos = self._eos(sampling)
        if eos is not None:
            return eos
        for token in sampling.get("stop_token_ids") or ():
            return int(token)
        return self._unnamed

    @functools.cached_property
    def _unnamed(self) -> int | None:
        """The last token of a padded vocabulary, which has no meaning."""
        named = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        return self._vocabulary - 1 if named < self._vocabulary else None

    def _eos(self, sampling: Mapping[str, Any]) -> int | None:
        token = None if sampling.get("ignore_eos") else self._tokenizer.eos_token_id
        return None if token is None else int(token)

    async def hand_over(self, request: Request, take: Take) -> bool:
        """Gives `take` what was found of a request that has ended; whether its trace is stopped.

        Raises:
            InvalidInput: a token could not be scored.
            EngineError: tokens of it were not.
        """
        found = await self._fetch(request.name)
        generated = len(request.tokens)
        if found is None:
            if generated:
                raise EngineError(f"no worker knows of request {request.name}")
            return False  # It was aborted before it came into a batch.
        # Of a step that was under way at its end there may be a token more.
        confidence = found.confidence[:generated]
        stopped = found.stop_token is not None and found.stop_token < generated
        unscored = generated - len(confidence)
        traces = [request.trace] * len(confidence)
        unwanted = take(Step(traces, confidence, {request.trace: unscored} if unscored else {}))
        if found.error is not None and unscored:
            raise InvalidInput(f"request {request.name}: {found.error}")
        if unscored and not stopped:  # What comes behind a stop is forced.
            raise EngineError(f"{unscored} tokens of request {request.name} were not scored")
        request.drop_last(unscored)
        return stopped or request.trace in unwanted

    def forget(self, trace: str) -> None:
        """Of a trace that came to nothing."""
        self._fetch(trace).add_done_callback(lambda asked: asked.exception())

    def _fetch(self, trace: str) -> asyncio.Future[Found | None]:
        """What was found of a trace, which is then forgotten; None for nothing."""
        future: asyncio.Future[Found | None] = asyncio.get_running_loop().create_future()
        self._asked[trace] = future
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask())
        return future

    async def set_thresholds(self, thresholds: Mapping[str, float | None]) -> None:
        """Sets s of running traces, nats, for the tokens to come; None never stops."""
        await self._call("deepconf_set_thresholds", dict(thresholds))

    async def count(self) -> int:
        """How many traces the workers know."""
        return sum(await self._call("deepconf_count"))

    async def _ask(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            try:
                answers = await self._call("deepconf_fetch", list(asked))
            except Exception as error:  # The engine has died.
                for future in asked.values():
                    if not future.done():
                        future.set_exception(error)
                continue
            found = {
                trace: Found(np.frombuffer(confidence, np.float32), stop, error)
                for answer in answers
                for trace, confidence, stop, error in answer
            }
            for trace, future in asked.items():
                if not future.done():  # Whoever asked may have gone.
                    future.set_result(found.get(trace))
        self._asking = None

    async def _call(self, method: str, *arguments: Any) -> list[Any]:
        """The answers of all workers, of all data parallel engines, that give one.

        Raises:
            EngineDied: the engine died meanwhile, of which vLLM tells no such call.
        """
        ask = getattr(self._llm.engine_core, CALL)
        call = asyncio.ensure_future(ask("collective_rpc", method, None, arguments, None))
        try:
            while not call.done():
                await asyncio.wait({call}, timeout=_PULSE)
                if self._llm.errored and not call.done():
                    raise EngineDied(f"the engine died before it answered {method}")
        finally:
            call.cancel()
        answers = itertools.chain.from_iterable(call.result())
        return [answer for answer in answers if answer is not None]
