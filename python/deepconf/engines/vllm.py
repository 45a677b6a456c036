"""vLLM in process: one request a trace, flat raw log-probabilities, deltas as they come."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import difflib
import importlib.util
import multiprocessing
import os
import signal as signals
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from deepconf._core import dict_confidences, flat_confidences
from deepconf.engines.base import Chunk, Signal, as_messages, result_of
from deepconf.errors import EngineError, InvalidInput, InvalidType, MissingExtra

__all__ = ["VLLM", "confidences"]

T = TypeVar("T")

# Sampling parameters that a run sets itself.
_OWNED = {
    "n": "one request is one trace",
    "seed": "set Policy(seed=...)",
    "logprobs": "set Policy(top_logprobs=...)",
    "logprob_token_ids": "confidence is defined on the most likely tokens",
    "prompt_logprobs": "the prompt has no confidence",
    "prompt_logprob_token_ids": "the prompt has no confidence",
    "prompt_logprob_start": "the prompt has no confidence",
    "flat_logprobs": "always on",
    "output_kind": "always deltas",
    "detokenize": "texts are decoded once, at the end",
}

# "repetition" comes of `repetition_detection`: such a trace was cut short.
_FINISH: dict[str, Literal["finished", "length", "aborted"]] = {
    "stop": "finished",
    "length": "length",
    "repetition": "length",
    "abort": "aborted",
}

# Seconds for vLLM's processes to end. Its own 5 are what their children may take in turn.
_GRACE = 15.0


class VLLM:
    """A vLLM engine in this process.

    Args:
        model: a folder in Hugging Face format, or a name on the hub.
        sampling: parameters of vLLM's `SamplingParams`, such as
            `dict(temperature=0.6, top_p=0.95, max_tokens=32000)`. What is not given comes from the
            model's `generation_config.json`; without `max_tokens` a trace may fill the context.
        chat: whether a question given as a string is put into the model's chat template: "auto"
            where there is one.
        chat_template_kwargs: passed to the chat template, such as `dict(enable_thinking=True)`.
        **engine_args: of vLLM's `AsyncEngineArgs`. On a CPU, `dtype="float32"` and
            `enforce_eager=True` are the defaults.

    Raises:
        InvalidInput: no such model folder; an unknown or reserved sampling parameter, or one out of
            range; engine arguments that vLLM refuses; a setting of log-probabilities that scores
            cannot be computed from.
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
        **engine_args: Any,
    ) -> None:
        self.model = _checked_model(model)
        self._chat_kwargs = dict(chat_template_kwargs or {})
        self._sampling = dict(sampling or {})
        for name in self._sampling.keys() & _OWNED.keys():
            raise InvalidInput(f"sampling[{name!r}] cannot be set: {_OWNED[name]}")
        if chat not in ("auto", True, False):
            raise InvalidInput(f"chat={chat!r}: must be 'auto', True or False")
        mode = engine_args.setdefault("logprobs_mode", "raw_logprobs")
        if mode != "raw_logprobs":
            raise InvalidInput(
                f"logprobs_mode={mode!r}: confidence is defined on raw log-probabilities, set "
                "logprobs_mode='raw_logprobs'"
            )
        if importlib.util.find_spec("vllm") is None:
            raise MissingExtra("vllm", "vllm")
        self._llm: Any = None
        self._closing = False
        self._strangers = multiprocessing.active_children()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="deepconf-vllm", daemon=True)
        self._thread.start()
        atexit.register(self.close)
        try:
            result_of(self.submit(self._start(engine_args)))
            self._chat = self._wants_chat(chat)
        except BaseException:
            self.close()
            raise

    def _serve(self) -> None:
        if hasattr(signals, "pthread_sigmask"):
            # The engine's processes inherit this mask, so that Ctrl-C does not end them. The
            # tracker comes first: to start it unblocks the signal.
            resource_tracker.ensure_running()
            signals.pthread_sigmask(signals.SIG_BLOCK, {signals.SIGINT})
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._stop())
        self._loop.close()

    async def _start(self, engine_args: dict[str, Any]) -> None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        _check_sampling(self._sampling)
        defaults: dict[str, Any] = {"disable_log_stats": True}
        if current_platform.is_cpu():
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
            # A prompt prefilled in parts would reach for the offset of its seeded generator, which
            # generators on a CPU do not have: the engine of vLLM 0.32 dies of it.
            whole_prompts = {"enable_chunked_prefill": False}
            defaults |= {"dtype": "float32", "enforce_eager": True, **whole_prompts}
        try:
            arguments = AsyncEngineArgs(model=self.model, **{**defaults, **engine_args})
            self._llm = AsyncLLM.from_engine_args(arguments)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"vLLM does not take these engine arguments: {error}") from error
        except Exception as error:
            raise EngineError(f"vLLM does not start {self.model!r}: {error}") from error
        # What the first request would wait for, so that an abort right behind it would miss it.
        await self._llm.get_supported_tasks()
        self._tokenizer = self._llm.get_tokenizer()
        settings = self._llm.vllm_config
        self._config = settings.model_config
        defaults = {"max_tokens": None, **self._config.get_diff_sampling_param()}
        self._sampling = {**defaults, **self._sampling}
        _check_sampling(self._sampling, settings, self._tokenizer)

    async def _stop(self) -> None:
        if self._llm is not None:
            self._llm.shutdown(timeout=_GRACE)
            self._llm = None
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()

    def _wants_chat(self, chat: Literal["auto", True, False]) -> bool:
        has_template = bool(getattr(self._tokenizer, "chat_template", None))
        if chat is True and not has_template:
            raise InvalidInput(f"chat=True: {self.model!r} has no chat template, set chat=False")
        return has_template if chat == "auto" else chat

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling parameters in force, but for those a run sets."""
        return dict(self._sampling)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs a coroutine on the engine's event loop."""
        if self._closing:
            coroutine.close()
            raise EngineError("the engine is closed")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def check(self, signal: Signal) -> None:
        """Raises `InvalidInput` when vLLM would not return this many log-probabilities."""
        k, vocabulary = signal.top_logprobs, self._config.get_vocab_size()
        if k > vocabulary:
            raise InvalidInput(
                f"top_logprobs={k}: {self.model!r} has only {vocabulary} tokens in its vocabulary"
            )
        most = self._config.max_logprobs
        if 0 <= most < k:
            raise InvalidInput(
                f"top_logprobs={k}: this engine returns {most} log-probabilities at the most, "
                f"start it with VLLM(..., max_logprobs={k})"
            )

    def prepare(self, question: str | Sequence[Mapping[str, Any]]) -> Any:
        """Tokenises a prompt, or chat messages by the model's template.

        Raises:
            InvalidInput: it is no prompt, or leaves no room for an answer.
            InvalidType: it is neither a string nor messages.
        """
        from vllm.inputs import tokens_input

        if isinstance(question, str) and not self._chat:
            tokens = self._tokenizer.encode(question)
        else:
            tokens = self._apply_template(as_messages(question))
        most = self._config.max_model_len
        if not 0 < len(tokens) < most:
            raise InvalidInput(
                f"the question has {len(tokens)} tokens: must be between 1 and {most - 1}, since "
                f"the model's context holds {most} (max_model_len)"
            )
        # As vLLM's renderer gives it, which `generate` queues at once; a TokensPrompt is first
        # handed to another thread.
        return tokens_input(list(tokens))

    def _apply_template(self, messages: list[dict[str, Any]]) -> list[int]:
        if not getattr(self._tokenizer, "chat_template", None):
            raise InvalidInput(f"chat messages need a chat template, {self.model!r} has none")
        options = {"add_generation_prompt": True, **self._chat_kwargs}
        try:
            tokens = self._tokenizer.apply_chat_template(messages, return_dict=False, **options)
        except Exception as error:  # Templates raise what they like.
            raise InvalidInput(f"the chat template refuses the question: {error}") from error
        return list(tokens)

    async def stream(
        self, prompt: Any, *, request_id: str, seed: int, signal: Signal
    ) -> AsyncIterator[Chunk]:
        """Generates one trace; see `Engine.stream`."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        decodes_itself = bool(self._sampling.get("stop"))
        params = SamplingParams(
            **self._sampling,
            n=1,
            seed=seed,
            logprobs=signal.top_logprobs,
            flat_logprobs=True,
            detokenize=decodes_itself,
            output_kind=RequestOutputKind.DELTA,
        )
        tokens: list[int] = []
        outputs = self._llm.generate(prompt, params, request_id)
        try:
            async with contextlib.aclosing(outputs):  # Which aborts, where this stream is left.
                async for output in outputs:
                    delta = output.outputs[0]
                    reason = delta.finish_reason
                    if reason is not None and reason not in _FINISH:
                        raise EngineError(f"vLLM ended request {request_id} with {reason!r}")
                    text = delta.text
                    if not decodes_itself:
                        tokens.extend(delta.token_ids)
                        text = "" if reason is None else self._decode(tokens, reason == "stop")
                    yield Chunk(
                        confidence=_confidences(delta.logprobs, signal),
                        num_tokens=len(delta.token_ids),
                        text=text,
                        finish_reason=None if reason is None else _FINISH[reason],
                    )
        except (EngineError, InvalidInput, GeneratorExit, asyncio.CancelledError):
            raise
        except Exception as error:
            raise EngineError(f"vLLM failed on request {request_id}: {error!r}") from error

    def _decode(self, tokens: list[int], stopped: bool) -> str:
        """The text as vLLM would give it: without the token that stopped it."""
        if stopped and not self._sampling.get("include_stop_str_in_output"):
            tokens = tokens[:-1]
        skip = self._sampling.get("skip_special_tokens", True)
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=skip)
        return text

    async def abort(self, request_ids: Sequence[str]) -> None:
        """Ends these traces at once; nothing where the engine has died, and they with it."""
        from vllm.v1.engine.exceptions import EngineDeadError

        with contextlib.suppress(EngineDeadError):
            await self._llm.abort(list(request_ids))

    def close(self) -> None:
        """Stops the engine and its processes; may be called again."""
        self._closing = True
        atexit.unregister(self.close)
        with contextlib.suppress(RuntimeError):  # The loop is closed.
            self._loop.call_soon_threadsafe(self._loop.stop)
        while self._thread.is_alive():
            if self._llm is None:  # Interrupted while it starts: loading a model can take minutes.
                for process in multiprocessing.active_children():
                    if process.name.startswith("EngineCore") and process not in self._strangers:
                        process.kill()
            self._thread.join(timeout=0.5)

    def __enter__(self) -> VLLM:
        """The engine itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()


