"""The garbage collector's heap, frozen while there are engines."""

from __future__ import annotations

import gc
import threading

__all__ = ["freeze", "thaw"]

_heap_lock = threading.Lock()
_freezers = 0
_frozen_before = False


def freeze() -> None:
    """Spares the garbage collector what torch and vLLM hold: half of a large run's time here."""
    global _freezers, _frozen_before
    with _heap_lock:
        if not _freezers:
            _frozen_before = gc.get_freeze_count() > 0
        _freezers += 1
        gc.collect()
        gc.freeze()


def thaw() -> None:
    """Undoes it with the last engine, unless the program itself had frozen something."""
    global _freezers
    with _heap_lock:
        _freezers -= 1
        if not _freezers and not _frozen_before:
            gc.unfreeze()
