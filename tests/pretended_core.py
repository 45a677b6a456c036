"""vLLM's front end without an engine core: a real output processor, fed what one makes up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from deepconf.engines import VLLM
from deepconf.engines.vllm._steps import Steps
from deepconf.engines.vllm.inside._reports import Inside


class Tokenizer:
    """A token is a character."""

    eos_token_id = 0

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str:
        return "".join(map(chr, tokens))


class PretendedLLM:
    """In the place of an `AsyncLLM`; `outputs` plays its output handler."""

    errored = False

    def __init__(self, *, log_stats: bool = False) -> None:
        from vllm.v1.engine.output_processor import OutputProcessor

        self.output_processor = OutputProcessor(None, log_stats=log_stats)
        self.engine_core = SimpleNamespace(
            get_supported_tasks_async=self._nothing, call_utility_all_async=self._call_workers
        )
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: 128))
        self.workers: dict[str, Callable[..., Any]] = {}  # What they answer, by method.
        self.names: list[str] = []
        self.aborted: list[str] = []  # What the engine core was told, by internal name.

    async def _nothing(self) -> None:
        pass

    def get_tokenizer(self) -> Tokenizer:
        return Tokenizer()

    async def _call_workers(
        self, utility: str, method: str, timeout: None, arguments: Sequence[Any], more: None
    ) -> list[list[Any]]:
        """One engine of two workers, the first of which answers."""
        assert utility == "collective_rpc"
        answer = self.workers[method](*arguments)
        return [[await answer if asyncio.iscoroutine(answer) else answer, None]]

    async def add_request(self, name: str, prompt: Any, params: Any) -> Any:
        from vllm.v1.engine import EngineCoreRequest
        from vllm.v1.engine.output_processor import RequestOutputCollector

        internal = f"{name}-internal"
        request = EngineCoreRequest(
            request_id=internal,
            prompt_token_ids=prompt,
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            external_req_id=name,
        )
        queue = RequestOutputCollector(params.output_kind, internal)
        self.output_processor.add_request(request, None, None, 0, queue)
        self.names.append(name)
        return queue

    async def generate(self, prompt: Any, params: Any, name: str) -> Any:
        queue = await self.add_request(name, prompt, params)
        finished = False
        while not finished:
            output = await queue.get()
            finished = output.finished
            yield output

    async def abort(self, names: Sequence[str]) -> None:
        self.aborted += self.output_processor.abort_requests(names, internal=False)

    def outputs(self, outputs: Sequence[Any], stats: Any = None) -> None:
        """What vLLM's output handler does with a step."""
        processed = self.output_processor.process_outputs(outputs, 0.0, stats, weight_version=None)
        assert not processed.request_outputs
        self.aborted += processed.reqs_to_abort


def output(
    name: str, tokens: str | Sequence[int], rows: Any = None, *, end: str | None = None
) -> Any:
    """What an engine core says of a request; of `rows`, the sampled token comes first."""
    from vllm.v1.engine import EngineCoreOutput, FinishReason
    from vllm.v1.outputs import LogprobsLists

    logprobs = None
    if rows is not None:
        table = np.asarray(rows, np.float32)
        ranks = 1 + (table[:, 1:] > table[:, :1]).sum(axis=1)
        logprobs = LogprobsLists(np.zeros(table.shape, np.int32), table, ranks, None)
    return EngineCoreOutput(
        request_id=f"{name}-internal",
        new_token_ids=[ord(token) if isinstance(token, str) else token for token in tokens],
        new_logprobs=logprobs,
        finish_reason=None if end is None else FinishReason[end],
    )


def rows(*confidences: float, k: int = 2) -> np.ndarray:
    """Log-probabilities with these token confidences; the sampled token is the likeliest."""
    return np.repeat(-np.asarray(confidences, np.float32)[:, None], k + 1, axis=1)


def pretended(
    llm: PretendedLLM, *, by_step: bool = True, inside: bool = False, **sampling: Any
) -> VLLM:
    """An engine of ours around it, on whatever loop it is used."""
    engine = object.__new__(VLLM)
    engine.model = "pretended"
    engine._llm = llm
    engine._closing = False
    engine._tokenizer = Tokenizer()
    engine._sampling = {"max_tokens": 10**6, **sampling}
    engine._steps = Steps(llm) if by_step else None
    engine._inside = Inside(llm) if inside else None
    engine._wanted = "engine" if inside else "client"
    for name, function in STUBS.items():
        setattr(engine, name, function)
    return engine


STUBS: dict[str, Callable[..., Any]] = {
    "prepare": lambda question: [1] * 5,
    "check": lambda signal, sampling=None: None,
    "misfit": lambda *_: None,
    "settings": lambda sampling=None: {},
}


async def settle(until: Callable[[], bool]) -> None:
    """Lets tasks run until something holds."""
    for _ in range(10_000):
        if until():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come to hold")
