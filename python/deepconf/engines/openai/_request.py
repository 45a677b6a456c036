"""One trace, from its first try to the one that comes to an end.

What was refused is asked for again until our patience is spent; what broke off is generated again
from the start, under its own number and seed, and its tokens are void.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from deepconf.engines.base import Ending, Signal, Step, Take
from deepconf.engines.openai._client import Client, Passing, Refused
from deepconf.engines.openai._events import Events
from deepconf.engines.openai._patience import Patience
from deepconf.engines.openai._tokens import Answer
from deepconf.engines.openai._turns import Turns
from deepconf.errors import EngineDied, EngineError

if TYPE_CHECKING:
    import aiohttp

__all__ = ["Limits", "Others", "Request"]

T = TypeVar("T")

# Seconds for what follows the end of a trace, which is how many tokens there were, and for the
# stream to end when nothing more is to come.
_TAIL, _CLOSE = 1.0, 0.2


@dataclass(frozen=True)
class Limits:
    """How long is waited, and how often tried."""

    first_token: float
    """Seconds to the first token."""
    between_tokens: float
    """Seconds from one token to the next."""
    tries: int
    """How often a trace that breaks off is begun, in all."""


@dataclass
class Others:
    """What all requests of an engine have seen of its server."""

    last: float = -math.inf
    """When tokens came last, by the event loop's clock."""
    prompted: bool = False
    """Whether a text ended thoughts that it had not begun: the prompt begins them."""


class _Stopped(Exception):
    """Its tokens are not wanted any more."""


