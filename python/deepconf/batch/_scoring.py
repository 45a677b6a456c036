"""Scores of recorded traces, batch by batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deepconf._core import Policy, Scores, score
from deepconf.batch._in_force import SCORING
from deepconf.errors import InvalidInput
from deepconf.result import MEASURES
from deepconf.traces._schema import arrow

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["score_schema", "scored", "scores_of"]


def score_schema(traces: pa.Schema) -> pa.Schema:
    """The columns of scored traces: theirs but the confidences, and the scores.

    Raises:
        InvalidInput: a column has the name of a score.
    """
    pa = arrow()
    for name in (*MEASURES, "short"):
        if name in traces.names:
            raise InvalidInput(f"there is a column {name} already, the name of a score")
    kept = [field for field in traces if field.name != "confidence"]
    scores = [pa.field(name, pa.float64(), nullable=False) for name in MEASURES]
    return pa.schema([*kept, *scores, pa.field("short", pa.bool_(), nullable=False)])


def scored(batch: pa.RecordBatch, schema: pa.Schema, policy: Policy, threads: int) -> Any:
    """A batch of traces as one of `score_schema`."""
    pa = arrow()
    scores = scores_of(batch, policy, threads)
    ours = (*MEASURES, "short")
    columns = [
        pa.array(getattr(scores, name)) if name in ours else batch[name] for name in schema.names
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def scores_of(batch: pa.RecordBatch, policy: Policy, threads: int) -> Scores:
    """The scores of a batch of traces, when so many threads score batches.

    Raises:
        InvalidInput: a confidence that cannot be right; the question and the trace are named.
    """
    settings: dict[str, Any] = {name: getattr(policy, name) for name in SCORING}
    traces = _scored_part(batch)
    try:
        # Where several threads score, each takes a core.
        return score(traces, **settings, threads=1 if threads > 1 else None)
    except InvalidInput:
        for row, trace in enumerate(traces):
            values = trace if isinstance(trace, np.ndarray) else trace.values.to_numpy()
            try:
                score([values], **settings)
            except InvalidInput as error:
                name, number = batch["question_id"][row].as_py(), batch["trace"][row].as_py()
                text = str(error).replace(" at trace 0, position ", " at position ")
                raise InvalidInput(f"question {name!r}, trace {number}: {text}") from error
        raise


def _scored_part(batch: pa.RecordBatch) -> Any:
    """The confidences that count: those of a stopped trace up to the token that stopped it."""
    confidence = batch["confidence"]
    if "stop_token" not in batch.schema.names or batch["stop_token"].null_count == len(confidence):
        return confidence
    ends = confidence.offsets.to_numpy()[:-1] + batch["stop_token"].fill_null(2**31).to_numpy() + 1
    ends = np.minimum(ends, confidence.offsets.to_numpy()[1:])
    values = confidence.values.to_numpy()
    starts = confidence.offsets.to_numpy()[:-1]
    return [values[start:end] for start, end in zip(starts, ends, strict=True)]
