"""What a server really gives, found out by asking for a few tokens.

Five short requests and the list of models. Whatever is wrong with the address, the key, the model
or the log-probabilities shows here, before a run begins.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from deepconf.engines.base import Signal
from deepconf.engines.openai._capabilities import Capabilities
from deepconf.engines.openai._client import BUSY, Client, Passing, Refused
from deepconf.engines.openai._events import Events
from deepconf.engines.openai._patience import Patience
from deepconf.engines.openai._remarks import CHANCE
from deepconf.engines.openai._tokens import Answer
from deepconf.errors import EngineError, InvalidInput

__all__ = ["PATHS", "body_of", "find_model", "only_model", "probe", "width_given"]

Interface = Literal["chat", "completions"]

PATHS: dict[Interface, str] = {"chat": "/chat/completions", "completions": "/completions"}

# Seconds to connect.
_CONNECT = 10.0
# What invites many different answers.
_PROMPT = "Write any twenty words that come to your mind, in any order:"
_TOKENS = 16
# Tokens that are begun, to see whether they go on when nobody listens.
_MANY = 2_000
# Log-probabilities to ask for, one more than policies do: that one makes sure of the others.
_WIDTHS = (21, 20, 11, 10, 6, 5, 2)
# Sampling parameters that say how long an answer is.
_LENGTHS = ("max_tokens", "max_completion_tokens", "min_tokens")
# Fields that requests of both interfaces have.
_FIELDS = (*_LENGTHS, "temperature", "seed", "logprobs", "top_logprobs", "stream_options")
# Seconds for all that one of the requests takes, for a server to be through with them, and for it
# to notice a closed connection.
_LONG, _REST, _NOTICE = 120.0, 1.0, 5.0
# Nats between two of the likeliest tokens that tell one temperature from another.
_APART = 0.1
# How servers say how many requests they are working on.
_RUNNING = re.compile(
    r"^(?:vllm:num_requests_running|sglang:num_running_reqs|llamacpp:requests_processing)"
    r"(?:\{[^}]*\})?\s+([0-9.e+]+)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Found:
    """What the list of models says."""

    model: str
    software: str | None = None
    max_model_len: int | None = None


def body_of(
    interface: Interface,
    prompt: Mapping[str, Any],
    model: str,
    *,
    width: int,
    seed: int | None,
    sampling: Mapping[str, Any],
) -> dict[str, Any]:
    """A request for one trace, streamed, with so many log-probabilities a token."""
    chat = interface == "chat"
    asked = {"logprobs": True, "top_logprobs": width} if chat else {"logprobs": width}
    return {
        "model": model,
        **prompt,
        **sampling,
        **asked,
        **({} if seed is None else {"seed": seed}),
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def find_model(client: Client, model: str | None) -> Found:
    """The model, by its name or as the only one.

    Raises:
        InvalidInput: there is none, or the list does not have it; it is said which there are.
        Refused: the key is not taken.
        EngineError: the server cannot be reached, or is another kind of server.
    """
    status, text = await _models(client)
    if status in (401, 403):
        raise Refused(
            f"{client.base_url}/models: status {status}: {client.quoted(text)}: it wants an API "
            "key, or another one",
            status,
        )
    listed = _listed(text) if status == 200 else None
    if listed is None:
        if model is not None:  # Not every server has a list.
            return Found(model)
        raise InvalidInput(
            f"model=None: {client.base_url}/models lists no models (status {status}, "
            f"{client.quoted(text)}), so the model must be named; base_url often ends in /v1"
        )
    names = [each["id"] for each in listed]
    if model is None and len(names) == 1:
        model = names[0]
    if model is None or model not in names:
        near = difflib.get_close_matches(model or "", names, n=5) or sorted(names)[:20]
        more = f" and {len(names) - len(near)} more" if len(names) > len(near) else ""
        listed_names = client.redacted(", ".join(map(repr, near)))
        raise InvalidInput(f"model={model!r}: {client.base_url} has {listed_names}{more}")
    entry = listed[names.index(model)]
    longest, owner = entry.get("max_model_len"), entry.get("owned_by")
    return Found(
        model,
        client.redacted(owner)[:60] if isinstance(owner, str) else None,
        longest if isinstance(longest, int) and longest > 0 else None,
    )


async def _models(client: Client) -> tuple[int, str]:
    """What the server answers when it has room, as one that still loads its model has not."""
    patience = Patience(client.patience)
    while True:
        status, text = await client.get("/models")
        if status not in BUSY or patience.spent():
            return status, text
        await asyncio.sleep(patience.pause(None))


def only_model(base_url: str, api_key: str | None) -> str:
    """The only model of a server.

    Raises:
        InvalidInput: there are several, or none.
        EngineError: it cannot be reached.
    """

    async def ask() -> str:
        client = Client(base_url, api_key, {}, _CONNECT, _CONNECT)
        try:
            return (await find_model(client, None)).model
        finally:
            await client.close()

    return asyncio.run(ask())


def _listed(text: str) -> list[dict[str, Any]] | None:
    try:
        data = json.loads(text)["data"]
        return [each for each in data if isinstance(each["id"], str)]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


async def probe(
    client: Client, found: Found, wanted: Interface | None, extra: Mapping[str, Any]
) -> tuple[Capabilities, dict[str, Any]]:
    """Asks the server, and says what it gives.

    Args:
        client: the server.
        found: the model.
        wanted: chat completions or completions; None for the former where they work.
        extra: further fields of every request.

    Returns:
        What it gives; and the fields of requests that make it say more.

    Raises:
        InvalidInput: it does not take such requests.
        EngineError: what it gives is not what scores can be computed from.
    """
    if found.software == "vllm":
        extra = {**extra, "return_token_ids": True, "return_tokens_as_token_ids": True}
    refused: str | None = None
    if wanted is not None:
        first, width = await _first(client, found.model, wanted, extra)
        interface = wanted
    else:
        try:
            first, width = await _first(client, found.model, "chat", extra)
            interface = "chat"
        except Refused as refusal:  # A model without a chat template, say.
            if _names_field(str(refusal), extra):
                raise
            refused = str(refusal)
            try:
                first, width = await _first(client, found.model, "completions", extra)
            except EngineError:
                raise refusal from None
            interface = "completions"
    ask = _Asking(client, found.model, interface, extra, width)
    again, other, cold = await asyncio.gather(ask(1), ask(2), ask(1, temperature=0.5, tokens=1))
    fewest = first.fewest or 0
    if fewest < 2:
        raise EngineError(
            f"{client.base_url} gives {fewest} log-probabilities a token, asked for {width}: at "
            "least 2 are needed, and the paper takes 20"
        )
    capabilities = Capabilities(
        server=client.base_url,
        model=found.model,
        software=found.software,
        interface=interface,
        top_logprobs=min(fewest, width),
        reasoning=True if first.reasoned else None,
        usage=first.usage is not None,
        token_ids=first.named,
        seed=_seeds(first, again, other),
        raw=_is_raw(first.top, cold.top),
        abort=await _aborts(client, ask, (found.max_model_len or 2 * _MANY) // 2),
        max_model_len=found.max_model_len,
        refused_chat=refused,
    )
    return capabilities, dict(extra)


def _names_field(said: str, extra: Mapping[str, Any]) -> bool:
    """Whether a refusal is of a field that completions are asked with as well."""
    names = "|".join(map(re.escape, (*_FIELDS, *extra)))
    return re.search(rf"\b(?:{names})\b", said) is not None


async def width_given(
    client: Client,
    capabilities: Capabilities,
    extra: Mapping[str, Any],
    k: int,
    widths: Sequence[int],
    sampling: Mapping[str, Any],
) -> int:
    """Which of these numbers of log-probabilities, for k that count, the server gives.

    Raises:
        InvalidInput: it does not give so many, or does not take these parameters.
    """
    # Two tokens are all that is wanted.
    kept = {name: sampling[name] for name in sampling if name not in _LENGTHS}
    said = ""
    for width in widths:
        ask = _Asking(client, capabilities.model, capabilities.interface, {**extra, **kept}, width)
        try:
            found = await ask(1, temperature=kept.get("temperature", 1.0), tokens=2)
        except Refused as refusal:
            if "logprob" not in str(refusal).lower():
                raise
            said = f"; it says: {refusal}"
            continue
        if (found.fewest or 0) >= width:
            return width
    hint = f", such as vLLM's --max-logprobs {k + 1}" if capabilities.software == "vllm" else ""
    most = capabilities.top_logprobs
    raise InvalidInput(
        f"top_logprobs={k}: {capabilities.server} gives {most} a token: set "
        f"Policy(top_logprobs={most}), or have the server give more{hint}{said}"
    )


async def _first(
    client: Client, model: str, interface: Interface, extra: Mapping[str, Any]
) -> tuple[_Probed, int]:
    """An answer with as many log-probabilities as the server gives; how many it was asked for."""
    for width in _WIDTHS:
        try:
            return await _Asking(client, model, interface, extra, width)(1), width
        except Refused as error:
            too_many = error.status in (400, 422) and "logprob" in str(error).lower()
            if not too_many or width == _WIDTHS[-1]:
                raise
    raise AssertionError


class _Probed(Answer):
    """An answer of which nothing is known before."""

    def __init__(self, where: str, redacted: Callable[[str], str]) -> None:
        # One entry is enough to be looked at, and masked ones are no matter here.
        signal = Signal(top_logprobs=10_000, logprob_floor=-1e4)
        super().__init__(where, signal, 1, _MANY + 1, redacted)
        self._k = 1 << 30  # Of each row, all.
        self.top: list[float] = []  # Of the first token.


class _Asking:
    """Asks for a few tokens."""

    def __init__(
        self,
        client: Client,
        model: str,
        interface: Interface,
        extra: Mapping[str, Any],
        width: int,
    ) -> None:
        self._client = client
        self._model = model
        self._interface = interface
        self._extra = extra
        self._width = width
        self._path = PATHS[interface]

    async def __call__(
        self, seed: int, *, temperature: float = 1.0, tokens: int = _TOKENS, stop_after: int = 0
    ) -> _Probed:
        """The answer; `stop_after` so many of its tokens the connection is closed."""
        where = self._client.base_url + self._path
        chat = [{"role": "user", "content": _PROMPT}]
        body = body_of(
            self._interface,
            {"messages": chat} if self._interface == "chat" else {"prompt": _PROMPT},
            self._model,
            width=self._width,
            seed=seed,
            sampling={**self._extra, "temperature": temperature, "max_tokens": tokens},
        )
        patience, busy = Patience(self._client.patience), False
        while True:
            answer = _Probed(where, self._client.redacted)
            try:
                await asyncio.wait_for(self._read(answer, body, stop_after), _LONG)
                return answer
            except (asyncio.TimeoutError, TimeoutError):
                late = f"{where}: {tokens} tokens took more than {_LONG:g} seconds"
                raise Passing(late) from None
            except Passing as error:  # A server that still loads its model, say.
                busy = error.busy or (busy and error.refused)  # It may close connections, too.
                if not busy or patience.spent():
                    raise
                pause = patience.pause(error.after)
            await asyncio.sleep(pause)

    async def _read(self, answer: _Probed, body: Mapping[str, Any], stop_after: int) -> None:
        events = Events(answer.where, self._client.quoted)
        async with self._client.stream(self._path, body) as content:
            while not (events.done and answer.finish) and not content.at_eof():
                new = await content.readany()
                rows: list[list[float]] = []
                for chunk in events.feed(new):
                    answer.take(chunk, rows)
                if rows and not answer.top:
                    answer.top = rows[0]
                if stop_after and answer.count >= stop_after:
                    return
        if answer.finish is None:
            raise EngineError(f"{answer.where}: the stream ended without a finish_reason")
        answer.check_whole()


def _seeds(
    first: _Probed, again: _Probed, other: _Probed
) -> Literal["repeats", "differs", "ignored"] | None:
    if first.digest != again.digest:
        return "differs"
    if first.digest != other.digest:
        return "repeats"
    # A few tokens that are as good as certain tell nothing.
    return "ignored" if first.likelihood < CHANCE else None


def _is_raw(warm: list[float], cold: list[float]) -> bool | None:
    """Whether the first token's log-probabilities are the same at half the temperature.

    Else the likeliest are twice as far apart.
    """
    place = min(len(warm), len(cold), 3) - 1
    if place < 1 or warm[0] - warm[place] < _APART:
        return None  # At any temperature they would be as close.
    before, after = warm[0] - warm[place], cold[0] - cold[place]
    return abs(after - before) < abs(after - 2 * before)


async def _aborts(client: Client, ask: _Asking, most: int) -> bool | None:
    """Whether a stream that is closed ends on the server, by its own count of requests."""
    parts = urlsplit(client.base_url)
    address = f"{parts.scheme}://{parts.netloc}/metrics"
    if await _comes_to_rest(client, address, _REST) is not True:
        return None  # Others' requests would be counted too.
    try:
        answer = await ask(3, tokens=min(_MANY, most), stop_after=1)
    except (Refused, Passing):
        return None
    # Where the end was there already, nothing could go on.
    return None if answer.finish else await _comes_to_rest(client, address, _NOTICE)


async def _comes_to_rest(client: Client, address: str, limit: float) -> bool | None:
    """Whether the server is working on nothing, within so many seconds; None if it does not say."""
    end = asyncio.get_running_loop().time() + limit
    while (running := await _running(client, address)) is not None:
        if running == 0:
            return True
        if asyncio.get_running_loop().time() > end:
            return False
        await asyncio.sleep(0.05)
    return None


async def _running(client: Client, address: str) -> float | None:
    """How many requests the server is working on, where it says so."""
    try:
        status, text = await client.get(address)
    except EngineError:
        return None
    counts = [float(count) for count in _RUNNING.findall(text)] if status == 200 else []
    return sum(counts) if counts else None
