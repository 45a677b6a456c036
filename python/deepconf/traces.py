"""Trace files: one row a trace, as Arrow tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepconf.errors import MissingExtra

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["schema"]


def schema() -> pa.Schema:
    """The columns of a trace file.

    | column | type | |
    |---|---|---|
    | question_id | string | |
    | trace | int32 | launch order |
    | answer | string, may be null | |
    | status | string | `finished`, `length`, `stopped`, `aborted`, `failed` |
    | num_tokens | int32 | |
    | confidence | list of float32 | token confidences, nats |
    | text | string, may be null | |
    | correct | bool, may be null | |

    A table that `Result.to_arrow` makes has the settings in its metadata, as strings: `model`, `k`,
    `window`, `seed`; and as JSON `policy` (all settings) and `versions`.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingExtra("arrow", "pyarrow") from error
    return pa.schema(
        [
            pa.field("question_id", pa.string(), nullable=False),
            pa.field("trace", pa.int32(), nullable=False),
            pa.field("answer", pa.string()),
            pa.field("status", pa.string(), nullable=False),
            pa.field("num_tokens", pa.int32(), nullable=False),
            pa.field("confidence", pa.list_(pa.float32()), nullable=False),
            pa.field("text", pa.string()),
            pa.field("correct", pa.bool_()),
        ]
    )
