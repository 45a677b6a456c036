"""How many connections this process may have open at once."""

from __future__ import annotations

__all__ = ["most_connections", "too_many"]

# Files that stay free for all else that this process opens: so many, or this part of its limit.
_SPARED, _PART = 64, 8


def most_connections() -> int | None:
    """As many as its limit of open files has room for beside others; None where it has no limit."""
    try:
        import resource
    except ImportError:  # Windows.
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return None
    return max(limit - max(_SPARED, limit // _PART), 1)


def too_many(traces: int) -> str | None:
    """What to warn of where so many are to be open at once; None where they may."""
    most = most_connections()
    if most is None or traces <= most:
        return None
    return (
        f"{traces:,} traces at once, and this process may have {most:,} connections beside its "
        "other files: further traces wait until one is free; raise `ulimit -n`, or set a lower "
        "`concurrency`"
    )
