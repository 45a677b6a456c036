"""An event loop on a thread of its own, on which an engine lives until it is closed."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from deepconf.engines.base import ENGINE_THREADS
from deepconf.errors import EngineDied, EngineError

__all__ = ["EngineLoop"]

T = TypeVar("T")
Own = TypeVar("Own", bound="EngineLoop")


class EngineLoop:
    """What engines have in common; `_stop` is theirs, and `_enter` may be.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._closing = False
        self._pending: set[Future[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    def _begin(self) -> None:
        """Starts the thread; `close` ends it, at the latest when the interpreter exits."""
        self._thread.start()
        atexit.register(self.close)

    def _enter(self) -> None:
        """The first thing on the thread."""

    async def _stop(self) -> None:
        """The last thing on the loop: ends every task."""
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()

    def _serve(self) -> None:
        self._enter()
        ENGINE_THREADS.add(threading.current_thread())
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._stop())
        self._loop.close()
        for future in list(self._pending):  # Submitted too late to be begun.
            future.cancel()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs a coroutine on the engine's event loop; `EngineDied` when it is closed."""
        try:
            if self._closing:
                raise RuntimeError
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise EngineDied("the engine is closed") from None
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        if not self._thread.is_alive():  # Which may have gone through what is pending already.
            future.cancel()
        return future

    def close(self) -> None:
        """Ends everything; may be called again.

        Raises:
            EngineError: called on the engine's own thread, which would wait for itself.
        """
        if threading.current_thread() is self._thread:
            raise EngineError("close() was called on the engine's own thread: call it on another")
        self._closing = True
        atexit.unregister(self.close)
        with contextlib.suppress(RuntimeError):  # The loop is closed.
            self._loop.call_soon_threadsafe(self._loop.stop)
        while self._thread.is_alive():
            self._hasten()
            self._thread.join(timeout=0.5)

    def _hasten(self) -> None:
        """While `close` waits."""

    def __enter__(self: Own) -> Own:
        """The engine itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()
