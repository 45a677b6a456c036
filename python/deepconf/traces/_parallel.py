"""Work on parts by several threads, with results in order and bounded memory."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["cores", "in_order"]


class Sized(Protocol):
    """Something that knows its size in memory."""

    @property
    def nbytes(self) -> int:
        """Bytes."""


T = TypeVar("T")
R = TypeVar("R", bound=Sized)


def cores() -> int:
    """How many cores this process may use, 16 at the most.

    More would wait for the disk, and each takes memory.
    """
    if hasattr(os, "sched_getaffinity"):
        return min(16, len(os.sched_getaffinity(0)))
    return min(16, os.cpu_count() or 1)


def in_order(
    parts: Iterable[Iterable[T]], function: Callable[[T], R], *, threads: int, room: int = 16 << 20
) -> Iterator[R]:
    """What a function makes of every item of every part, in their order.

    Each part is read, and the function called, by one of several threads. Results wait in `room`
    bytes; of the part whose turn it is, in as many again, or one. An error ends it at its place.
    """
    yield from _Lanes(iter(parts), function, room).run(threads)


class _Lane(Generic[R]):
    """The results of one part."""

    def __init__(self) -> None:
        self.results: deque[R] = deque()
        self.nbytes = 0
        self.ended = False
        self.error: BaseException | None = None


class _Lanes(Generic[T, R]):
    def __init__(self, parts: Iterator[Iterable[T]], function: Callable[[T], R], room: int) -> None:
        self._parts = parts
        self._function = function
        self._room = room
        self._changed = threading.Condition()
        self._lanes: deque[_Lane[R]] = deque()
        self._working = 0
        self._stopped = False

    def run(self, threads: int) -> Iterator[R]:
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        self._working = threads
        try:
            for worker in workers:
                worker.start()
            while (lane := self._first()) is not None:
                while (result := self._next(lane)) is not None:
                    yield result
        finally:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
            for worker in workers:
                if worker.ident is not None:
                    worker.join()

    def _first(self) -> _Lane[R] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._lanes or not self._working)
            return self._lanes[0] if self._lanes else None

    def _next(self, lane: _Lane[R]) -> R | None:
        """The next result of the first lane; None when there are no more."""
        with self._changed:
            self._changed.wait_for(lambda: lane.results or lane.ended)
            if lane.results:
                result = lane.results.popleft()
                lane.nbytes -= result.nbytes
                self._changed.notify_all()
                return result
            if lane.error is not None:
                raise lane.error
            self._lanes.popleft()
            self._changed.notify_all()
            return None

    def _work(self) -> None:
        while True:
            lane: _Lane[R] = _Lane()
            with self._changed:
                try:
                    part = None if self._stopped else next(self._parts, None)
                except BaseException as error:
                    part, lane.error, lane.ended = None, error, True
                    self._lanes.append(lane)
                if part is None:
                    self._working -= 1
                    self._changed.notify_all()
                    return
                self._lanes.append(lane)
            try:
                for item in part:
                    if not self._put(lane, self._function(item)):
                        break
            except BaseException as error:
                lane.error = error
            finally:  # Its files and threads, whoever may still hold the error.
                getattr(part, "close", lambda: None)()
            with self._changed:
                lane.ended = True
                self._changed.notify_all()

    def _put(self, lane: _Lane[R], result: R) -> bool:
        """Adds a result when there is room; False when no more are wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._has_room(lane))
            lane.results.append(result)
            lane.nbytes += result.nbytes
            self._changed.notify_all()
            return not self._stopped

    def _has_room(self, lane: _Lane[R]) -> bool:
        if lane is self._lanes[0]:
            return lane.nbytes < self._room
        return sum(other.nbytes for other in self._lanes) < self._room
