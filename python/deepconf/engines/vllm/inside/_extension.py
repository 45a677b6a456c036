"""What the workers answer when this process asks (`collective_rpc`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Extension"]


class Extension:
    """Mixed into vLLM's worker, as `worker_extension_cls`."""

    def deepconf_begin(self) -> bool | None:
        """Begins to score; whether this rank answers, None where it does not sample."""
        runner: Any = self.model_runner  # type: ignore[attr-defined]
        if runner.vllm_config.use_v2_model_runner:
            from deepconf.engines.vllm.inside._v2 import Processor
        else:
            from deepconf.engines.vllm.inside._v1 import Processor  # type: ignore[assignment]
        self._deepconf = Processor.find(runner)
        if self._deepconf is None or not _samples():
            return None
        self._deepconf.watch(runner)
        return True

    def deepconf_fetch(
        self, traces: Sequence[str]
    ) -> list[tuple[str, bytes, int | None, str | None]] | None:
        """What was found of these traces, which are forgotten; None where another rank answers.

        As vLLM sends it: name, float32 confidences in bytes, where it stopped, what went wrong.
        """
        if self._deepconf is None:
            return None
        fetched = self._deepconf.rows.fetch(traces)
        if not _answers():
            return None
        return [
            (trace, found.confidence.tobytes(), found.stop_token, found.error)
            for trace, found in fetched.items()
        ]

    def deepconf_set_thresholds(self, thresholds: Mapping[str, float | None]) -> None:
        """Sets s of running traces, nats, for the tokens to come."""
        if self._deepconf is not None:
            self._deepconf.rows.set_thresholds(thresholds)

    def deepconf_count(self) -> int | None:
        """How many traces are known here; None where another rank answers."""
        return len(self._deepconf.rows) if self._deepconf is not None and _answers() else None


def _samples() -> bool:
    """Of a pipeline, the last stage does."""
    from vllm.distributed.parallel_state import get_pp_group

    return bool(get_pp_group().is_last_rank)


def _answers() -> bool:
    """Tensor parallel ranks find the same: the first answers for all."""
    from vllm.distributed.parallel_state import get_tp_group

    return _samples() and get_tp_group().rank_in_group == 0