class Request:
    """One trace.

    Args:
        client: where to.
        turns: through which its tokens go.
        limits: how long and how often.
        others: what all requests have seen.
        path: what is asked.
        body: with which parameters.
        width: how many log-probabilities a token `body` asks for.
        most: tokens that there can be.
        take: where its tokens go.
        trace: what they are marked with.
        signal: what is wanted of the log-probabilities.

    Attributes:
        answer: what has come of the try at hand.
        deadline: when to complain, by the event loop's clock.
        refusals: how often the server had no room.
    """

    def __init__(
        self,
        client: Client,
        turns: Turns,
        limits: Limits,
        others: Others,
        path: str,
        body: Mapping[str, Any],
        *,
        width: int,
        most: int,
        take: Take,
        trace: int,
        signal: Signal,
    ) -> None:
        self.take = take
        self.trace = trace
        self.signal = signal
        self._client = client
        self._turns = turns
        self._limits = limits
        self._others = others
        self._path = path
        self._body = body
        self._where = client.base_url + path
        self._answer_args = (self._where, signal, width, most, client.redacted)
        self.answer = Answer(*self._answer_args)
        self.deadline = math.inf
        self.refusals = 0
        self._task: asyncio.Future[Any] | None = None
        self._stopped: Exception | None = None
        self._late: Passing | None = None

    async def follow(self) -> Ending:
        """Generates it, with as many tries as it takes.

        Raises:
            EngineDied: there was no server for so long that none is expected.
            EngineError: this trace has failed for good.
        """
        broken, patience = 0, Patience(self._client.patience)
        while True:
            try:
                await self._interruptible(self._try())
                return self._ending()
            except _Stopped:
                return self._ending(stopped=True)
            except Passing as error:
                self.deadline = math.inf
                if error.refused:
                    self.refusals += 1
                    # While others get tokens, it waits for room.
                    if patience.spent(self._others.last if error.busy else -math.inf):
                        raise self._given_up(error, patience) from None
                else:
                    broken += 1
                    patience.begin()
                    if broken >= self._limits.tries:
                        raise EngineError(f"{error} (try {broken} of {broken})") from None
                pause, anew = patience.pause(error.after), not error.refused
            try:
                self._begin_anew(anew)
                await self._interruptible(asyncio.sleep(pause))
            except _Stopped:
                return self._ending()

    def _given_up(self, error: Passing, patience: Patience) -> EngineError:
        """What to raise when patience is spent: no server, unless it serves others meanwhile."""
        gone = error.away and self._others.last <= patience.since
        said = f"{error} (for {patience.seconds:g} seconds it was tried again)"
        return EngineDied(said) if gone else EngineError(said)

    def stop(self, error: Exception | None = None) -> None:
        """Ends it now, and closes its connection.

        Args:
            error: what makes it a failure.
        """
        if self._stopped is None:
            self._stopped = error or _Stopped()
            self._cancel()

    def overdue(self) -> None:
        """Gives the try at hand up: nothing came in time."""
        limits, first = self._limits, not self.answer.count
        if first:  # Where the server serves others, it waits for room.
            self.deadline = max(self.deadline, self._others.last + limits.first_token)
            if self.deadline >= asyncio.get_running_loop().time():
                return
        self.deadline = math.inf
        limit = limits.first_token if first else limits.between_tokens
        which = "first token" if first else f"token after {self.answer.count} tokens"
        hint = (
            ", nor of any other trace: a lower `concurrency` or a longer `first_token_timeout` "
            "gives the server more time for each"
        )
        self._late = Passing(
            f"{self._where}: no {which} within {limit:g} seconds{hint if first else ''}"
        )
        self._cancel()

    # ---- one try -----------------------------------------------------------------------------

    async def _try(self) -> None:
        answer, events = self.answer, Events(self._where, self._client.quoted)
        self.deadline = asyncio.get_running_loop().time() + self._limits.first_token
        async with self._client.stream(self._path, self._body) as content:
            while answer.finish is None:
                new = b"" if events.done else await content.readany()
                if not new:
                    raise Passing(
                        f"{self._where}: the stream ended in the middle of the trace, after "
                        f"{answer.count} tokens"
                    )
                self._take_in(events, new)
            self.deadline = math.inf
            await self._read_on(content, events)
        answer.check_whole()

    def _take_in(self, events: Events, new: bytes) -> None:
        """What came; tokens before a failure in the same piece were generated, too."""
        rows: list[list[float]] = []
        try:
            for chunk in events.feed(new):
                self.answer.take(chunk, rows)
        except (Passing, Refused):
            if self.answer.finish is None:
                raise
        finally:
            if rows:
                others = self._others
                self._turns.add(self, rows)
                others.last = asyncio.get_running_loop().time()
                self.deadline = others.last + self._limits.between_tokens
                others.prompted = others.prompted or self.answer.channels.ends_thoughts

    async def _read_on(self, content: aiohttp.StreamReader, events: Events) -> None:
        """What follows the end: how many tokens there were. What fails here costs no trace."""
        import aiohttp

        loop = asyncio.get_running_loop()
        end = loop.time() + _TAIL
        while not content.at_eof() and loop.time() < end:
            try:
                new = await asyncio.wait_for(content.readany(), end - loop.time())
            except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
                break
            self._take_in(events, new)  # No more tokens.
            if events.done:  # So the connection can be used again.
                end = min(end, loop.time() + _CLOSE)

    def _begin_anew(self, broken: bool) -> None:
        """Before another try: what came is void."""
        self._turns.flush()
        if self._stopped is not None:
            return
        if broken:
            self.take(Step([], np.empty(0, np.float32), relaunched=[self.trace]))
        self.answer = Answer(*self._answer_args)

    def _ending(self, *, stopped: bool = False) -> Ending:
        self._turns.flush()  # No token comes after the end.
        channels, finish = self.answer.channels, self.answer.finish or "aborted"
        if stopped and finish != "aborted":  # It was over, and waited for the count of its tokens.
            try:
                self.answer.check_whole()
            except EngineError:
                finish = "aborted"
        self._others.prompted = self._others.prompted or channels.ends_thoughts
        thinks = finish == "length" and self._others.prompted and channels.all_thoughts
        text, final = channels.read()
        return Ending(finish, text, "" if thinks else final)

    async def _interruptible(self, work: Coroutine[Any, Any, T]) -> T:
        self._late = None
        if self._stopped is not None:
            work.close()
            raise self._stopped
        task: asyncio.Task[T] = asyncio.ensure_future(work)
        self._task = task
        try:
            return await task
        except asyncio.CancelledError:
            why = self._stopped or self._late
            if why is None:
                raise
            raise why from None
        finally:
            self._task = None

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
