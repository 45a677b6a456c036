"""The schema of trace files: what means the same is brought to it, and what does not is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deepconf.errors import InvalidInput, MissingExtra
from deepconf.result import WHOLE

if TYPE_CHECKING:
    import pyarrow as pa

    from deepconf.traces._sources import Source

__all__ = ["IMPORT", "MOST_ROWS", "STATUSES", "arrow", "canonical", "cast", "cut", "schema"]

STATUSES = ("finished", "length", "stopped", "aborted", "failed")

IMPORT = "Of responses with log-probabilities, deepconf import makes traces (import_traces)"

MOST_ROWS = 65_536
"""Rows of a batch."""

_REQUIRED = ("question_id", "trace", "answer", "status", "num_tokens", "confidence")


def arrow() -> Any:
    """Package pyarrow.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise MissingExtra("arrow", "pyarrow") from error
    return pyarrow


def schema() -> pa.Schema:
    """The columns of a trace file.

    | column | type | |
    |---|---|---|
    | question_id | string | |
    | trace | int32 | launch order |
    | answer | string, may be null | one spelling for all that are equivalent |
    | status | string | `finished`, `length`, `stopped`, `aborted`, `failed` |
    | num_tokens | int32 | |
    | confidence | list of float32 | token confidences, nats |
    | text | string, may be null | |
    | correct | bool, may be null | |
    | seed | int64, may be null | what it was sampled with |
    | stop_token | int64, may be null | whose group fell below the threshold, counted from 0 |
    | voted | bool, may be null | whether its answer counted |
    | error | string, may be null | why it failed |
    | gold | string, may be null | the right answer |
    | finish_order | int32, may be null | the how-manieth of its question to end, from 0 |

    The first six must be in a file; the others are there where they are known.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    pa = arrow()
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
            pa.field("seed", pa.int64()),
            pa.field("stop_token", pa.int64()),
            pa.field("voted", pa.bool_()),
            pa.field("error", pa.string()),
            pa.field("gold", pa.string()),
            pa.field("finish_order", pa.int32()),
        ]
    )


def canonical(sources: list[Source], columns: Sequence[str] | None) -> list[pa.Field]:
    """The columns that are to be read, as they will be.

    Raises:
        InvalidInput: names that are no names, or that nobody knows.
        TraceFileError: a column is missing, twice there, or of a type that means something else.
    """
    ours = {field.name: field for field in schema()}
    names = list(dict.fromkeys(name for source in sources for name in source.schema.names))
    if columns is None:
        first = [name for name in ours if name in names or name in _REQUIRED]
        columns = [*first, *(name for name in names if name not in ours)]
    elif isinstance(columns, str) or not all(isinstance(name, str) for name in columns):
        raise InvalidInput(f"columns={columns!r}: must be a sequence of names")
    elif not columns or len(set(columns)) < len(columns):
        raise InvalidInput(f"columns={list(columns)!r}: must be names, each of them once")
    for source in sources:
        _check_presence(source, columns)
    fields = []
    for name in columns:
        if name in ours:
            for source in sources:
                _check_type(source, ours[name])
            fields.append(ours[name])
        elif name in names:
            fields.append(_common(sources, name))
        else:
            raise InvalidInput(
                f"columns names {name!r}, which is not there: there are {', '.join(names)}"
            )
    return fields


def _check_presence(source: Source, names: Sequence[str]) -> None:
    there = source.schema.names
    for name in names:
        if there.count(name) > 1:
            raise source.wrong(f"has {there.count(name)} columns named {name}")
    missing = [name for name in names if name in _REQUIRED and name not in there]
    if missing:
        some, them = ("columns", "them") if len(missing) > 1 else ("column", "it")
        raise source.wrong(
            f"has no {some} {', '.join(missing)}; a trace file has {them}. Its columns: "
            f"{', '.join(there) or 'none'}. {IMPORT}; of confidences in arrays, from_confidences "
            "makes them"
        )


def _check_type(source: Source, wanted: pa.Field) -> None:
    pa = arrow()
    t = pa.types
    if wanted.name not in source.schema.names:
        return
    kind = source.schema.field(wanted.name).type
    plain = kind.value_type if t.is_dictionary(kind) else kind
    if t.is_null(plain):
        fits, must = wanted.nullable, f"a {wanted.type}"
    elif t.is_string(wanted.type):
        fits, must = _is_string(plain), "a string"
    elif t.is_integer(wanted.type):
        fits, must = t.is_integer(plain), f"an integer ({wanted.type})"
    elif t.is_boolean(wanted.type):
        fits, must = t.is_boolean(plain), "a boolean"
    else:
        fits, must = _is_list(kind) and t.is_floating(kind.value_type), "a list of float32"
    if not fits:
        raise source.wrong(f"column {wanted.name} is {kind}: must be {must}")


def _is_string(kind: pa.DataType) -> bool:
    t = arrow().types
    return bool(t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    t = arrow().types
    return bool(
        t.is_list(kind)
        or t.is_large_list(kind)
        or t.is_fixed_size_list(kind)
        or t.is_list_view(kind)
        or t.is_large_list_view(kind)
    )


def _common(sources: list[Source], name: str) -> pa.Field:
    """A column that is not ours: it must be of one type in all files that have it."""
    pa = arrow()
    found: tuple[Source, Any] | None = None
    for source in sources:
        if name not in source.schema.names:
            continue
        kind = source.schema.field(name).type
        if found is None or pa.types.is_null(found[1]):
            found = source, kind
        elif kind != found[1] and not pa.types.is_null(kind):
            other = f"{found[1]} in {found[0].name}"
            raise source.wrong(f"column {name} is {kind}, and {other}: must be the same")
    assert found is not None
    return pa.field(name, found[1])


def cast(source: Source, first: int, batch: pa.RecordBatch, wanted: pa.Schema) -> pa.RecordBatch:
    """A batch in the wanted schema, checked; `first` is the number of its first row.

    Raises:
        InvalidInput, TraceFileError: a row that cannot be right.
    """
    pa = arrow()
    arrays = []
    for field in wanted:
        if field.name not in batch.schema.names:
            arrays.append(pa.nulls(batch.num_rows, field.type))
            continue
        array = batch.column(batch.schema.get_field_index(field.name))
        try:
            if pa.types.is_dictionary(array.type) and array.type != field.type:
                array = array.dictionary_decode()  # Nulls may stand among its values.
            if not field.nullable and array.null_count:
                row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
                raise source.wrong(f"row {first + row}: {field.name} is null")
            is_list = field.name == "confidence"
            arrays.append(_lists(array, field.type) if is_list else array.cast(field.type))
        except pa.ArrowException as error:
            raise source.wrong(
                f"column {field.name}, rows {first} to {first + batch.num_rows - 1}: cannot be "
                f"{field.type}: {error}"
            ) from error
    found = pa.RecordBatch.from_arrays(arrays, schema=wanted)
    _check_rows(source, first, found)
    return found


def _lists(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Lists of any kind, without nulls among them, as ones of this kind.

    A piece of a large array is cast alone, however far behind its beginning it stands.
    """
    pa = arrow()
    offsets = np.concatenate([[0], np.cumsum(_lengths(array))]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, array.flatten().cast(kind.value_type), type=kind)


