"""How long what a server refuses is asked for again, and after which pauses."""

from __future__ import annotations

import asyncio
import math
import random

__all__ = ["Patience"]

# Seconds of the first pause, and of the longest.
_PAUSE, _LONGEST = 0.5, 30.0
# Doublings after which a pause is the longest anyway.
_DOUBLINGS = 10


class Patience:
    """Pauses between tries, twice as long each time and not all at once, or as the server says.

    Args:
        seconds: for which is tried again.

    Attributes:
        seconds: as given.
        since: from when on it counts, by the event loop's clock.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.begin()

    def begin(self) -> None:
        """As if nothing had been refused yet."""
        self._waits = 0
        self.since = math.inf

    def spent(self, served: float = -math.inf) -> bool:
        """Whether it is, at a refusal; the first begins it.

        Args:
            served: until when others had what was refused here, which does not count.
        """
        now = asyncio.get_running_loop().time()
        self.since = max(min(self.since, now), served)
        return self._left() <= 0

    def _left(self) -> float:
        now = asyncio.get_running_loop().time()
        return min(self.since, now) + self.seconds - now

    def pause(self, after: float | None) -> float:
        """Seconds to wait: the last try is when patience ends.

        Args:
            after: what the server says.
        """
        own = random.uniform(0.5, 1.0) * min(_LONGEST, _PAUSE * 2.0 ** min(self._waits, _DOUBLINGS))
        self._waits += 1
        asked = 0.0 if after is None else after + random.uniform(0.0, _PAUSE)
        return max(0.0, min(max(own, asked), self._left()))