def confidences(
    output: Any,
    *,
    k: int | None = None,
    entries: Literal["topk", "returned"] = "topk",
    logprob_floor: float | None = None,
) -> NDArray[np.float32]:
    """Token confidences of an output that vLLM returned.

    Args:
        output: a `CompletionOutput`, a `RequestOutput` with one completion, or its `logprobs`: flat
            (`flat_logprobs=True`) or a list of dicts.
        k: how many of the most likely tokens count; None for as many as were asked for.
        entries: "topk", or "returned" to count the sampled token too where it is not among them.
        logprob_floor: raises smaller log-probabilities to this, nats.

    Returns:
        float32 `[num_tokens]`, nats; ready for `deepconf.score`.

    Raises:
        InvalidInput: the output carries no log-probabilities, or fewer than k.
        InvalidType: it is no output of vLLM.
    """
    if entries not in ("topk", "returned"):
        raise InvalidInput(f"entries={entries!r}: must be 'topk' or 'returned'")
    if k is not None and k < 2:
        raise InvalidInput(
            f"k={k}: must be at least 2 (minus the log-probability of the likeliest token alone is "
            "lowest where the model is surest; the paper takes 20), or None for all that there are"
        )
    completions = getattr(output, "outputs", None)
    if completions is not None:
        if len(completions) != 1:
            raise InvalidInput(
                f"the request has {len(completions)} completions: pass one of output.outputs"
            )
        output = completions[0]
    logprobs = output
    if hasattr(output, "token_ids") and hasattr(output, "finish_reason"):
        logprobs = output.logprobs
        if logprobs is None:
            raise InvalidInput(
                "the output has no log-probabilities: ask for them with SamplingParams(logprobs=20)"
            )
    if hasattr(logprobs, "start_indices") or isinstance(logprobs, list):
        return _confidences(logprobs, Signal(k or 0, entries, logprob_floor))
    raise InvalidType(
        f"output is a {type(output).__name__}: must be a CompletionOutput of vLLM, or its logprobs"
    )


