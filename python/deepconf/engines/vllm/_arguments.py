"""What a `VLLM` is given: what of it a run sets itself, what results depend on, what vLLM takes."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import os
from collections.abc import Mapping
from typing import Any, Literal

from deepconf.errors import InvalidInput

__all__ = ["FREE", "check_engine_args", "check_names", "check_sampling", "settings_of"]

# Sampling parameters that a run sets itself.
_OWNED = {
    "n": "one request is one trace",
    "seed": "set Policy(seed=...)",
    "logprobs": "set Policy(top_logprobs=...)",
    "logprob_token_ids": "confidence is defined on the most likely tokens",
    "prompt_logprobs": "the prompt has no confidence",
    "prompt_logprob_token_ids": "the prompt has no confidence",
    "prompt_logprob_start": "the prompt has no confidence",
    "flat_logprobs": "always on",
    "output_kind": "a run follows its traces by itself",
    "detokenize": "texts are decoded once, at the end",
}

# Engine arguments that change how fast results come, and not what they are. Any other matters.
FREE = frozenset(
    """
    aggregate_engine_logging async_scheduling block_size collect_detailed_traces
    compilation_config cpu_distributed_timeout_seconds cpu_offload_gb cpu_offload_params
    cudagraph_capture_sizes cudagraph_metrics data_parallel_address data_parallel_backend
    data_parallel_external_lb data_parallel_hybrid_lb data_parallel_multi_port_external_lb
    data_parallel_rank data_parallel_rpc_port data_parallel_size data_parallel_size_local
    data_parallel_start_rank decode_context_parallel_size device_ids disable_custom_all_reduce
    disable_log_stats distributed_executor_backend distributed_timeout_seconds download_dir
    enable_chunked_prefill enable_eplb enable_expert_parallel enable_flashinfer_autotune
    enable_log_requests enable_mfu_metrics enable_prefix_caching enable_sleep_mode enforce_eager
    eplb_config gpu_memory_utilization hf_token jit_monitor_mode jit_monitor_verbose
    kv_cache_memory_bytes kv_cache_metrics kv_cache_metrics_sample kv_offloading_backend
    kv_offloading_size log_config_file log_level logging_config logprobs_mode
    long_prefill_token_threshold master_addr master_port max_cpu_loras max_cudagraph_capture_size
    max_logprobs max_num_active_seqs max_num_batched_tokens max_num_queued_reqs
    max_num_queued_tokens max_num_scheduled_tokens max_num_seqs max_parallel_loading_workers
    nnodes node_rank num_gpu_blocks_override numa_bind numa_bind_cpus numa_bind_nodes
    offload_backend offload_group_size offload_num_in_group offload_params offload_prefetch_step
    optimization_level otlp_traces_endpoint performance_mode pipeline_parallel_size
    prefill_context_parallel_size profiler_config ray_workers_use_nsight renderer_num_workers
    safetensors_load_strategy safetensors_prefetch_block_size safetensors_prefetch_num_threads
    scoring served_model_name show_hidden_metrics_for_version shutdown_timeout stream_interval
    tensor_parallel_size use_tqdm_on_load
    """.split()  # noqa: SIM905 (a list of them would be a line each)
)


def settings_of(
    *,
    sampling: Mapping[str, Any] | None = None,
    chat: Literal["auto", True, False] = "auto",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    engine_args: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What results depend on of a `VLLM` of these arguments, as JSON values.

    Of the engine arguments, those are left out that change speed and memory only, such as
    `gpu_memory_utilization` or `tensor_parallel_size`. One that is not known matters.

    Raises:
        InvalidInput: an argument has no form as JSON that is the same the next time.
    """
    engine = {name: value for name, value in (engine_args or {}).items() if name not in FREE}
    return {
        "sampling": _as_json(sampling or {}, "sampling"),
        "chat": chat,
        "chat_template_kwargs": _as_json(chat_template_kwargs or {}, "chat_template_kwargs"),
        "engine": _as_json(engine, "engine_args"),
    }


def _as_json(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, Mapping):
        return {
            str(name): _as_json(value[name], f"{where}[{name!r}]")
            for name in sorted(value, key=str)
        }
    if isinstance(value, (list, tuple)):
        return [_as_json(item, f"{where}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return sorted((_as_json(item, where) for item in value), key=str)
    if isinstance(value, enum.Enum):
        return _as_json(value.value, where)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, type) and "<" not in value.__qualname__:
        return f"{value.__module__}:{value.__qualname__}"
    text = repr(value)
    if " at 0x" in text or "<lambda>" in text:
        raise InvalidInput(
            f"{where}={text}: has no value that could be compared with another run's"
        )
    return text


def check_names(sampling: Mapping[str, Any]) -> None:
    """Refuses what a run sets itself."""
    for name in sampling.keys() & _OWNED.keys():
        raise InvalidInput(f"sampling[{name!r}] cannot be set: {_OWNED[name]}")


def check_engine_args(given: Mapping[str, Any]) -> None:
    """Says of sampling parameters where they go."""
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs

    engine = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    for name in given.keys() & set(SamplingParams.__struct_fields__) - engine:
        value = given[name]
        raise InvalidInput(
            f"{name}={value!r} is no engine argument but a sampling parameter: write "
            f"VLLM(..., sampling=dict({name}={value!r}))"
        )


def check_sampling(sampling: dict[str, Any], settings: Any = None, tokenizer: Any = None) -> None:
    """Names and ranges; with vLLM's settings, also whether they suit the model."""
    from vllm import SamplingParams

    fields = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")}
    known = fields - _OWNED.keys()
    for name in sampling.keys() - known:
        near = difflib.get_close_matches(name, known, n=3)
        which = f"near it: {', '.join(near)}" if near else f"there are {', '.join(sorted(known))}"
        raise InvalidInput(f"sampling[{name!r}] is no sampling parameter of vLLM; {which}")
    try:
        params = SamplingParams(**sampling)
        if settings is not None:
            decoding, structure = settings.speculative_config, settings.structured_outputs_config
            params.verify(settings.model_config, decoding, structure, tokenizer)
    except Exception as error:  # vLLM's own are no ValueError.
        raise InvalidInput(f"sampling={sampling}: {error}") from error
