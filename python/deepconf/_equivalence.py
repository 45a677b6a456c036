"""Mathematical equivalence by math-verify, in a process of its own.

A comparison of formulas can run for ever (think of 9**9**9**9), and math-verify's own time limit
works on the main thread only. So one helper process compares; when an answer takes too long it is
killed, and a new one is started for the next comparison. `python -m deepconf._equivalence` is that
process: it reads a JSON pair a line and answers true or false.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import IO

__all__ = ["Comparer"]

_STARTUP = 60.0
_GONE = ""


class Comparer:
    """Talks to the helper process; started when first needed, safe under threads."""

    _shared: Comparer | None = None
    _shared_lock = threading.Lock()

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = os.getpid()
        self._replies: queue.Queue[str] = queue.Queue()

    @classmethod
    def shared(cls) -> Comparer:
        """The one of this process."""
        with cls._shared_lock:
            if cls._shared is None:
                cls._shared = cls()
                atexit.register(cls._shared.close)
            return cls._shared

    def same(self, a: str, b: str, timeout: float) -> bool | None:
        """Whether math-verify finds them equal; None when it takes more than `timeout` seconds."""
        with self._lock:
            try:
                process = self._started()
                assert process.stdin is not None
                process.stdin.write(json.dumps([a, b]) + "\n")
                process.stdin.flush()
                reply = self._reply(timeout)
            except (queue.Empty, OSError):
                self._stop()
                return None
            except BaseException:
                self._stop()  # Interrupted: the reply would be taken for that of the next pair.
                raise
            return reply == "true" if reply != _GONE else None

    def _reply(self, timeout: float) -> str:
        """Waits in short turns, so that Ctrl-C gets through: see `engines.base.result_of`."""
        end = time.monotonic() + timeout
        while True:
            left = max(0.0, end - time.monotonic())
            try:
                return self._replies.get(timeout=min(left, 0.2))
            except queue.Empty:
                if left <= 0.2:
                    raise

    def close(self) -> None:
        """Ends the helper process."""
        with self._lock:
            self._stop()

    def _started(self) -> subprocess.Popen[str]:
        if self._owner == os.getpid() and self._process and self._process.poll() is None:
            return self._process
        self._stop()
        self._owner = os.getpid()
        self._replies = queue.Queue()
        process = subprocess.Popen(
            [sys.executable, "-m", "deepconf._equivalence"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        self._process = process
        assert process.stdout is not None
        listen = threading.Thread(
            target=_listen, args=(process.stdout, self._replies), name="deepconf-math", daemon=True
        )
        listen.start()
        # Importing the algebra takes a second or two, which no comparison should pay for.
        if self._replies.get(timeout=_STARTUP) == _GONE:
            raise OSError("the process that compares does not start")
        return process

    def _stop(self) -> None:
        if self._process is None or self._owner != os.getpid():
            return  # After a fork it is the parent's.
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # What a dead process has not read is lost.
                    pipe.close()
        self._process = None


def _listen(lines: IO[str], replies: queue.Queue[str]) -> None:
    try:
        for line in lines:
            replies.put(line.strip())
    except ValueError:
        pass  # Closed while reading: the process was stopped.
    finally:
        replies.put(_GONE)


def _serve() -> None:
    """The helper process: compares until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)

    def parsed(answer: str) -> object:
        bare = answer if "$" in answer or "\\boxed" in answer else f"${answer}$"
        return parse(bare, parsing_timeout=None)

    def equal(a: str, b: str) -> bool:
        try:
            left, right = parsed(a), parsed(b)
            # What counts as equal depends on which side is the gold answer: either way will do.
            pairs = ((left, right), (right, left))
            return any(verify(gold, target, timeout_seconds=None) for gold, target in pairs)
        except Exception:
            return False  # What cannot be understood equals nothing but itself.

    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(equal(*json.loads(line))), flush=True)


if __name__ == "__main__":
    _serve()
