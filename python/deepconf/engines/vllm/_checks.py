"""What is looked at before vLLM starts, so that a mistake is answered at once."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import os
import re
import sys
from pathlib import Path

from deepconf.errors import InvalidInput

__all__ = ["check_hub", "checked_model", "main_guard", "refuse_children"]

# Seconds for the hub to say whether there is a model.
_HUB = 10.0
_GUARD = (
    "vLLM's processes import the main script, which must not start an engine then: in {}, put what "
    'is to be run below if __name__ == "__main__":'
)


def checked_model(model: str | os.PathLike[str]) -> str:
    """The model's name, once it is clear that it exists where a folder is meant."""
    name = os.fspath(model)
    if not name.strip():
        raise InvalidInput(f"model={name!r}: there is no such folder")
    path = Path(name).expanduser()
    if path.is_dir() and not any((path / f).is_file() for f in ("config.json", "params.json")):
        raise InvalidInput(f"model={name!r}: the folder has no config.json, so it is no model")
    if path.exists():
        return str(path)
    looks_like_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if "://" not in name and (looks_like_path or not isinstance(model, str)):
        raise InvalidInput(f"model={name!r}: there is no such folder{_near(path)}")
    return name


def _near(path: Path) -> str:
    """What a folder may have been meant to be, for messages."""
    try:
        there = [each.name for each in path.parent.iterdir() if each.is_dir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, there, n=1)
    return f"; near it: {path.parent / near[0]}" if near else ""


def check_hub(name: str) -> None:
    """Refuses what is neither a folder nor a model on the hub, before vLLM looks for it long.

    Only names such as `Qwen/Qwen3-8B` are looked up, and only on the hub of Hugging Face; where
    that says nothing, vLLM has its say.
    """
    path = Path(name).expanduser()
    plain = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
    elsewhere = os.environ.get("VLLM_USE_MODELSCOPE") or not _has("huggingface_hub")
    if path.exists() or not plain or elsewhere:
        return
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import RepositoryNotFoundError

    files = ("config.json", "params.json")
    if any(isinstance(try_to_load_from_cache(name, file), str) for file in files):
        return
    missing = f"model={name!r}: there is no such folder here{_near(path)}"
    if constants.HF_HUB_OFFLINE:
        raise InvalidInput(f"{missing}, nor such a model in the cache, and HF_HUB_OFFLINE is set")
    try:
        HfApi().model_info(name, timeout=_HUB)
    except RepositoryNotFoundError as error:  # Or one that needs a token.
        if error.response.status_code in (401, 404):
            raise InvalidInput(f"{missing}, nor such a model on the hub") from None
    except Exception as error:
        raise InvalidInput(
            f"{missing}, nor in the cache, and the hub cannot be reached: {error!r:.200}"
        ) from None


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def refuse_children() -> None:
    """Ends a process of vLLM's that imports a main script without a guard, on one line."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "__mp_main__":
            raise SystemExit(f"error: {_GUARD.format(frame.f_globals.get('__file__', 'it'))}")
        frame = frame.f_back


def main_guard() -> str:
    """What to say where vLLM does not start: the main script may have no guard."""
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    if path is None or getattr(sys.modules["__main__"], "__spec__", None) is not None:
        return ""  # Interactive, or run by -m, which they do not import.
    try:
        guarded = "__name__" in Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "" if guarded else f". {_GUARD.format(path)}"
