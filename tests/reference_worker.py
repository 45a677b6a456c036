"""Runs the authors' package for `test_reference.py`: `python reference_worker.py FOLDER`.

Reads a request a line from stdin and writes an answer a line to stdout, both JSON. It is a process
of its own because both packages are imported as `deepconf`.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, sys.argv[1])

ANSWERS = sys.stdout
EOS = 0


def rows_of(logprobs: list[list[float]], sampled: list[int] | None = None) -> list[Any]:
    """vLLM's dicts from rows of log-probabilities; token j of a row has id j."""
    from vllm.logprobs import Logprob

    def ranked(row: list[float]) -> dict[int, Any]:
        order = sorted(range(len(row)), key=lambda j: -row[j])
        return {j: Logprob(row[j], rank, None) for rank, j in enumerate(order, 1)}

    if sampled is None:
        return [ranked(row) for row in logprobs]
    # The sampled token and the 20 most likely, as vLLM returns them.
    rows = []
    for row, token in zip(logprobs, sampled, strict=True):
        entries = ranked(row)
        likely = dict(list(entries.items())[:20])
        rows.append({token: entries[token]} | likely)
    return rows


def completion(trace: dict[str, Any], sampled: list[int], stopped: bool) -> Any:
    from vllm.outputs import CompletionOutput

    text = trace["partial" if stopped else "text"]
    reason = "length" if trace["end"] == "length" and not stopped else "stop"
    rows = rows_of(trace["logprobs"][: len(sampled)], sampled)
    return CompletionOutput(0, text, sampled, None, rows, reason)


class Recorded:
    """Stands for the model: plays traces through the authors' logits processor."""

    def __init__(self, traces: list[dict[str, Any]]) -> None:
        self.traces = iter(traces)

    def generate(self, prompts: list[str], params: list[Any]) -> list[Any]:
        return [
            SimpleNamespace(outputs=[self.play(next(self.traces), param.extra_args)])
            for _, param in zip(prompts, params, strict=True)
        ]

    def play(self, trace: dict[str, Any], arguments: dict[str, Any] | None) -> Any:
        import torch
        from deepconf.processors import ConfPerReqLogitsProcessor

        if arguments is None:
            return completion(trace, trace["sampled"], False)
        process = ConfPerReqLogitsProcessor(
            arguments["conf_threshold"],
            arguments["eos_token_id"],
            arguments["conf_group_size"],
            arguments["conf_topk"],
        )
        sampled: list[int] = []
        for row, token in zip(trace["logprobs"], trace["sampled"], strict=True):
            logits = process(sampled, torch.tensor(row))
            if int(torch.isfinite(logits).sum()) == 1:
                return completion(trace, [*sampled, int(logits.argmax())], True)
            sampled.append(token)
        return completion(trace, sampled, False)


def deepthink(traces: list[dict[str, Any]], mode: str, **settings: Any) -> dict[str, Any]:
    """`DeepThinkLLM.deepthink` on recorded traces."""
    from deepconf import DeepThinkLLM
    from vllm import SamplingParams

    thinker = DeepThinkLLM.__new__(DeepThinkLLM)
    thinker.model_name, thinker.llm = "recorded", Recorded(traces)
    thinker.tokenizer = SimpleNamespace(eos_token_id=EOS)
    thinker.init_times = {"llm_init_time": 0.0, "tokenizer_init_time": 0.0}
    output = thinker.deepthink("?", mode, sampling_params=SamplingParams(logprobs=20), **settings)
    voters = []
    if mode == "online":
        voting = {id(trace) for trace in output.all_voting_traces}
        voters = [i for i, trace in enumerate(output.all_traces) if id(trace) in voting]
    return {
        "answer": output.final_answer,
        "threshold": output.conf_bar,
        "lowest": output.warmup_min_confs + output.final_min_confs,
        "num_tokens": [trace["num_tokens"] for trace in output.all_traces],
        "voters": voters,
        "voting": output.voting_results,
    }


def process_output(trace: dict[str, Any], window: int) -> dict[str, Any]:
    from deepconf import utils

    return utils.process_output(completion(trace, trace["sampled"], False), window)


def compute_confidence(logprobs: list[list[float]]) -> list[float]:
    from deepconf import utils

    return utils.compute_confidence(rows_of(logprobs))


def compute_least_grouped(confs: list[float], window: int) -> list[float]:
    import numpy as np
    from deepconf import utils

    # As `compute_confidence` hands them on: NumPy's float64 rounds otherwise than Python's float.
    return utils.compute_least_grouped([np.float64(c) for c in confs], window)


def signatures() -> dict[str, str]:
    from deepconf import DeepThinkLLM, processors, utils

    found = {
        name: str(inspect.signature(function))
        for name, function in vars(utils).items()
        if inspect.isfunction(function)
    }
    found["DeepThinkLLM.deepthink"] = str(inspect.signature(DeepThinkLLM.deepthink))
    processor = processors.ConfPerReqLogitsProcessor
    found["ConfPerReqLogitsProcessor"] = str(inspect.signature(processor))
    return found


OWN = {
    function.__name__: function
    for function in (
        compute_confidence,
        compute_least_grouped,
        deepthink,
        process_output,
        signatures,
    )
}


def answer(function: str, arguments: list[Any], settings: dict[str, Any]) -> Any:
    """Calls a function of this file, or else the authors' function of that name."""
    from deepconf import utils

    return (OWN.get(function) or getattr(utils, function))(*arguments, **settings)


def main() -> None:
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            reply = json.dumps(answer(*json.loads(line)), default=float)
        print(reply, file=ANSWERS, flush=True)


if __name__ == "__main__":
    main()