def _lengths(lists: pa.Array) -> np.ndarray[Any, Any]:
    import pyarrow.compute as pc

    lengths: np.ndarray[Any, Any] = pc.list_value_length(lists).fill_null(0).to_numpy()
    return lengths.astype(np.int64)


def _check_rows(source: Source, first: int, batch: pa.RecordBatch) -> None:
    import pyarrow.compute as pc

    pa = arrow()
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))

    def check(wrong: Any, what: str) -> None:
        found = np.flatnonzero(np.asarray(wrong))
        if len(found):
            at = int(found[0])
            row = {name: columns[name][at].as_py() for name in columns if name != "confidence"}
            raise source.wrong(f"row {first + at}: " + what.format(length=lengths[at], **row))

    lengths = np.zeros(batch.num_rows, np.int64)
    if "status" in columns:
        known = pc.is_in(columns["status"], value_set=pa.array(STATUSES, pa.string()))
        must = ", ".join(STATUSES)
        check(~known.to_numpy(zero_copy_only=False), f"status is '{{status}}': must be {must}")
    for name in ("trace", "num_tokens"):
        if name in columns:
            check(columns[name].to_numpy() < 0, f"{name} is {{{name}}}: must be at least 0")
    if "stop_token" in columns and "num_tokens" in columns:
        stop, count = columns["stop_token"], columns["num_tokens"]
        wrong = pc.or_(pc.less(stop, 0), pc.greater_equal(stop, count)).fill_null(False)
        check(
            wrong.to_numpy(zero_copy_only=False),
            "stop_token is {stop_token}: must be one of the {num_tokens} tokens",
        )
    if "confidence" in columns:
        confidence = columns["confidence"]
        lengths = _lengths(confidence)
        if confidence.flatten().null_count:
            flat = confidence.flatten().is_null().to_numpy(zero_copy_only=False)
            token = int(np.flatnonzero(flat)[0])
            at = int(np.searchsorted(np.cumsum(lengths), token, side="right"))
            place = token - int(lengths[:at].sum())
            raise source.wrong(f"row {first + at}: confidence[{place}] is null")
        if "num_tokens" in columns:
            count = columns["num_tokens"].to_numpy()
            wrong = count < lengths
            if "status" in columns:
                # What comes behind a stop or an abort, or fails, is counted and not always scored.
                whole = pc.is_in(columns["status"], value_set=pa.array(WHOLE))
                wrong |= whole.to_numpy(zero_copy_only=False) & (count != lengths)
            check(
                wrong,
                "num_tokens is {num_tokens}, and there are {length} confidences",
            )


def cut(batch: pa.RecordBatch, batch_tokens: int) -> Iterator[pa.RecordBatch]:
    """Pieces of a batch that hold so many tokens at the most, or one trace."""
    rows = batch.num_rows
    ends = np.zeros(rows, np.int64)
    if "confidence" in batch.schema.names:
        place = batch.schema.get_field_index("confidence")
        ends = np.cumsum(_lengths(batch.column(place)))
    start = done = 0
    while start < rows:
        stop = int(np.searchsorted(ends, done + batch_tokens, side="right"))
        stop = min(rows, start + MOST_ROWS, max(start + 1, stop))
        yield batch.slice(start, stop - start)
        done, start = int(ends[stop - 1]), stop
