"""The tokens of one trace, each held against what a server must give.

A row of log-probabilities that cannot be right is an error that names the server, the field and the
token: nothing is scored that was not looked at. Costs some 3 microseconds a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from deepconf.engines.base import Signal
from deepconf.engines.openai._channels import Channels
from deepconf.engines.openai._client import Passing
from deepconf.engines.openai._events import Choice, Chunk
from deepconf.errors import EngineError, InvalidInput
from deepconf.importing._json import status_of
from deepconf.importing._rows import Rows, Scorer

__all__ = ["Answer"]

Sampled = tuple[str, float | None, Sequence[float]]
"""A token, its log-probability, and those of the likeliest."""

# By so much may the same log-probability differ from one field to another.
_ROUNDING = 1e-3
# What servers write of tokens that are ruled out.
_MASKED = -9999.0
# Rows with fewer entries may be alike by chance, as coarse logits have few values. So many pairs of
# neighbours within chunks, and from one chunk to the next, tell whether it was that: with p for the
# chance of any two, p^64 · P(Binomial(16, p) ≤ 8) is below 1e-7 for every p.
_TELLING = 6
_WITHIN, _ACROSS = 64, 16
# Bytes that a text may be longer than its tokens, where those stand for parts of characters.
_PARTS = 16


class Answer:
    """What has come of one request.

    Args:
        where: the server, for messages.
        signal: what is wanted of the log-probabilities.
        width: how many of the likeliest the server was asked for.
        most: tokens that there can be.
        redacted: takes secrets out of the server's words.

    Attributes:
        where: the server.
        count: tokens so far.
        unsure: those of which the k-th likeliest may be missing.
        fewest: entries of the token that has fewest.
        digest: of the tokens: two answers that are the same have the same.
        likelihood: of all tokens, nats: how probable it was that just these came.
        finish: "finished" or "length", once it has ended.
        usage: tokens, as the server counts them; None where it does not.
        named: whether every chunk with tokens named them.
    """

    def __init__(
        self,
        where: str,
        signal: Signal,
        width: int,
        most: int,
        redacted: Callable[[str], str] = str,
    ) -> None:
        self.where = where
        self._redacted = redacted
        self._k = min(signal.top_logprobs, width)
        self._width = width
        self._returned = signal.entries == "returned"
        self._floor = signal.logprob_floor
        self._most = most
        self._spelled = 0  # Bytes of the tokens that came, and of the text; white space apart.
        self._written = 0
        self._parts = False  # Whether a token is part of a character.
        self._bare = 0  # Bytes of the text that came without tokens.
        self._narrow = _Narrow()
        self.channels = Channels()
        self.reasoned = False
        self.count = self.unsure = self.digest = 0
        self.likelihood = 0.0
        self.fewest: int | None = None
        self.finish: Literal["finished", "length"] | None = None
        self.usage: int | None = None
        self.named = True

    @property
    def counted(self) -> bool:
        """Whether the server said itself how many tokens there were, or which."""
        return self.usage is not None or self.named

    def take(self, chunk: Chunk, rows: list[list[float]]) -> None:
        """Takes a chunk in.

        Args:
            chunk: what came.
            rows: to which the log-probabilities of its tokens that count are added, a list each,
                most likely first, nats; what is raised does not take them back.

        Raises:
            Passing: the server gave the trace up.
            EngineError: something cannot be right.
        """
        if chunk.usage is not None and chunk.usage.completion_tokens is not None:
            self.usage = chunk.usage.completion_tokens
        begun = len(rows)
        for choice in chunk.choices or ():
            if choice.index:
                raise self._wrong("choices", f"has index {choice.index}, and one was asked for")
            new = self._rows(choice)
            if new and self.finish is not None:
                raise self._wrong("choices", "goes on behind a finish_reason")
            rows += new
            self._read(choice, len(rows) - begun)
            if choice.finish_reason is not None:
                self._end(choice.finish_reason)

    def check_whole(self) -> None:
        """Looks at the whole trace, once it has ended.

        Raises:
            EngineError: the tokens that came are not those that the server counted.
        """
        if not self.count and not self._written:
            raise EngineError(f"{self.where}: an empty answer: it has no token and no text")
        if self.usage is None:
            if self._bare:
                raise self._wrong(
                    "logprobs",
                    f"is missing at the end, where a text of {self._bare} bytes comes, and no "
                    "usage says how many tokens there were",
                )
            if self._written > self._spelled + (_PARTS if self._parts else 0):
                raise self._wrong(
                    "logprobs",
                    f"has {self._spelled} bytes in its tokens and the text {self._written}: tokens "
                    "are missing",
                )
            return
        # Some servers count the token that ends a text, which has none, and do not show it.
        unseen = self.usage - self.count
        end = unseen == 1 and self.finish == "finished" and self._written <= self._spelled
        if unseen and not end:
            raise self._wrong(
                "usage.completion_tokens",
                f"is {self.usage}, and there were log-probabilities of {self.count} tokens",
            )

    # ---- one chunk ---------------------------------------------------------------------------

    def _rows(self, choice: Choice) -> list[list[float]]:
        logprobs, rows = choice.logprobs, []
        if logprobs is not None:
            if logprobs.content is not None or logprobs.reasoning_content is not None:
                rows = self._checked(_of_chat(choice))
            elif logprobs.top_logprobs is not None:
                rows = self._checked(self._of_completion(choice))
        if choice.token_ids is None:
            self.named = self.named and not rows
        elif len(choice.token_ids) != len(rows):
            raise self._wrong(
                "token_ids",
                f"has {len(choice.token_ids)} tokens, and there are log-probabilities of "
                f"{len(rows)}",
            )
        return rows

    def _checked(self, tokens: Iterable[Sampled]) -> list[list[float]]:
        """The rows of a chunk, each of which is a row of its own."""
        rows: list[list[float]] = []
        before: list[float] = []
        k = self._k
        for token, own, entries in tokens:
            row = sorted(entries, reverse=True)
            if len(row) < self._width:
                raise self._too_few(token, len(row))
            if own is None:
                raise self._wrong("logprob", "is missing", token)
            counted = row[:k]
            if self._returned and own < counted[-1]:
                counted.append(own)
            if counted[0] > _ROUNDING or (self._floor is None and counted[-1] <= _MASKED):
                self._refuse(counted, token)
            if own not in row and min(abs(own - p) for p in row) > _ROUNDING and own > row[-1]:
                raise self._wrong(
                    "top_logprobs",
                    f"lacks the sampled token, whose {own:g} is above the lowest of them, "
                    f"{row[-1]:g}: they are those of another token",
                    token,
                )
            if len(row) < _TELLING:
                repeated = self._narrow.repeated(row, begins=not before)
            else:
                repeated = row == before and row[1] > _MASKED
            if repeated:
                raise self._wrong(
                    "top_logprobs",
                    "is the same as that of the token before, to the last digit: they are repeated",
                    token,
                )
            before = row
            if self.fewest is None or len(row) < self.fewest:
                self.fewest = len(row)
            # Listed first though not the likeliest, it may have taken the place of the last.
            if len(row) == k > 1 and entries[0] == row[-1] < row[-2]:
                self.unsure += 1
            rows.append(counted)
            self.count += 1
            self.digest = hash((self.digest, token or own))
            self.likelihood += own
            self._spelled += _bytes(token)
            self._parts = self._parts or "\ufffd" in token or token.startswith("bytes:")
        if self.count > self._most:
            raise self._wrong(
                "choices", f"goes on behind {self._most} tokens, which was the most asked for"
            )
        return rows

    def _of_completion(self, choice: Choice) -> list[Sampled]:
        logprobs = choice.logprobs
        assert logprobs is not None, "it was looked at"
        tops = logprobs.top_logprobs or []
        owns = logprobs.token_logprobs or [None] * len(tops)
        names = logprobs.tokens or [""] * len(tops)
        if not len(tops) == len(owns) == len(names):
            raise self._wrong(
                "logprobs",
                f"has {len(names)} tokens, {len(owns)} token_logprobs and {len(tops)} top_logprobs",
            )
        return [
            (name, own, [*top.values()] if top else [])
            for name, own, top in zip(names, owns, tops, strict=True)
        ]

    def _read(self, choice: Choice, rows: int) -> None:
        """Its text; there is none without log-probabilities but at the end."""
        delta = choice.delta
        reasoning = None if delta is None else delta.reasoning or delta.reasoning_content
        content = choice.text if delta is None else delta.content
        if not (reasoning or content):
            return
        if not rows and choice.finish_reason is None:
            name = "text" if delta is None else "delta.content"
            if reasoning:
                name = f"delta.{'reasoning' if delta and delta.reasoning else 'reasoning_content'}"
            raise self._wrong(name, "has a text and no log-probabilities of its tokens")
        self.reasoned = self.reasoned or bool(reasoning)
        self.channels.add(reasoning, content)
        length = _bytes((reasoning or "") + (content or ""))
        self._written += length
        if not rows and choice.token_ids is None:
            self._bare += length

    def _end(self, reason: str) -> None:
        reason = self._redacted(reason)[:60]
        try:
            status = status_of(reason, f"{self.where}: choices[0].finish_reason")
        except InvalidInput as error:
            raise EngineError(str(error)) from None
        if reason in ("abort", "cancelled", "error"):
            raise Passing(f"{self.where}: the server gave the trace up: finish_reason={reason!r}")
        if status not in ("finished", "length"):
            raise EngineError(f"{self.where}: the server ended the trace by {reason!r}")
        self.finish = "length" if status == "length" else "finished"

    # ---- what is wrong -----------------------------------------------------------------------

    def _wrong(self, field: str, what: str, token: str | None = None) -> EngineError:
        which = f"token {self.count}" + (
            "" if token is None else f", {self._redacted(token)[:60]!r}"
        )
        field = field if field in ("choices", "usage.completion_tokens") else f"choices[0].{field}"
        return EngineError(f"{self.where}: {field} {what} (at {which} of the trace)")

    def _too_few(self, token: str, entries: int) -> EngineError:
        if not entries:
            return self._wrong("top_logprobs", "is empty: a token without log-probabilities", token)
        return self._wrong(
            "top_logprobs",
            f"has {entries} of the {self._width} that were asked for: the server gives fewer, or "
            "two of them read alike (chat completions tell those apart)",
            token,
        )

    def _refuse(self, row: list[float], token: str) -> None:
        """Says of numbers that are no log-probabilities what reading files says of them."""
        values, width = np.array(row), np.array([len(row)])
        rows = Rows(values, width, width, True, np.empty(0, np.int64))
        try:
            Scorer(len(row), "topk", self._floor, "error")(rows, "top_logprobs")
        except InvalidInput as error:
            said = str(error).partition(": token 0 ")[2] or str(error)
            raise self._wrong("top_logprobs", said, token) from None


class _Narrow:
    """Rows of so few entries that two may be alike by chance.

    Where they are repeated, all are alike within chunks, and not from one chunk to the next.
    """

    def __init__(self) -> None:
        self._last: list[float] = []
        self._within = self._unlike = self._across = self._alike = 0

    def repeated(self, row: list[float], *, begins: bool) -> bool:
        """Whether this row, which may begin a chunk, is for certain that of the token before."""
        last, self._last = self._last, row
        if not last or row[-1] <= _MASKED:
            return False
        if begins:
            self._across += 1
            self._alike += row == last
            return False
        self._within += 1
        self._unlike += row != last
        enough = self._within >= _WITHIN and self._across >= _ACROSS
        return enough and not self._unlike and 2 * self._alike <= self._across


def _bytes(text: str) -> int:
    """Of a text without its white space, of which some tokenizers leave out a part."""
    return len("".join(text.replace("▁", " ").split()).encode("utf-8", "surrogatepass"))


def _of_chat(choice: Choice) -> Iterator[Sampled]:
    logprobs = choice.logprobs
    assert logprobs is not None, "it was looked at"
    for part in (logprobs.reasoning_content, logprobs.content):
        for token in part or ():
            tops = token.top_logprobs or ()
            yield token.token, token.logprob, [entry.logprob for entry in tops]
