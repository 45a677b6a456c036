"""Installs Triton for its interpreter, prints its folder: `python tools/install_triton.py`.

Not beside the environment's packages: there vLLM would find it, and without a GPU run none of it.
Does nothing but print when it is there already.
"""

from __future__ import annotations

from pathlib import Path

from install_reference import apart

VERSION = "3.7.1"  # What torch 2.13.0 requires.


def install() -> Path:
    """The folder that holds the package, installed now if need be."""
    return apart("interpreter", "triton", VERSION)


if __name__ == "__main__":
    print(install())