def _confidences(logprobs: Any, signal: Signal) -> NDArray[np.float32]:
    """Either form; `top_logprobs` 0 stands for as many as there are."""
    if not logprobs:
        return np.empty(0, np.float32)
    floor, returned = signal.logprob_floor, signal.entries == "returned"
    if isinstance(logprobs, list):
        return dict_confidences(logprobs, signal.top_logprobs or None, returned, floor)
    entries, ends, ranks = logprobs.logprobs, logprobs.end_indices, logprobs.ranks
    return flat_confidences(entries, ends, ranks, signal.top_logprobs or None, returned, floor)


def _checked_model(model: str | os.PathLike[str]) -> str:
    """The model's name, once it is clear that it exists where a folder is meant."""
    name = os.fspath(model)
    if not name.strip():
        raise InvalidInput(f"model={name!r}: there is no such folder")
    path = Path(name).expanduser()
    if path.is_dir() and not any((path / f).is_file() for f in ("config.json", "params.json")):
        raise InvalidInput(f"model={name!r}: the folder has no config.json, so it is no model")
    if path.exists():
        return str(path)
    looks_like_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if "://" not in name and (looks_like_path or not isinstance(model, str)):
        raise InvalidInput(f"model={name!r}: there is no such folder")
    return name


def _check_sampling(sampling: dict[str, Any], settings: Any = None, tokenizer: Any = None) -> None:
    """Names and ranges; with vLLM's settings, also whether they suit the model."""
    from vllm import SamplingParams

    fields = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")}
    known = fields - _OWNED.keys()
    for name in sampling.keys() - known:
        near = difflib.get_close_matches(name, known, n=3) or sorted(known)
        raise InvalidInput(
            f"sampling[{name!r}] is no sampling parameter of vLLM; near it: {', '.join(near)}"
        )
    try:
        params = SamplingParams(**sampling)
        if settings is not None:
            decoding, structure = settings.speculative_config, settings.structured_outputs_config
            params.verify(settings.model_config, decoding, structure, tokenizer)
    except Exception as error:  # vLLM's own are no ValueError.
        raise InvalidInput(f"sampling={sampling}: {error}") from error
