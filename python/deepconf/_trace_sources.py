"""Where recorded traces come from: files and tables, checked and brought to one schema."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepconf.errors import DeepConfError, InvalidInput, InvalidType, MissingExtra, TraceFileError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["STATUSES", "Source", "absent", "arrow", "canonical", "opened", "schema"]

STATUSES = ("finished", "length", "stopped", "aborted", "failed")

_REQUIRED = ("question_id", "trace", "answer", "status", "num_tokens", "confidence")
_IN_FOLDERS = (".parquet", ".arrow", ".feather", ".ipc")
# Where no confidences are read, this many bytes of other columns count as a token.
_BYTES = 8
_MOST_ROWS = 65_536
_BUFFER = 1 << 20

Numbered = tuple[int, "pa.RecordBatch"]
"""A batch, and the number of its first row in its file."""


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


# ---- what is read -------------------------------------------------------------------------------


class Source:
    """Traces that stand in one place."""

    name: str
    """What errors call it."""
    path: Path | None = None
    schema: pa.Schema
    """As it stands there."""
    num_rows: int | None = None

    def wrong(self, what: str) -> DeepConfError:
        """An error that says what is wrong with it."""
        kind = InvalidInput if self.path is None else TraceFileError
        return kind(f"{self.name}: {what}")

    def parts(self, columns: list[str], batch_tokens: int) -> Iterator[Iterator[Numbered]]:
        """Pieces that may be read at once."""
        raise NotImplementedError

    def checked(
        self, part: Iterator[Numbered], wanted: pa.Schema, batch_tokens: int
    ) -> Iterator[pa.RecordBatch]:
        """The batches of a part: cast, checked, and cut where they are too long."""
        pa = arrow()
        while True:
            try:
                first, batch = next(part)
                yield from _cut(_cast(self, first, batch, wanted), batch_tokens)
            except StopIteration:
                return
            except DeepConfError:
                raise
            except (OSError, ValueError, pa.ArrowException) as error:
                raise self.wrong(f"cannot be read; it is damaged or cut off: {error}") from error


class _Parquet(Source):
    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        with self._open() as file:
            self.schema = file.schema_arrow
            self._metadata = file.metadata
        self.num_rows = self._metadata.num_rows
        # Of the columns of a row group, by their place, the columns of the schema they belong to.
        leaves = map(self._metadata.schema.column, range(self._metadata.num_columns))
        self._leaves = [leaf.path.partition(".")[0] for leaf in leaves]

    @contextlib.contextmanager
    def _open(self, metadata: Any = None) -> Iterator[Any]:
        import pyarrow.parquet as pq

        # Read as it is needed: neither the file nor what is decoded stays in memory.
        with pq.ParquetFile(
            self.name, metadata=metadata, buffer_size=_BUFFER, pre_buffer=False
        ) as file:
            yield file

    def parts(self, columns: list[str], batch_tokens: int) -> Iterator[Iterator[Numbered]]:
        first = 0
        here = [name for name in columns if name in self.schema.names]
        for index in range(self._metadata.num_row_groups):
            yield self._group(index, first, here, batch_tokens)
            first += self._metadata.row_group(index).num_rows

    def _group(
        self, index: int, first: int, columns: list[str], batch_tokens: int
    ) -> Iterator[Numbered]:
        with self._open(self._metadata) as file:
            rows = self._rows(file, index, columns, batch_tokens)
            for batch in file.iter_batches(rows, row_groups=[index], columns=columns):
                yield first, batch
                first += batch.num_rows

    def _rows(self, file: Any, index: int, columns: list[str], batch_tokens: int) -> int:
        """How many rows of a row group hold about so many tokens, wherever they are taken."""
        group = self._metadata.row_group(index)
        tokens = size = 0
        for place, name in enumerate(self._leaves):
            if name in columns:
                tokens += group.column(place).num_values if name == "confidence" else 0
                size += group.column(place).total_uncompressed_size
        heavy = max(tokens, size // _BYTES)
        if heavy <= batch_tokens:
            return int(min(_MOST_ROWS, max(1, group.num_rows)))
        rows: int = max(1, min(_MOST_ROWS, group.num_rows * batch_tokens // heavy))
        if tokens and "num_tokens" in self.schema.names:
            # Long traces may stand together.
            column = file.read_row_group(index, columns=["num_tokens"]).column(0)
            with contextlib.suppress(arrow().ArrowException):
                lengths = column.cast("int64").fill_null(0).to_numpy()
                most = max(2 * batch_tokens, int(lengths.max()))
                while rows > 1 and _heaviest(lengths, rows) > most:
                    rows //= 2
        return rows


def _heaviest(lengths: np.ndarray[Any, Any], rows: int) -> int:
    return int(np.add.reduceat(lengths, np.arange(0, len(lengths), rows)).max())


class _File(Source):
    """An Arrow IPC file."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        pa = arrow()
        with pa.OSFile(self.name) as file, pa.ipc.open_file(file) as reader:
            self.schema = reader.schema
            self._count = reader.num_record_batches
        # A batch has to be read to know its rows: one cheap column of it is enough.
        cheap = [f.name for f in self.schema if pa.types.is_integer(f.type)] or self.schema.names
        self._starts = [0]
        for index in range(self._count):
            self._starts.append(self._starts[-1] + self._batch(index, cheap[:1]).num_rows)
        self.num_rows = self._starts[-1]

    def _batch(self, index: int, columns: list[str]) -> pa.RecordBatch:
        pa = arrow()
        fields = [self.schema.names.index(name) for name in columns]
        options = pa.ipc.IpcReadOptions(included_fields=sorted(fields))
        with pa.OSFile(self.name) as file, pa.ipc.open_file(file, options=options) as reader:
            return reader.get_batch(index)

    def parts(self, columns: list[str], batch_tokens: int) -> Iterator[Iterator[Numbered]]:
        here = [name for name in columns if name in self.schema.names]
        for index in range(self._count):
            yield self._part(index, here)

    def _part(self, index: int, columns: list[str]) -> Iterator[Numbered]:
        yield self._starts[index], self._batch(index, columns)


