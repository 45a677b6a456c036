"""vLLM in process: one request a trace, raw log-probabilities, whole steps where it can be."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import os
import signal as signals
import warnings
from collections.abc import AsyncIterator, Mapping, Sequence
from multiprocessing import resource_tracker
from typing import Any, Literal

from deepconf.engines._loop import EngineLoop
from deepconf.engines.base import Chunk, Ending, Signal, Take, generate_by_stream, result_of
from deepconf.engines.vllm._arguments import (
    check_engine_args,
    check_names,
    check_sampling,
    settings_of,
)
from deepconf.engines.vllm._checks import check_hub, checked_model, main_guard, refuse_children
from deepconf.engines.vllm._guardian import Guardian
from deepconf.engines.vllm._heap import freeze, thaw
from deepconf.engines.vllm._outputs import finish_of, of_logprobs, reason_of
from deepconf.engines.vllm._prompts import Prompts
from deepconf.engines.vllm._steps import Request, Steps, misfits
from deepconf.engines.vllm.inside import _reports as inside
from deepconf.errors import (
    DeepConfError,
    EngineDied,
    EngineError,
    InvalidInput,
    MissingExtra,
    RunWarning,
)

__all__ = ["VLLM"]

# Tokens of a text that is decoded on another thread.
_LONG = 4_096

# What is set before vLLM is imported: its log is no result, and what torch and vLLM warn of when
# there is no GPU is nothing that anybody could change.
_QUIET = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TORCH_LOGS": "-all",  # Errors only, of its Python part.
    "PYTHONWARNINGS": "ignore::FutureWarning:vllm.triton_utils.dispatcher",
}

# Seconds until an engine core that has just answered waits again. A signal that comes while it goes
# to sleep is not looked at before it is woken, and nobody would.
_REST = 0.1

# Seconds for vLLM's processes to end. Its own 5 are what their children may take in turn.
_GRACE = 15.0


class VLLM(EngineLoop):
    """A vLLM engine in this process.

    Args:
        model: a folder in Hugging Face format, or a name on the hub.
        sampling: parameters of vLLM's `SamplingParams`, such as
            `dict(temperature=0.6, top_p=0.95, max_tokens=32000)`. What is not given comes from the
            model's `generation_config.json`; without `max_tokens` a trace may fill the context.
        chat: whether a question given as a string is put into the model's chat template: "auto"
            where there is one.
        chat_template_kwargs: passed to the chat template, such as `dict(enable_thinking=True)`.
        scoring: where traces are scored. "client" in this process; "engine" in vLLM's workers,
            from which no log-probability comes then, and where a trace ends that is to stop;
            "auto" there where this engine, and the run, can be scored so. See `scoring`, and
            docs/vllm.md.
        **engine_args: of vLLM's `AsyncEngineArgs`. On a CPU, `dtype="float32"` and
            `enforce_eager=True` are the defaults.

    Raises:
        InvalidInput: no such model folder; an unknown or reserved sampling parameter, or one out of
            range; engine arguments that vLLM refuses; a setting of log-probabilities that scores
            cannot be computed from; `scoring="engine"` and this engine cannot.
        MissingExtra: vLLM is not installed.
        EngineError: vLLM does not start.

    The engine lives on a thread of its own until `close`, and does not see Ctrl-C: a run that is
    interrupted aborts its requests, and the engine can be used again. Also a context manager. Its
    processes import the main script, which therefore needs `if __name__ == "__main__":`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        sampling: Mapping[str, Any] | None = None,
        chat: Literal["auto", True, False] = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        scoring: Literal["client", "engine", "auto"] = "client",
        **engine_args: Any,
    ) -> None:
        refuse_children()
        self.model = checked_model(model)
        chat_template_kwargs = dict(chat_template_kwargs or {})
        self._sampling = dict(sampling or {})
        check_names(self._sampling)
        self._given: dict[str, Any] = {
            "sampling": dict(self._sampling),
            "chat": chat,
            "chat_template_kwargs": chat_template_kwargs,
            "engine_args": dict(engine_args),
        }
        if chat not in ("auto", True, False):
            raise InvalidInput(f"chat={chat!r}: must be 'auto', True or False")
        if scoring not in ("client", "engine", "auto"):
            raise InvalidInput(f"scoring={scoring!r}: must be 'client', 'engine' or 'auto'")
        self._wanted: Literal["client", "engine", "auto"] = scoring
        mode = engine_args.setdefault("logprobs_mode", "raw_logprobs")
        if mode != "raw_logprobs":
            raise InvalidInput(
                f"logprobs_mode={mode!r}: confidence is defined on raw log-probabilities, set "
                "logprobs_mode='raw_logprobs'"
            )
        if importlib.util.find_spec("vllm") is None:
            raise MissingExtra("vllm", "vllm")
        check_hub(self.model)
        super().__init__("deepconf-vllm")
        self._llm: Any = None
        self._steps: Steps | None = None
        self._inside: inside.Inside | None = None
        self._frozen = False
        self._guardian = Guardian()
        self._begin()
        try:
            result_of(self.submit(self._start(engine_args)))
            self._prompts = Prompts(self.model, self._llm, chat, chat_template_kwargs)
        except BaseException:
            self.close()
            raise

    def _enter(self) -> None:
        if hasattr(signals, "pthread_sigmask"):
            # The engine's processes inherit this mask, so that neither Ctrl-C nor a terminal that
            # closes ends them before us. The tracker comes first: to start it unblocks SIGINT.
            resource_tracker.ensure_running()
            signals.pthread_sigmask(signals.SIG_BLOCK, {signals.SIGINT, signals.SIGHUP})
        self._guardian.watch()

    async def _start(self, engine_args: dict[str, Any]) -> None:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        check_sampling(self._sampling)
        check_engine_args(engine_args)
        defaults: dict[str, Any] = {"disable_log_stats": True}
        if current_platform.is_cpu():
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
            # A prompt prefilled in parts would reach for the offset of its seeded generator, which
            # generators on a CPU do not have: the engine of vLLM 0.32 dies of it.
            whole_prompts = {"enable_chunked_prefill": False}
            defaults |= {"dtype": "float32", "enforce_eager": True, **whole_prompts}
        try:
            engine_args = {**defaults, **engine_args}
            # Without a context vLLM takes 128 sequences at once on any GPU.
            context = UsageContext.LLM_CLASS
            refusal = None
            if self._wanted != "client":
                config = AsyncEngineArgs(model=self.model, **engine_args).create_engine_config
                settings = config(context)
                refusal = inside.refusal(engine_args, settings)
                if refusal is None:
                    engine_args |= inside.engine_args(engine_args, settings.use_v2_model_runner)
                elif self._wanted == "engine":
                    raise InvalidInput(f"scoring='engine' is not possible here: {refusal}")
            arguments = AsyncEngineArgs(model=self.model, **engine_args)
            self._llm = AsyncLLM.from_engine_args(arguments, usage_context=context)
        except InvalidInput:
            raise
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"vLLM does not take these engine arguments: {error}") from error
        except Exception as error:
            raise EngineError(
                f"vLLM does not start {self.model!r}: {reason_of(error)}{main_guard()}"
            ) from error
        # What the first request would wait for, so that an abort right behind it would miss it.
        await self._llm.get_supported_tasks()
        self._tokenizer = self._llm.get_tokenizer()
        settings = self._llm.vllm_config
        self._config = settings.model_config
        defaults = {"max_tokens": None, **self._config.get_diff_sampling_param()}
        self._sampling = {**defaults, **self._sampling}
        check_sampling(self._sampling, settings, self._tokenizer)
        self._take_steps()
        if self._wanted != "client":
            await self._take_place(refusal)
        freeze()
        self._frozen = True

    def _take_steps(self) -> None:
        """By the step where vLLM's inside is as it is known; else by its public interface."""
        missing = misfits(self._llm)
        if not missing:
            self._steps = Steps(self._llm)
            return
        import vllm

        warnings.warn(
            f"vLLM {vllm.__version__} is new to us ({'; '.join(missing)}): traces are followed one "
            "by one, which takes several times as much of this process, and tokens that come after "
            "an abort are not counted",
            RunWarning,
            stacklevel=1,
        )

    async def _take_place(self, refusal: str | None) -> None:
        """In the workers, where that can be."""
        known = self._steps is not None and hasattr(self._llm.engine_core, inside.CALL)
        if refusal is None and not known:
            refusal = "the vLLM is new to us"
        if refusal is None:
            place = inside.Inside(self._llm)
            if await place.begin():
                self._inside = place
                return
            refusal = "no worker has the logits processor of ours"
        if self._wanted == "engine":
            raise InvalidInput(f"scoring='engine' is not possible here: {refusal}")
        warnings.warn(
            f"scoring='auto': traces are scored in this process: {refusal}",
            RunWarning,
            stacklevel=1,
        )

    @property
    def scoring(self) -> Literal["client", "engine"]:
        """Where traces are scored, if the run can be scored there: this process, or the workers."""
        return "client" if self._inside is None else "engine"

    async def _stop(self) -> None:
        if self._llm is not None:
            await asyncio.sleep(_REST)
            self._llm.shutdown(timeout=_GRACE)
            self._llm = None
        if self._frozen:
            thaw()
        await super()._stop()

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling parameters in force, but for those a run sets."""
        return dict(self._sampling)

    def settings(self, sampling: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What results depend on; see `Engine.settings` and `settings_of`."""
        merged = {**self._given["sampling"], **(sampling or {})}
        return settings_of(**{**self._given, "sampling": merged})

    def check(self, signal: Signal, sampling: Mapping[str, Any] | None = None) -> None:
        """Raises `InvalidInput` for what vLLM would not do; see `Engine.check`."""
        k, vocabulary = signal.top_logprobs, self._config.get_vocab_size()
        if k > vocabulary:
            raise InvalidInput(
                f"top_logprobs={k}: {self.model!r} has only {vocabulary} tokens in its vocabulary"
            )
        merged = {**self._sampling, **(sampling or {})}
        if sampling:
            check_names(sampling)
            check_sampling(merged, self._alive().vllm_config, self._tokenizer)
        if self._wanted == "engine" and self._inside is not None:
            unfit = self._inside.unfit(signal, merged)
            if unfit is not None:
                raise InvalidInput(f"scoring='engine' is not possible for this run: {unfit}")
        most = self._config.max_logprobs
        if self._place(signal, merged) is None and 0 <= most < k:
            raise InvalidInput(
                f"top_logprobs={k}: this engine returns {most} log-probabilities at the most, "
                f"start it with VLLM(..., max_logprobs={k})"
            )

    def misfit(
        self, traces: int, prompt: Any, sampling: Mapping[str, Any] | None = None
    ) -> str | None:
        """What to warn of when so many traces at once may not fit the key-value cache.

        Args:
            traces: how many are generated at once.
            prompt: what `prepare` gave; its own tokens are kept once for all.
            sampling: the run's parameters, as for `stream`.

        Returns:
            A sentence that says how many would fit; None when these do.
        """
        settings = self._alive().vllm_config
        cache, replicas = settings.cache_config, settings.parallel_config.data_parallel_size
        size = getattr(cache, "kv_cache_size_tokens", None)
        size = size * replicas if size else (cache.num_gpu_blocks or 0) * cache.block_size
        if not size:
            return None
        before = len(prompt["prompt_token_ids"])
        longest = self._config.max_model_len - before
        own = min(longest, {**self._sampling, **(sampling or {})}.get("max_tokens") or longest)
        fit = max(1, (size - replicas * before) // own)
        if traces <= fit:
            return None
        return (
            f"{traces} traces of up to {own} tokens may not fit the key-value cache of {size} "
            f"tokens, and vLLM then computes some of them again: concurrency={fit} always fits"
        )

    def _alive(self) -> Any:
        llm = self._llm
        if llm is None:
            raise EngineDied("the engine is closed")
        return llm

    def prepare(self, question: str | Sequence[Mapping[str, Any]]) -> Any:
        """Tokenises a prompt, or chat messages by the model's template; see `Engine.prepare`.

        Raises:
            InvalidInput: it is no prompt, or leaves no room for an answer.
            InvalidType: it is neither a string nor messages.
        """
        self._alive()
        return self._prompts.prepare(question)

    async def stream(
        self,
        prompt: Any,
        *,
        request_id: str,
        seed: int | None,
        signal: Signal,
        sampling: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[Chunk]:
        """Generates one trace; see `Engine.stream`."""
        from vllm.sampling_params import RequestOutputKind

        llm, merged = self._alive(), {**self._sampling, **(sampling or {})}
        params = self._params(merged, seed, RequestOutputKind.DELTA, signal)
        tokens: list[int] = []
        outputs = llm.generate(prompt, params, request_id)
        async with self._failing(request_id), contextlib.aclosing(outputs):
            async for output in outputs:  # Which is aborted where this stream is left.
                delta = output.outputs[0]
                reason = finish_of(request_id, delta.finish_reason)
                text = delta.text
                if not params.detokenize:
                    tokens.extend(delta.token_ids)
                    stopped = delta.finish_reason == "stop"
                    text = "" if reason is None else self._decode(tokens, stopped, merged)
                yield Chunk(
                    confidence=of_logprobs(delta.logprobs, signal),
                    num_tokens=len(delta.token_ids),
                    text=text,
                    finish_reason=reason,
                )

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
        """Generates one trace by the step; see `SteppingEngine.generate_into`."""
        from vllm.sampling_params import RequestOutputKind

        options: dict[str, Any] = {"seed": seed, "signal": signal, "sampling": sampling}
        if self._steps is None:
            return await generate_by_stream(
                self, take, prompt, trace=trace, request_id=request_id, **options
            )
        self._alive()
        merged = {**self._sampling, **(sampling or {})}
        place, kind = self._place(signal, merged), RequestOutputKind.FINAL_ONLY
        if place is None:
            params = self._params(merged, seed, kind, signal)
        else:
            params = self._params(place.params(request_id, signal, merged), seed, kind)
        request = Request(
            request_id, trace, detokenized=params.detokenize, inside=place is not None
        )
        async with self._failing(request_id):
            try:
                await self._steps.generate(request, prompt, params, signal, take)
                stopped = place is not None and await place.hand_over(request, take)
            except BaseException:
                if place is not None:
                    place.forget(request_id)
                raise
            reason = "aborted" if stopped else finish_of(request_id, request.finish_reason)
            assert reason is not None, "it has ended"
            if request.detokenized:
                return Ending(reason, request.text)
            decode = functools.partial(
                self._decode, request.tokens, request.finish_reason == "stop", merged
            )
            if len(request.tokens) < _LONG:
                return Ending(reason, decode())
            return Ending(reason, await asyncio.to_thread(decode))

    def _place(self, signal: Signal, sampling: Mapping[str, Any]) -> inside.Inside | None:
        """The workers, where traces of such a run are scored there."""
        place = self._inside
        return None if place is None or place.unfit(signal, sampling) is not None else place

    def _params(
        self, sampling: Mapping[str, Any], seed: int | None, kind: Any, signal: Signal | None = None
    ) -> Any:
        """Those of vLLM; with log-probabilities where a signal is made of them here."""
        from vllm import SamplingParams

        k = None if signal is None else signal.top_logprobs
        try:
            return SamplingParams(
                **sampling,
                n=1,
                seed=seed,
                logprobs=k,
                flat_logprobs=k is not None,
                detokenize=bool(sampling.get("stop")),
                output_kind=kind,
            )
        except Exception as error:  # vLLM's own are no ValueError.
            raise InvalidInput(f"sampling={sampling}, seed={seed}: {reason_of(error)}") from error

    @contextlib.asynccontextmanager
    async def _failing(self, request_id: str) -> AsyncIterator[None]:
        """What vLLM raises for a request, as errors of ours."""
        llm = self._alive()
        try:
            yield
        except (DeepConfError, GeneratorExit, asyncio.CancelledError):
            raise
        except Exception as error:
            with contextlib.suppress(Exception):  # vLLM forgets it where sending it failed.
                await llm.abort(request_id)
            kind = EngineDied if self._llm is None or llm.errored else EngineError
            raise kind(f"vLLM failed on request {request_id}: {reason_of(error)}") from error

    def _decode(self, tokens: Sequence[int], stopped: bool, sampling: Mapping[str, Any]) -> str:
        """The text as vLLM would give it: without the token that stopped it."""
        if stopped and not sampling.get("include_stop_str_in_output"):
            tokens = tokens[:-1]
        skip = sampling.get("skip_special_tokens", True)
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=skip)
        return text

    async def abort(self, request_ids: Sequence[str]) -> None:
        """Ends these traces at once; nothing where the engine has died, and they with it."""
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._llm is not None:
            with contextlib.suppress(EngineDeadError):
                await (self._steps or self._llm).abort(list(request_ids))

    async def late_tokens(self, request_ids: Sequence[str]) -> dict[str, int]:
        """Tokens that reached this process after their abort; see `Engine.late_tokens`."""
        if self._llm is None or self._steps is None:
            return {}
        return await self._steps.late_tokens(request_ids)

    def close(self) -> None:
        """Stops the engine and its processes; may be called again.

        Raises:
            EngineError: called on the engine's own thread, which would wait for itself.
        """
        super().close()
        self._guardian.close()

    def _hasten(self) -> None:
        if self._llm is None:  # Interrupted while it starts: loading a model can take minutes.
            self._guardian.kill()
