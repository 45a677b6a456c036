"""Ends an engine's processes when ours is gone, however it went.

vLLM's engine core does not notice that its parent died, and workers may outlive a core that dies or
is too slow to end. A guardian does: a small process of its own session, which holds the read end of
a pipe whose write end only we hold. The system closes that end when we die, of SIGKILL too, and the
guardian then kills what it was told of, with all that descends from it. This file is both sides:
the module we import, and the guardian's script, which imports nothing of deepconf, nothing of the
user's, and of vLLM's packages psutil alone.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from multiprocessing.process import BaseProcess
from typing import Any

__all__ = ["Guardian"]

# Seconds between two looks at what the engine's processes have started.
_PERIOD = 5.0
# Seconds for what is left of an engine that has ended, such as a tracker that tidies up behind it.
_GRACE = 5.0
_UNHEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Told instead of a process: the engine has ended in order.
_DONE = b"done"


class Guardian:
    """Watches over the processes that a thread starts by `multiprocessing`."""

    def __init__(self) -> None:
        self.processes: list[BaseProcess] = []
        self._write: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        try:
            import psutil

            packages = os.path.dirname(os.path.dirname(psutil.__file__))
            read, self._write = os.pipe()  # Neither is inherited by a program we start.
            _guardians.add(self)
            # It inherits the mask, and so heeds none of these from its first moment.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, _UNHEEDED)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", __file__, packages],
                    stdin=read,
                    stdout=subprocess.DEVNULL,  # Whoever reads our output waits for its end.
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    start_new_session=True,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                os.close(read)
        except (ImportError, OSError) as error:
            self._hang_up()
            from deepconf.errors import RunWarning

            warnings.warn(
                f"no guardian of vLLM's processes ({error}): they outlive this process if it is "
                "killed",
                RunWarning,
                stacklevel=2,
            )

    def watch(self) -> None:
        """From now on, what this thread starts is told to the guardian at once."""
        global _plain_start
        _watching.guardian = self
        with _lock:
            if _plain_start is None:
                _plain_start = BaseProcess.start
                BaseProcess.start = _start_and_tell  # type: ignore[method-assign, assignment]

    def kill(self) -> None:
        """Kills what was started, for when there is no engine yet that could end it."""
        for process in self.processes:
            with contextlib.suppress(ValueError):  # It is closed.
                process.kill()

    def close(self) -> None:
        """The engine has ended: what is left of it all the same is killed, after a moment."""
        self._tell(_DONE)
        self._hang_up()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=10)

    def _started(self, process: BaseProcess) -> None:
        self.processes.append(process)
        self._tell(str(process.pid).encode())

    def _tell(self, line: bytes) -> None:
        if self._write is not None:
            with contextlib.suppress(OSError):  # It is gone.
                os.write(self._write, line + b"\n")

    def _hang_up(self) -> None:
        write, self._write = self._write, None
        if write is not None:
            os.close(write)


_lock = threading.Lock()
_watching = threading.local()
_guardians: weakref.WeakSet[Guardian] = weakref.WeakSet()
_plain_start: Any = None


def _start_and_tell(process: BaseProcess) -> None:
    """`BaseProcess.start`; vLLM has no hook, and first returns when the model is loaded."""
    _plain_start(process)
    guardian: Guardian | None = getattr(_watching, "guardian", None)
    if guardian is not None:
        guardian._started(process)


def _leave_to_the_parent() -> None:
    """In a fork of ours, vLLM's included: it must not keep the pipe open, nor say we are done."""
    global _guardians
    for guardian in list(_guardians):
        guardian._hang_up()
        guardian._process = None
        guardian.processes = []
    _guardians = weakref.WeakSet()
    _watching.__dict__.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)


# ---- the guardian's side -------------------------------------------------------------------------


def _guard(psutil: Any) -> None:
    """Hears of processes until the other end is closed or all is done; then kills what is left."""
    roots: dict[int, Any] = {}
    offspring: dict[int, Any] = {}  # Those whose parent dies before us are not found by it.
    heard = b""
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        done = False
        while not done:
            if selector.select(_PERIOD):
                more = os.read(0, 4096)
                if not more:
                    break
                *lines, heard = (heard + more).split(b"\n")
                done = _DONE in lines
                for line in {*lines} - {_DONE}:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        roots[int(line)] = psutil.Process(int(line))
            offspring = _offspring(psutil, [*roots.values(), *offspring.values()])
    if done:
        end = time.monotonic() + _GRACE
        while _offspring(psutil, list(offspring.values())) and time.monotonic() < end:
            time.sleep(0.05)
    for _ in range(100):
        alive = [*roots.values(), *offspring.values()]
        for process in alive:  # So that none starts another while we look.
            _send(psutil, process, signal.SIGSTOP)
        found = _offspring(psutil, alive)
        offspring |= found
        for process in [*alive, *found.values()]:
            _send(psutil, process, signal.SIGKILL)
        psutil.wait_procs([*alive, *found.values()], timeout=0.5)
        left = _offspring(psutil, [*alive, *found.values()])
        if not left and not found.keys() - {process.pid for process in alive}:
            return


def _send(psutil: Any, process: Any, number: int) -> None:
    """A signal, to this process and not to one that got its id after it."""
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)


def _offspring(psutil: Any, processes: list[Any]) -> dict[int, Any]:
    """What descends from these, with those of them that still run."""
    found = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            # One that has ended and that nobody has waited for yet is still there.
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = process
                found |= {child.pid: child for child in process.children(recursive=True)}
    return found


def _main() -> None:
    sys.path.append(sys.argv[1])
    import psutil

    _guard(psutil)


if __name__ == "__main__":
    _main()
