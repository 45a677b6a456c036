"""For vLLM's Model Runner V2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor

from deepconf.engines.vllm.inside._watch import Watch, unwatchable

if TYPE_CHECKING:
    import torch

__all__ = ["Processor"]


class _Scoring(LogitsProcessor):  # type: ignore[misc]
    """Looks at logits before any other processor changes them."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        return False

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        self._processor.score(logits, ctx)
        return logits


class Processor(LogitsProcessor):  # type: ignore[misc]
    """Ends traces whose confidence collapses; see that of the V1 runner.

    A slot is recycled without notice, so whoever was there is gone when another comes. Scored is
    the float32 copy that the sampler makes of the logits for its processors.
    """

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises `ValueError` for arguments of ours that make no sense."""
        Watch.of(sampling_params)

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        # Imported in the worker only: this module is loaded beside the user, too.
        from deepconf.engines.vllm.inside._rows import of_engine

        refusal = unwatchable(vllm_config)
        if refusal is not None:
            raise ValueError(refusal)
        self.rows = of_engine(vllm_config)
        self._states = req_states

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Whether it is ours; what one that was preempted had generated is prefilled again."""
        states = self._states
        generated = states.prefill_len.np[req_idx] - states.prompt_len.np[req_idx]
        return self.rows.bind(req_idx, sampling_params, int(generated))

    def score(self, logits: torch.Tensor, ctx: Any) -> None:
        """One row a request; of CUDA graphs there may be lengths of rows that are padding."""
        places = ctx.idx_mapping_np
        lengths = ctx.seq_lens_upper_bound_np[: len(places)]
        unfinished = lengths < self._states.prefill_len.np[places]
        self.rows.score(logits, places, unfinished)

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Forces what is to end."""
        return self.rows.force(logits, ctx.idx_mapping_np)

    @staticmethod
    def find(runner: Any) -> Processor | None:
        """The one in this model runner; None in a stage of a pipeline that does not sample."""
        processors = () if runner.sampler is None else runner.sampler.logits_processors
        return next((one for one in processors if isinstance(one, Processor)), None)

    def watch(self, runner: Any) -> None:
        """Has raw logits scored: ahead of the processors that bias, penalise and mask."""
        runner.sampler.logits_processors.insert(0, _Scoring(self))
