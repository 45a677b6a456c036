"""A file that grows piece by piece, has one writer at a time, and survives that one's death."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from deepconf.errors import MissingExtra, RunFileError

__all__ = ["LockedFile"]

# A child that is forked while a file is open must not hold its lock when this process is gone.
_OPEN: weakref.WeakSet[LockedFile] = weakref.WeakSet()
# What `flock` says where there are no such locks; anything else is a fault.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
# Bytes in one call: Linux takes no more than 2 GiB.
_MOST = 1 << 30


class LockedFile:
    """A file that is open for appending, and locked against other processes.

    On a file system without locks a file beside it, `PATH.lock`, says who is writing; one that was
    left by a process of this machine that is gone counts for nothing.

    Args:
        path: where it is or is to be; missing folders are made.
        kind: what it is, for messages.
        option: what names it on the command line, for messages.

    Raises:
        MissingExtra: the file system has no locks, and filelock is not installed.
        RunFileError: it cannot be opened or locked, or is open elsewhere.
    """

    def __init__(self, path: str | Path, kind: str, option: str) -> None:
        self.path = Path(path).expanduser()
        self._kind = kind
        self._option = option
        self._lock_file: Any = None
        self._fd = self._open()
        _OPEN.add(self)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self._fd).st_size

    @property
    def is_open(self) -> bool:
        """Whether it has not been closed."""
        return self._fd >= 0

    def write(self, data: bytes) -> None:
        """Adds bytes; when this returns, they are on the disk.

        Raises:
            RunFileError: they could not be written; the file is then as it was.
        """
        with self.appending() as put:
            put(data)

    @contextlib.contextmanager
    def appending(self) -> Iterator[Callable[[bytes | memoryview], None]]:
        """Gives what adds bytes; behind the block all of them are on the disk.

        Raises:
            RunFileError: they could not be written; the file is then as it was, as it is when
                anything else is raised in the block.
        """
        before = self.size
        try:
            yield self._put
            if self._regular:
                os.fsync(self._fd)
        except BaseException as error:
            with contextlib.suppress(RunFileError):
                self.truncate(before)
            if isinstance(error, OSError):
                raise self.error("cannot be written", error) from error
            raise

    def truncate(self, size: int) -> None:
        """Drops what lies behind so many bytes.

        Raises:
            RunFileError: it cannot be written.
        """
        if not self._regular:
            return
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise self.error("cannot be written", error) from error

    def close(self) -> None:
        """Closes the file and lets go of the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._lock_file is not None:
            self._lock_file.release()
            self._lock_file = None

    def remove(self) -> None:
        """Deletes the file, and closes it.

        Raises:
            RunFileError: it cannot be deleted.
        """
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise self.error("cannot be deleted", error) from error
        finally:
            self.close()

    def error(self, what: str, error: OSError) -> RunFileError:
        """What to raise when the system refused something."""
        return RunFileError(f"{self.path}: {what}: {error.strerror or error}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _put(self, data: bytes | memoryview) -> None:
        for start in range(0, len(data), _MOST):
            piece = data[start : start + _MOST]
            written = os.write(self._fd, piece)
            if written != len(piece):
                raise OSError(f"only {start + written} of {len(data)} bytes could be written")

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        while True:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                fd = os.open(self.path, flags, 0o666)
            except OSError as error:
                raise self.error("cannot be opened", error) from error
            try:
                self._regular = stat.S_ISREG(os.fstat(fd).st_mode)
                self._lock(fd)
                if self._is_there(fd):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            # Whoever had it locked has deleted it.
            os.close(fd)

    def _is_there(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _lock(self, fd: int) -> None:
        try:
            import fcntl
        except ImportError:  # No advisory locks on this platform.
            self._lock_beside()
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._taken() from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise self.error("cannot be locked", error) from error
            if self._regular:
                self._lock_beside()

    def _lock_beside(self) -> None:
        """Locks by a file that says who we are, where the file system has no locks."""
        if self._lock_file is not None:
            return
        try:
            from filelock import SoftFileLock, Timeout
        except ImportError as error:
            raise MissingExtra("cli", "filelock") from error
        beside = f"{self.path}.lock"
        lock = SoftFileLock(beside, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise self._taken(
                f" ({' '.join(str(error).split())} If that process is gone, delete {beside})"
            ) from error
        except OSError as error:
            raise self.error("cannot be locked", error) from error
        self._lock_file = lock

    def _taken(self, more: str = "") -> RunFileError:
        return RunFileError(
            f"{self.path}: another process is writing this {self._kind}{more}: wait for it, or "
            f"choose another {self._option}"
        )


def _close_after_fork() -> None:
    for file in list(_OPEN):
        file._lock_file = None  # It is the parent's, who has not let go of it.
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_after_fork)
