"""Engines: what generates traces and reports their token confidences.

`VLLM` runs vLLM in process, which it imports when it is constructed. Anything that follows the
`Engine` protocol works with `DeepThink`; what follows `SteppingEngine` costs it less.
`vllm.confidences` and `openai.confidences` read what was generated elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepconf.engines import openai, vllm
from deepconf.engines.base import Chunk, Ending, Engine, Signal, Step, SteppingEngine
from deepconf.engines.vllm import VLLM

__all__ = [
    "VLLM",
    "Chunk",
    "Ending",
    "Engine",
    "Signal",
    "Step",
    "SteppingEngine",
    "openai",
    "vllm",
]

if TYPE_CHECKING:
    _follows: type[SteppingEngine] = VLLM
