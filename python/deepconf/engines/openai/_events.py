"""A stream of server-sent events, as chunks of a completion.

Only what is needed is decoded, into structures that the garbage collector need not look at: some
10 microseconds for a chunk of one token with twenty log-probabilities.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from deepconf.engines.openai._client import PASSING, Passing, Refused
from deepconf.errors import EngineError
from deepconf.importing import _json

__all__ = ["Choice", "Chunk", "Events", "Token"]

# Bytes of one event. A token with twenty log-probabilities takes some 2,000.
_MOST = 8 << 20


class Token(_json.Token, gc=False):
    """A token of a chat completion."""

    token: str = ""


class Logprobs(msgspec.Struct, gc=False):
    """The log-probabilities of a chunk's tokens, in either form."""

    content: list[Token] | None = None
    reasoning_content: list[Token] | None = None  # Generated before the content.
    tokens: list[str] | None = None  # Of completions, as the next two.
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class Delta(msgspec.Struct, gc=False):
    """New text of a chat."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Choice(msgspec.Struct, gc=False):
    """What is new of a trace."""

    index: int = 0
    delta: Delta | None = None
    text: str | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class Usage(msgspec.Struct, gc=False):
    """How many tokens there were."""

    completion_tokens: int | None = None


class Chunk(msgspec.Struct, gc=False):
    """An event."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(Chunk).decode


class Events:
    """The events of one stream, out of its bytes.

    Args:
        where: the server, for messages.
        quoted: how its own words are put into them.
    """

    def __init__(self, where: str, quoted: Callable[[str], str] = repr) -> None:
        self._where = where
        self._quoted = quoted
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._size = 0  # Bytes of their lines.
        self.done = False
        """Whether the server has said that nothing more comes."""

    def feed(self, new: bytes) -> Iterator[Chunk]:
        """The chunks that are complete with these bytes, to be read to the end; none behind it.

        Raises:
            Passing: the server says that it failed.
            EngineError: an event is no chunk, or too large.
        """
        if self.done:
            return
        self._rest += new
        lines: list[bytes] = []
        if b"\n" in new:
            *lines, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
        for line in lines:
            if line[-1:] == b"\r":
                line = line[:-1]
            if line[:5] == b"data:":
                self._data.append(line[5:])
                self._size += len(line)
            elif not line and self._data:
                data, self._data, self._size = b"\n".join(self._data), [], 0
                if data.strip() == b"[DONE]":
                    self.done = True
                    break
                yield self._chunk(data)
            if self._size > _MOST:
                break
        if len(self._rest) + self._size > _MOST:
            raise EngineError(
                f"{self._where}: an event of the stream has more than {_MOST >> 20} MiB: a token "
                "with its log-probabilities takes some kilobytes"
            )

    def _chunk(self, data: bytes) -> Chunk:
        try:
            chunk = _decode(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            start = self._quoted(data.decode("utf-8", "replace"))
            raise EngineError(
                f"{self._where}: an event of the stream is no chunk of a completion: "
                f"{_json.said(error)}; it begins {start}"
            ) from None
        if chunk.error is not None:
            raise self._failure(chunk.error)
        return chunk

    def _failure(self, error: Any) -> EngineError:
        """What to raise for an error within the stream, which is also how vLLM refuses requests."""
        code = error.get("code") if isinstance(error, Mapping) else None
        message = error.get("message", error) if isinstance(error, Mapping) else error
        said = self._quoted(message if isinstance(message, str) else json.dumps(message))
        if isinstance(code, int) and 400 <= code < 500 and code not in PASSING:
            return Refused(f"{self._where}: status {code}: {said}", code)
        return Passing(f"{self._where}: the server failed in the middle of a stream: {said}")
