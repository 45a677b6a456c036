"""For vLLM's V1 model runner."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from deepconf.engines.vllm.inside._rows import of_engine
from deepconf.engines.vllm.inside._watch import Watch

__all__ = ["Processor"]


class Processor(LogitsProcessor):  # type: ignore[misc]
    """Ends traces whose confidence collapses.

    Scored are the logits that the sampler is handed; `watch` has them looked at before its own
    processors, masks and this one change them.
    """

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises `ValueError` for arguments of ours that make no sense."""
        Watch.of(sampling_params)

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.rows = of_engine(vllm_config)

    def is_argmax_invariant(self) -> bool:
        """It is not: a forced token is the likeliest."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follows requests through the batch."""
        if batch_update is None:
            return
        for place in batch_update.removed:
            self.rows.release(place)
        for place, params, _, generated in batch_update.added:
            self.rows.bind(place, params, len(generated))
        for origin, place, way in batch_update.moved:
            if way == MoveDirectionality.SWAP:
                self.rows.swap(origin, place)
            else:
                self.rows.move(origin, place)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Forces what is to end."""
        return self.rows.force(logits, np.arange(len(logits)))

    @staticmethod
    def find(runner: Any) -> Processor | None:
        """The one in this model runner."""
        processors = runner.input_batch.logitsprocs.non_argmax_invariant
        return next((one for one in processors if isinstance(one, Processor)), None)

    def watch(self, runner: Any) -> None:
        """Has raw logits scored, of steps that sample; those of a rehearsal are not ours."""

        def look(sampler: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if kwargs.get("sampling_metadata") is runner.input_batch.sampling_metadata:
                logits = kwargs["logits"]
                unfinished = runner.discard_request_mask.np[: len(logits)]
                self.rows.score(logits, np.arange(len(logits)), unfinished)

        runner.sampler.register_forward_pre_hook(look, with_kwargs=True)
