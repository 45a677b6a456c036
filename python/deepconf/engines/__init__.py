"""Engines: what generates traces and reports their token confidences.

`VLLM` runs vLLM in process, which it imports when it is constructed; `OpenAI` drives a server with
OpenAI's interface. Anything that follows the
`Engine` protocol works with `DeepThink`; what follows `SteppingEngine` costs it less.
`vllm.confidences` and `openai.confidences` read what was generated elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepconf.engines import openai, vllm
from deepconf.engines.base import Chunk, Ending, Engine, Signal, Step, SteppingEngine
from deepconf.engines.openai import OpenAI
from deepconf.engines.vllm import VLLM

__all__ = [
    "VLLM",
    "Chunk",
    "Ending",
    "Engine",
    "OpenAI",
    "Signal",
    "Step",
    "SteppingEngine",
    "openai",
    "vllm",
]

if TYPE_CHECKING:
    _follow: tuple[type[SteppingEngine], ...] = (VLLM, OpenAI)
