"""Outputs of the authors' package: dicts, or objects, with traces that have confidences already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepconf.errors import InvalidInput
from deepconf.importing._json import (
    AnyLogprobs,
    Found,
    How,
    Int,
    decoded,
    rows_of,
    status_of,
)
from deepconf.importing._question import Whole
from deepconf.importing._rows import Rows

__all__ = ["is_output", "traces_of"]

_TRACES = ("all_traces", "warmup_traces", "final_traces")


class _Output(msgspec.Struct):
    all_traces: list[Any] = []
    warmup_traces: list[Any] = []
    final_traces: list[Any] = []
    config: Any = None
    qid: str | int | None = None
    ground_truth: str | int | float | None = None


class _Trace(msgspec.Struct):
    stop_reason: str | None = None
    text: str | None = None
    num_tokens: Int | None = None
    extracted_answer: str | None = None
    confs: Any = None
    logprobs: AnyLogprobs = None


def is_output(item: Any) -> bool:
    """Whether it is an output with traces."""
    if isinstance(item, Mapping):
        return any(item.get(name) for name in _TRACES)
    return any(isinstance(getattr(item, name, None), list) for name in _TRACES)


def traces_of(item: Any, place: str, default: str | None, how: How) -> Iterator[Found]:
    """The traces of an output; of an online one, those of its warmup come first.

    Args:
        item: the output.
        place: where it is.
        default: the question, where `qid` says none.
        how: what is wanted of it.

    Raises:
        InvalidInput: a trace is damaged, or has neither confidences nor log-probabilities.
    """
    output = decoded(item, place, _Output)
    model = output.config.get("model") if isinstance(output.config, Mapping) else None
    gold = "" if output.ground_truth is None else str(output.ground_truth).strip()
    given = default if output.qid is None else output.qid
    question = how.name(Whole(place, given, value=item))
    every = output.all_traces or [*output.warmup_traces, *output.final_traces]
    for at, part in enumerate(every):
        where = f"{place}, all_traces[{at}]"
        trace = decoded(part, where, _Trace)
        yield Found(
            where,
            question,
            status_of(trace.stop_reason, f"{where}, stop_reason"),
            trace.text or "",
            _confidences(trace, where, how.returned),
            tokens=trace.num_tokens,
            answer=trace.extracted_answer if trace.text is None else None,
            gold=[gold] if gold else [],
            model=model if isinstance(model, str) else None,
        )


def _confidences(trace: _Trace, place: str, returned: bool) -> Rows | NDArray[np.float32]:
    if trace.confs is None and trace.logprobs is not None:
        return rows_of(trace.logprobs, place, returned)
    if trace.confs is None:
        raise InvalidInput(f"{place}: has neither confs, its token confidences, nor logprobs")
    try:
        found = np.asarray(trace.confs, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"{place}: confs are not numbers: {error}") from error
    if found.ndim != 1:
        raise InvalidInput(f"{place}: confs has {found.ndim} dimensions, and must have one")
    if not np.isfinite(found).all():
        token = int(np.argmin(np.isfinite(found)))
        raise InvalidInput(f"{place}: confs[{token}] is {found[token]}: must be finite")
    return found
