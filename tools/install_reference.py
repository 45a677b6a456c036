"""Installs the authors' package `deepconf`, prints its folder: `python tools/install_reference.py`.

It goes by the same import name as this project, so it lives in a folder of its own beside the
environment's packages; who wants it puts that folder first on `sys.path`, in a process of its own.
`deepconf/utils.py` needs NumPy only and `deepconf/processors.py` vLLM, and either may be loaded by
itself, beside our own package (`module`).

Does nothing but print when it is there already.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

VERSION = "0.1.0"


def install() -> Path:
    """The folder that holds the package, installed now if need be."""
    return apart("reference", "deepconf", VERSION)


def module(name: str) -> ModuleType:
    """One module of the package, without the package: "utils" or "processors"."""
    path = install() / "deepconf" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"reference_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def apart(name: str, package: str, version: str) -> Path:
    """The folder of this name that holds a package alone, installed now if need be."""
    folder = Path(sys.prefix) / name / version
    if (folder / package).is_dir():
        return folder
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        target = Path(temporary) / version
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        wanted = ["--no-deps", "--target", str(target), f"{package}=={version}"]
        subprocess.run(pip + wanted, check=True, stdout=sys.stderr)
        # Complete before it is seen, whoever else installs it.
        if not folder.exists():
            shutil.move(target, folder)
    return folder


if __name__ == "__main__":
    print(install())
