"""A plugin of vLLM's: what has to change for Model Runner V2 in Triton's interpreter."""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Called in each process."""
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.sample.ops import topk_topp_sampler

    # One kernel calls a method of a program's number, which is an int when it is interpreted.
    topk_topp_sampler.HAS_TRITON = False
    plain = CpuPlatform.check_and_update_config

    def check_and_update_config(vllm_config: Any) -> None:
        """On a CPU steps would never overlap."""
        wanted = vllm_config.scheduler_config.async_scheduling
        plain(vllm_config)
        vllm_config.scheduler_config.async_scheduling = wanted

    CpuPlatform.check_and_update_config = staticmethod(check_and_update_config)