class _Stream(Source):
    """An Arrow IPC stream; whole batches count where it is still being written."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self._growing = path.suffix == ".part"
        pa = arrow()
        with pa.OSFile(self.name) as file:
            self.schema = pa.ipc.open_stream(file).schema

    def parts(self, columns: list[str], batch_tokens: int) -> Iterator[Iterator[Numbered]]:
        here = [name for name in columns if name in self.schema.names]
        yield self._part(here)

    def _part(self, columns: list[str]) -> Iterator[Numbered]:
        pa = arrow()
        fields = sorted(self.schema.names.index(name) for name in columns)
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        first = 0
        with pa.OSFile(self.name) as file:
            reader = pa.ipc.open_stream(file, options=options)
            while True:
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    return
                except (OSError, pa.ArrowException):
                    # Only a batch that ends behind the end of the file is one not yet written.
                    if self._growing and file.tell() >= file.size():
                        return
                    raise
                yield first, batch
                first += batch.num_rows


class _Table(Source):
    """Something in memory with the Arrow interface."""

    name = "traces"

    def __init__(self, given: Any) -> None:
        pa = arrow()
        self._reader: Any = None
        self._once = isinstance(given, pa.RecordBatchReader)
        try:
            if not hasattr(given, "__arrow_c_stream__"):
                given = pa.Table.from_batches([pa.record_batch(given)])
            elif not isinstance(given, pa.Table):
                self._reader = given if self._once else pa.RecordBatchReader.from_stream(given)
        except (TypeError, ValueError, pa.ArrowException) as error:
            raise InvalidType(
                f"source is a {type(given).__name__}, and is no table of traces: {error}"
            ) from error
        self._given = given
        self.schema = (self._reader or given).schema
        self.num_rows = given.num_rows if isinstance(given, pa.Table) else None

    def parts(self, columns: list[str], batch_tokens: int) -> Iterator[Iterator[Numbered]]:
        yield self._part(columns)

    def _part(self, columns: list[str]) -> Iterator[Numbered]:
        here = [name for name in columns if name in self.schema.names]
        first = 0
        for batch in self._batches():
            yield first, batch.select(here)
            first += batch.num_rows

    def _batches(self) -> Any:
        pa = arrow()
        if isinstance(self._given, pa.Table):
            return self._given.to_batches()
        reader, self._reader = self._reader, None
        if reader is None and not self._once:
            reader = pa.RecordBatchReader.from_stream(self._given)
        elif reader is None:
            raise self.wrong("a RecordBatchReader can be read once; give a table or a path")
        return reader


def opened(given: Any) -> list[Source]:
    """The places that a path, a glob, a folder, several of them or a table stand for."""
    if isinstance(given, str | os.PathLike):
        paths = _paths(given)
    elif hasattr(given, "__arrow_c_stream__") or hasattr(given, "__arrow_c_array__"):
        return [_Table(given)]
    elif isinstance(given, Sequence) and all(isinstance(p, str | os.PathLike) for p in given):
        if not given:
            raise InvalidInput("source is an empty list: must name at least one trace file")
        paths = [path for one in given for path in _paths(one)]
    else:
        raise InvalidType(
            f"source is a {type(given).__name__}: must be a path, a glob, a folder, a sequence of "
            "these, or something with the method __arrow_c_stream__, such as a pyarrow.Table"
        )
    seen: dict[Path, Path] = {}
    for path in paths:
        other = seen.setdefault(path.resolve(), path)
        if other is not path:
            raise InvalidInput(f"{path}: is named twice, as {other} too")
    return [_opened(path) for path in paths]


def _paths(given: str | os.PathLike[str]) -> list[Path]:
    text = os.fspath(given)
    if not isinstance(text, str):
        raise InvalidType(f"source={given!r}: a path must be a str")
    if not text or "\0" in text:
        raise InvalidInput(f"source={text!r}: is no path")
    try:
        path = Path(text).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if _counts(p))
            if not found:
                raise TraceFileError(f"{path}: a folder without {', '.join(_IN_FOLDERS)} files")
            return found
        if not path.exists() and glob.has_magic(text):
            found = sorted(map(Path, glob.glob(str(path), recursive=True)))
            if not found:
                raise TraceFileError(f"{text}: matches no file")
            return [p for p in found if not p.is_dir()]
    except OSError as error:
        if isinstance(error, TraceFileError):
            raise
        raise TraceFileError(f"{text}: cannot be read: {error.strerror or error}") from error
    except RuntimeError as error:  # A home that nobody has.
        raise TraceFileError(f"{text}: cannot be read: {error}") from error
    return [path]


def _counts(path: Path) -> bool:
    return path.suffix.lower() in _IN_FOLDERS and path.name[0] not in "._" and path.is_file()


def _opened(path: Path) -> Source:
    pa = arrow()
    try:
        if path.exists() and not path.is_file():
            raise TraceFileError(f"{path}: is no file")
        with open(path, "rb") as file:
            start = file.read(8)
    except FileNotFoundError as error:
        raise TraceFileError(f"{path}: there is no such file") from error
    except OSError as error:
        if isinstance(error, TraceFileError):
            raise
        raise TraceFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    kind: type[_Parquet] | type[_File] | type[_Stream]
    if not start:
        raise TraceFileError(f"{path}: is an empty file")
    if start[:4] == b"PAR1":
        kind, what = _Parquet, "a Parquet file"
    elif start[:6] == b"ARROW1":
        kind, what = _File, "an Arrow IPC file"
    elif start[:4] == b"\xff\xff\xff\xff":
        kind, what = _Stream, "an Arrow IPC stream"
    else:
        raise TraceFileError(f"{path}: is neither Parquet nor Arrow IPC")
    try:
        source = kind(path)
        source.schema.names  # noqa: B018 - Damaged ones cannot be decoded.
        return source
    except (OSError, ValueError, pa.ArrowException) as error:
        raise TraceFileError(f"{path}: is {what}, but damaged or cut off: {error}") from error


def absent(sources: list[Source]) -> DeepConfError:
    """The error for no traces at all."""
    if len(sources) == 1:
        return sources[0].wrong("has no rows: there are no traces")
    return TraceFileError(f"{sources[0].name} and {len(sources) - 1} more: have no rows")


# ---- one schema ---------------------------------------------------------------------------------


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
    fields = []
    for name in columns:
        for source in sources:
            _check_presence(source, name)
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


def _check_presence(source: Source, name: str) -> None:
    there = source.schema.names.count(name)
    if there > 1:
        raise source.wrong(f"has {there} columns named {name}")
    if not there and name in _REQUIRED:
        has = ", ".join(source.schema.names) or "none"
        raise source.wrong(f"has no column {name}; a trace file has one. Its columns: {has}")


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
        fits, must = _is_list(plain) and t.is_floating(plain.value_type), "a list of float32"
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


def _cast(source: Source, first: int, batch: pa.RecordBatch, wanted: pa.Schema) -> pa.RecordBatch:
    pa = arrow()
    batch.validate(full=True)  # A damaged file may point anywhere.
    arrays = []
    for field in wanted:
        if field.name not in batch.schema.names:
            arrays.append(pa.nulls(batch.num_rows, field.type))
            continue
        array = batch.column(batch.schema.get_field_index(field.name))
        if not field.nullable and array.null_count:
            row = first + int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
            raise source.wrong(f"row {row}: {field.name} is null")
        try:
            if pa.types.is_dictionary(array.type) and array.type != field.type:
                array = array.dictionary_decode()
            array = array.cast(field.type)
        except pa.ArrowException as error:
            raise source.wrong(
                f"column {field.name}, rows {first} to {first + batch.num_rows - 1}: cannot be "
                f"{field.type}: {error}"
            ) from error
        arrays.append(array)
    cast = pa.RecordBatch.from_arrays(arrays, schema=wanted)
    _check_rows(source, first, cast)
    return cast


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
    if "confidence" in columns:
        confidence = columns["confidence"]
        lengths = confidence.value_lengths().to_numpy().astype(np.int64)
        if confidence.flatten().null_count:
            flat = confidence.flatten().is_null().to_numpy(zero_copy_only=False)
            token = int(np.flatnonzero(flat)[0])
            at = int(np.searchsorted(np.cumsum(lengths), token, side="right"))
            place = token - int(lengths[:at].sum())
            raise source.wrong(f"row {first + at}: confidence[{place}] is null")
        if "num_tokens" in columns:
            check(
                columns["num_tokens"].to_numpy() != lengths,
                "num_tokens is {num_tokens}, and there are {length} confidences",
            )


def _cut(batch: pa.RecordBatch, batch_tokens: int) -> Iterator[pa.RecordBatch]:
    """Pieces of a batch that hold so many tokens at the most, or one trace."""
    if batch.num_rows == 0:
        return
    rows = batch.num_rows
    ends = np.arange(1, rows + 1, dtype=np.int64)
    if "confidence" in batch.schema.names:
        column = batch.column(batch.schema.get_field_index("confidence"))
        ends = np.cumsum(column.value_lengths().to_numpy().astype(np.int64))
        if ends[-1] <= batch_tokens and rows <= _MOST_ROWS:
            yield batch
            return
    start = done = 0
    while start < rows:
        if "confidence" in batch.schema.names:
            stop = int(np.searchsorted(ends, done + batch_tokens, side="right"))
        else:
            stop = rows
        stop = min(rows, start + _MOST_ROWS, max(start + 1, stop))
        yield batch.slice(start, stop - start)
        done, start = int(ends[stop - 1]), stop
