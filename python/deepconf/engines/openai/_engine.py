"""The engine: a server with OpenAI's interface, driven by a run."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from deepconf.engines._loop import EngineLoop
from deepconf.engines.base import (
    Chunk,
    Ending,
    Signal,
    Step,
    Take,
    as_messages,
    result_of,
)
from deepconf.engines.openai._capabilities import Capabilities
from deepconf.engines.openai._client import Client
from deepconf.engines.openai._descriptors import too_many
from deepconf.engines.openai._remarks import Tally, remarks_on
from deepconf.errors import EngineError, InvalidInput, InvalidType

__all__ = ["OpenAI", "settings_of"]

T = TypeVar("T")

# Fields of a request that a run sets itself.
_OWNED = {
    "n": "one request is one trace",
    "best_of": "one request is one trace",
    "seed": "set Policy(seed=...)",
    "logprobs": "set Policy(top_logprobs=...)",
    "top_logprobs": "set Policy(top_logprobs=...)",
    "stream": "traces are followed as they come",
    "stream_options": "traces are followed as they come",
    "echo": "the prompt has no confidence",
    "model": "it is the model of OpenAI(...)",
    "messages": "it is the question",
    "prompt": "it is the question",
    "return_token_ids": "asked for where the server has it",
    "return_tokens_as_token_ids": "asked for where the server has it",
    "include_reasoning": "tokens whose log-probabilities are hidden cannot be scored",
}
# Tokens of a trace where nothing else limits it.
_ENDLESS = 10_000_000
# Seconds between looks at what is overdue.
_LOOK = 0.25
# Traces of which something may be asked later.
_REMEMBERED = 100_000


class OpenAI(EngineLoop):
    """An engine that drives a server with OpenAI's interface, such as vLLM's or llama.cpp's.

    Args:
        base_url: where the interface begins, such as `http://localhost:8000/v1`.
        model: the model's name there; None for the only one.
        api_key: is sent to that address only, and stands in no message, file or `repr`.
        sampling: fields of every request, such as `dict(temperature=0.6, max_tokens=32000)`, and
            whatever else the server takes, such as `top_k`. What is not given is the server's.
        chat: whether questions go to chat completions (True) or completions (False); "auto" for the
            former where they work.
        chat_template_kwargs: what the server's chat template is told, such as
            `dict(enable_thinking=True)`; of vLLM and SGLang.
        headers: further headers of every request.
        connect_timeout: seconds to connect.
        first_token_timeout: seconds to the first token of a trace; while other traces get tokens,
            it waits for room, which does not count.
        token_timeout: seconds from one token to the next.
        tries: how often a trace that breaks off is begun in all, under its own number and seed.
        patience: seconds for which what the server refuses (429, 503, no connection) is tried
            again, with growing pauses or as `Retry-After` says; while other traces get tokens, what
            it has no room for waits, which does not count.

    Raises:
        InvalidInput: no address; a model that the server does not have; a field that it does not
            take, or that a run sets itself.
        MissingExtra: aiohttp or msgspec is not installed.
        EngineError: the server cannot be reached, is another kind of server, or gives nothing that
            scores can be computed from.

    It asks the server for a few tokens first: `capabilities` says what was found. While traces run,
    each token is held against what must be true of it, and a trace that is not as it must be fails
    with an error that names server, field and token. The engine lives on a thread of its own until
    `close`; also a context manager.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        chat: Literal["auto", True, False] = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        connect_timeout: float = 10.0,
        first_token_timeout: float = 600.0,
        token_timeout: float = 120.0,
        tries: int = 3,
        patience: float = 300.0,
    ) -> None:
        waits = {
            "connect_timeout": connect_timeout,
            "first_token_timeout": first_token_timeout,
            "token_timeout": token_timeout,
            "patience": patience,
        }
        for name, seconds in waits.items():
            if isinstance(seconds, bool) or not isinstance(seconds, int | float):
                raise InvalidType(f"{name}={seconds!r}: must be a number of seconds")
            if not seconds > 0:
                raise InvalidInput(f"{name}={seconds}: must be above 0 seconds")
        if isinstance(tries, bool) or not isinstance(tries, int) or tries < 1:
            raise InvalidInput(f"tries={tries!r}: must be a whole number of at least 1")
        self._given = settings_of(
            sampling=sampling, chat=chat, chat_template_kwargs=chat_template_kwargs
        )
        self._sampling: dict[str, Any] = self._given["sampling"]
        self._client = Client(base_url, api_key, headers or {}, connect_timeout, patience)
        from deepconf.engines.openai._request import Limits, Others
        from deepconf.engines.openai._turns import Turns

        self._limits = Limits(first_token_timeout, token_timeout, tries)
        self._others = Others()
        self._turns = Turns()
        self._running: dict[str, Any] = {}
        self._tallies: dict[str, Tally] = {}
        self._widths: dict[int, int] = {}
        super().__init__("deepconf-openai")
        self._begin()
        try:
            result_of(self.submit(self._start(model, chat)))
        except BaseException:
            self.close()
            raise

    async def _start(self, model: str | None, chat: Literal["auto", True, False]) -> None:
        from deepconf.engines.openai._probe import PATHS, find_model, probe

        found = await find_model(self._client, model)
        kwargs = self._given["chat_template_kwargs"]
        extra = {"chat_template_kwargs": kwargs} if kwargs and chat is not False else {}
        wanted: dict[Any, Literal["chat", "completions"] | None] = {
            True: "chat",
            False: "completions",
            "auto": "chat" if kwargs else None,
        }
        self.model = found.model
        self.capabilities: Capabilities
        self.capabilities, self._extra = await probe(self._client, found, wanted[chat], extra)
        self._path = PATHS[self.capabilities.interface]
        self._watch = asyncio.ensure_future(self._look())

    async def _stop(self) -> None:
        await super()._stop()
        await self._client.close()

    async def _look(self) -> None:
        """Gives up tries of which nothing came in time."""
        while True:
            await asyncio.sleep(_LOOK)
            now = self._loop.time()
            for request in list(self._running.values()):
                if request.deadline < now:
                    request.overdue()

    # ---- what a run asks -----------------------------------------------------------------------

    @property
    def sampling(self) -> dict[str, Any]:
        """The fields of every request, but for those a run sets."""
        return dict(self._sampling)

    def settings(self, sampling: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What results depend on; see `Engine.settings`."""
        merged = _checked_sampling({**self._sampling, **(sampling or {})})
        return {**self._given, "sampling": merged}

    def check(self, signal: Signal, sampling: Mapping[str, Any] | None = None) -> None:
        """Raises `InvalidInput` for what the server does not give; asks it for two tokens."""
        merged = _checked_sampling({**self._sampling, **(sampling or {})})
        result_of(self.submit(self._ask(signal.top_logprobs, merged)))

    async def _ask(self, k: int, sampling: Mapping[str, Any]) -> int:
        """How many log-probabilities to ask for where k count, as the server shows."""
        from deepconf.engines.openai._probe import width_given

        widths = [self._widths[k]] if k in self._widths else [k + 1, k]
        found = await width_given(self._client, self.capabilities, self._extra, k, widths, sampling)
        self._widths[k] = found
        return found

    def prepare(self, question: str | Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The question as fields of a request.

        Raises:
            InvalidInput: it is none, or messages where only completions are to be had.
            InvalidType: it is neither a string nor messages.
        """
        if self.capabilities.interface == "chat":
            return {"messages": as_messages(question)}
        if isinstance(question, str):
            return {"prompt": question}
        as_messages(question)  # Says what is wrong with it.
        raise InvalidInput(
            "chat messages need chat completions, and this engine uses completions: "
            f"{self.capabilities.server} has no chat template for {self.model!r}, or chat=False"
        )

    def misfit(self, traces: int, prompt: Any, sampling: Any = None) -> str | None:
        """What to warn of where this process may not open so many connections at once."""
        return too_many(traces)

    # ---- traces --------------------------------------------------------------------------------

    async def generate_into(
        self,
        take: Take,
        prompt: Mapping[str, Any],
        *,
        trace: int,
        request_id: str,
        seed: int | None,
        signal: Signal,
        sampling: Mapping[str, Any] | None = None,
    ) -> Ending:
        """Generates one trace by the step; see `SteppingEngine.generate_into`."""
        from deepconf.engines.openai._probe import body_of
        from deepconf.engines.openai._request import Request

        merged = {**self._sampling, **(sampling or {})}
        width = self._widths.get(signal.top_logprobs)
        if width is None:
            width = await self._ask(signal.top_logprobs, merged)
        fields = {**self._extra, **merged}
        interface, most = self.capabilities.interface, _most(merged, self.capabilities)
        body = body_of(interface, prompt, self.model, width=width, seed=seed, sampling=fields)
        request = Request(
            self._client,
            self._turns,
            self._limits,
            self._others,
            self._path,
            body,
            width=width,
            most=most,
            take=take,
            trace=trace,
            signal=signal,
        )
        self._running[request_id] = request
        ending: Ending | None = None
        try:
            ending = await request.follow()
            return ending
        finally:
            del self._running[request_id]
            answer = request.answer
            self._tallies[request_id] = Tally(
                whole=ending is not None and ending.finish_reason != "aborted",
                counted=answer.counted,
                tokens=answer.count,
                unsure=answer.unsure,
                refusals=request.refusals,
                digest=answer.digest,
                likelihood=answer.likelihood,
            )
            while len(self._tallies) > _REMEMBERED:
                del self._tallies[next(iter(self._tallies))]

    async def stream(
        self,
        prompt: Mapping[str, Any],
        *,
        request_id: str,
        seed: int | None,
        signal: Signal,
        sampling: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[Chunk]:
        """Generates one trace; see `Engine.stream`. What breaks off here is not begun anew."""
        steps: deque[Step] = deque()
        news = asyncio.Event()

        begun = False

        def take(step: Step) -> Collection[int]:
            nonlocal begun
            if step.relaunched and begun:
                raise EngineError(f"request {request_id} broke off in the middle of its stream")
            begun = begun or bool(step.traces)
            steps.append(step)
            news.set()
            return ()

        options: dict[str, Any] = {"seed": seed, "signal": signal, "sampling": sampling}
        whole = asyncio.ensure_future(
            self.generate_into(take, prompt, trace=0, request_id=request_id, **options)
        )
        whole.add_done_callback(lambda _: news.set())
        try:
            while not whole.done() or steps:
                await news.wait()
                news.clear()
                while steps:
                    confidence = steps.popleft().confidence
                    yield Chunk(confidence, len(confidence), "", None)
            ending = await whole
            yield Chunk(np.empty(0, np.float32), 0, ending.text, ending.finish_reason)
        finally:
            whole.cancel()

    async def abort(self, request_ids: Sequence[str]) -> None:
        """Closes the connections of these traces."""
        for name in request_ids:
            if name in self._running:
                self._running[name].stop()

    async def late_tokens(self, request_ids: Sequence[str]) -> dict[str, int]:
        """None: what a server had on its way when its connection was closed is not seen."""
        return {}

    def remarks(self, request_ids: Sequence[str]) -> list[str]:
        """What the reader of a result must know of these traces; each is told of once."""
        found = [self._tallies.pop(name) for name in request_ids if name in self._tallies]
        return remarks_on(found, self.capabilities)

    def __repr__(self) -> str:
        """One line, without the key."""
        return f"<deepconf.engines.OpenAI {self.model!r} at {self._client.base_url}>"


def settings_of(
    *,
    sampling: Mapping[str, Any] | None = None,
    chat: Literal["auto", True, False] = "auto",
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What results depend on of an `OpenAI` of these arguments, as JSON values.

    Not its address: the same model elsewhere is the same.

    Raises:
        InvalidInput: an argument that cannot be right, or is no JSON.
        InvalidType: one that is no mapping.
    """
    if chat not in ("auto", True, False):
        raise InvalidInput(f"chat={chat!r}: must be 'auto', True or False")
    for name, given in (("sampling", sampling), ("chat_template_kwargs", chat_template_kwargs)):
        if given is not None and not isinstance(given, Mapping):
            raise InvalidType(f"{name}={given!r}: must be a mapping, such as a dict")
    return {
        "sampling": _checked_sampling(sampling or {}),
        "chat": chat,
        "chat_template_kwargs": _as_json(chat_template_kwargs or {}, "chat_template_kwargs"),
    }


def _checked_sampling(sampling: Mapping[str, Any]) -> dict[str, Any]:
    for name in sampling.keys() & _OWNED.keys():
        raise InvalidInput(f"sampling[{name!r}] cannot be set: {_OWNED[name]}")
    return _as_json(sampling, "sampling")


def _as_json(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(json.dumps(dict(given), allow_nan=False, sort_keys=True))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{where} cannot be sent as JSON: {error}") from None
    return found


def _most(sampling: Mapping[str, Any], capabilities: Capabilities) -> int:
    """Tokens that a trace can have."""
    limits = [sampling.get(name) for name in ("max_tokens", "max_completion_tokens")]
    whole = [each for each in (*limits, capabilities.max_model_len) if isinstance(each, int)]
    return min(whole, default=_ENDLESS)
