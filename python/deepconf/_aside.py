"""The user's own code, away from the event loop that traces are generated on."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Aside", "TookTooLong"]

T = TypeVar("T")

_Job = tuple[Callable[..., Any], tuple[Any, ...], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


class TookTooLong(Exception):
    """A call that was not waited for any longer."""


class Aside:
    """Calls functions on a thread of its own, one after the other, in the order they are given.

    One that takes longer than it may is left behind together with its thread, which no one waits
    for, and the next gets a new thread. Belongs to one event loop.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._turn = asyncio.Lock()  # Fair: first come, first served.
        self._jobs: queue.SimpleQueue[_Job | None] | None = None

    async def call(self, function: Callable[..., T], *args: Any, limit: float | None = None) -> T:
        """What `function(*args)` returns or raises.

        Raises:
            TookTooLong: more than `limit` seconds went by since its turn came.
        """
        async with self._turn:
            loop = asyncio.get_running_loop()
            done: asyncio.Future[T] = loop.create_future()
            self._started().put((function, args, loop, done))
            try:
                await asyncio.wait({done}, timeout=limit)
                if not done.done():
                    raise TookTooLong
                return done.result()
            finally:
                if not done.done():
                    done.cancel()
                    self.close()  # Whatever it is doing, the next one does not wait for it.
                del done, args  # An exception holds this frame, which must not hold it in turn.

    def close(self) -> None:
        """Lets the thread end when it is done."""
        if self._jobs is not None:
            self._jobs.put(None)
            self._jobs = None

    def _started(self) -> queue.SimpleQueue[_Job | None]:
        if self._jobs is None:
            self._jobs = queue.SimpleQueue()
            serve = threading.Thread(
                target=_serve, args=(self._jobs,), name=self._name, daemon=True
            )
            serve.start()
        return self._jobs


def _serve(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        function, args, loop, done = job
        value, error = None, None
        try:
            value = function(*args)
        except BaseException as raised:
            # What a future does not take, and what ends threads, is a failure like any other.
            plain = isinstance(raised, Exception) and not isinstance(raised, StopIteration)
            error = raised if plain else RuntimeError(repr(raised))
        with contextlib.suppress(RuntimeError):  # The loop is closed, and nobody asks any more.
            loop.call_soon_threadsafe(_settle, done, value, error)
        del job, function, args, done, value, error


def _settle(done: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(value)
    else:
        done.set_exception(error)
