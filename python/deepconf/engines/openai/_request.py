"""One trace, from its first try to the one that comes to an end.

What was refused is asked for again until our patience is spent; what broke off is generated again
from the start, under its own number and seed, and its tokens are void.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from deepconf.engines.base import Ending, Signal, Step, Take
from deepconf.engines.openai._client import Client, Passing
from deepconf.engines.openai._events import Events
from deepconf.engines.openai._tokens import Answer
from deepconf.engines.openai._turns import Turns
from deepconf.errors import EngineDied, EngineError

__all__ = ["Limits", "Request"]

T = TypeVar("T")

# Seconds of the first pause, and of the longest.
_PAUSE, _LONGEST = 0.5, 30.0
# Seconds for what follows the end of a trace, which is how many tokens there were, and for the
# stream to end when nothing more is to come.
_TAIL, _CLOSE = 5.0, 0.2


@dataclass(frozen=True)
class Limits:
    """How long is waited, and how often tried."""

    first_token: float
    """Seconds to the first token."""
    between_tokens: float
    """Seconds from one token to the next."""
    tries: int
    """How often a trace that breaks off is begun, in all."""
    patience: float
    """Seconds for which what the server refuses is asked for again."""


class _Stopped(Exception):
    """Its tokens are not wanted any more."""


class Request:
    """One trace.

    Args:
        client: where to.
        turns: through which its tokens go.
        limits: how long and how often.
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
        self._path = path
        self._body = body
        self._where = client.base_url + path
        self._answer_args = (self._where, signal, width, most)
        self.answer = Answer(*self._answer_args)
        self.deadline = math.inf
        self.refusals = 0
        self._task: asyncio.Future[Any] | None = None
        self._stopped = False
        self._why: Exception | None = None

    async def follow(self) -> Ending:
        """Generates it, with as many tries as it takes.

        Raises:
            EngineDied: there was no server for so long that none is expected.
            EngineError: this trace has failed for good.
        """
        loop = asyncio.get_running_loop()
        broken = waits = 0
        since = loop.time()
        while True:
            try:
                await self._interruptible(self._try())
                finish = self.answer.finish
                assert finish is not None, "it has ended"
                return Ending(finish, self.answer.channels.whole, self.answer.channels.final)
            except _Stopped:
                return self._ending()
            except Passing as error:
                self.deadline = math.inf
                if not error.refused:
                    broken, waits, since = broken + 1, 0, loop.time()
                    if broken >= self._limits.tries:
                        raise EngineError(f"{error} (try {broken} of {broken})") from None
                else:
                    self.refusals += 1
                    if loop.time() - since >= self._limits.patience:
                        kind = EngineDied if error.away else EngineError
                        waited = f"for {self._limits.patience:g} seconds it was tried again"
                        raise kind(f"{error} ({waited})") from None
                pause = _pause(waits, error.after)
                waits += 1
            try:
                self._begin_anew()
                await self._interruptible(asyncio.sleep(pause))
            except _Stopped:
                return self._ending()

    def stop(self, error: Exception | None = None) -> None:
        """Ends it now, and closes its connection.

        Args:
            error: what makes it a failure.
        """
        self._stopped = True
        self._interrupt(error or _Stopped())

    def overdue(self) -> None:
        """Gives the try at hand up: nothing came in time."""
        self.deadline = math.inf
        first = not self.answer.count
        limit = self._limits.first_token if first else self._limits.between_tokens
        which = "first token" if first else f"token after {self.answer.count} tokens"
        self._interrupt(Passing(f"{self._where}: no {which} within {limit:g} seconds"))

    # ---- one try -----------------------------------------------------------------------------

    async def _try(self) -> None:
        loop = asyncio.get_running_loop()
        limits, answer, events = self._limits, self.answer, Events(self._where, self._client.quoted)
        self.deadline = loop.time() + limits.first_token
        async with self._client.stream(self._path, self._body) as content:
            while answer.finish is None:
                new = b"" if events.done else await content.readany()
                if not new:
                    raise Passing(
                        f"{self._where}: the stream ended in the middle of the trace, after "
                        f"{answer.count} tokens"
                    )
                rows = [row for chunk in events.feed(new) for row in answer.take(chunk)]
                if rows:
                    self._turns.add(self, rows)
                    self.deadline = loop.time() + limits.between_tokens
            self.deadline = math.inf
            end = loop.time() + _TAIL
            while not content.at_eof() and loop.time() < end:
                try:
                    new = await asyncio.wait_for(content.readany(), end - loop.time())
                except (asyncio.TimeoutError, TimeoutError):
                    break
                for chunk in events.feed(new):
                    answer.take(chunk)  # How many tokens there were; no more of them.
                if events.done:  # So the connection can be used again.
                    end = min(end, loop.time() + _CLOSE)
        answer.check_whole()
        self._turns.flush()  # No token comes after the end.

    def _begin_anew(self) -> None:
        """Before another try: what came is void."""
        self._turns.flush()
        if self._stopped:
            return
        if self.answer.count:
            self.take(Step([], np.empty(0, np.float32), relaunched=[self.trace]))
        self.answer = Answer(*self._answer_args)

    def _ending(self) -> Ending:
        self._turns.flush()
        return Ending("aborted", self.answer.channels.whole, self.answer.channels.final)

    async def _interruptible(self, work: Coroutine[Any, Any, T]) -> T:
        if self._stopped:
            work.close()
            raise self._why or _Stopped()
        task: asyncio.Task[T] = asyncio.ensure_future(work)
        self._task = task
        try:
            return await task
        except asyncio.CancelledError:
            why, self._why = self._why, None
            if why is None:
                raise
            raise why from None
        finally:
            self._task = None

    def _interrupt(self, why: Exception) -> None:
        if self._why is None:
            self._why = why
            if self._task is not None:
                self._task.cancel()


def _pause(waits: int, after: float | None) -> float:
    """Seconds to wait: twice as long each time, and not all at once; or as the server says."""
    longest = min(_LONGEST, _PAUSE * 2.0**waits)
    jitter = random.uniform(0.5, 1.0)
    return jitter * longest if after is None else after + jitter * _PAUSE
