"""Where recorded traces come from: Parquet, Arrow IPC, and what has the Arrow interface."""

from __future__ import annotations

import contextlib
import glob
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from deepconf.errors import (
    DeepConfError,
    DeepConfWarning,
    InvalidInput,
    InvalidType,
    TraceFileError,
)
from deepconf.traces._schema import IMPORT, MOST_ROWS, arrow, cast, cut

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Source", "absent", "opened"]

_IN_FOLDERS = (".parquet", ".arrow", ".feather", ".ipc")
# Where no confidences are read, this many bytes of other columns count as a token.
_BYTES = 8
_BUFFER = 1 << 18
# Into so many parts an Arrow IPC file is divided, since each has to be opened.
_PARTS = 256

Numbered = tuple[int, "pa.RecordBatch"]
"""A batch, and the number of its first row in its file."""


class Source:
    """Traces that stand in one place."""

    name: str
    """What errors call it."""
    path: Path | None = None
    schema: pa.Schema
    """As it stands there."""
    num_rows: int | None = None
    once: bool = False
    """Whether it can be read only once."""

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
        """The batches of a part: cut where they are too long, cast, and checked."""
        pa = arrow()
        while True:
            try:
                first, batch = next(part)
                batch.validate(full=True)  # A damaged file may point anywhere.
                for piece in cut(batch, batch_tokens):
                    yield cast(self, first, piece, wanted)
                    first += piece.num_rows
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
        here = [name for name in columns if name in self.schema.names]
        groups: list[int] = []
        first = rows = size = 0
        for index in range(self._metadata.num_row_groups):
            more = self._metadata.row_group(index).num_rows
            weight = max(self._weight(index, here))
            # Opening a row group takes a millisecond, so small ones go together.
            if groups and (size + weight > batch_tokens or rows + more > MOST_ROWS):
                yield self._part(groups, first, here, batch_tokens)
                groups, first, rows, size = [], first + rows, 0, 0
            groups, rows, size = [*groups, index], rows + more, size + weight
        if groups:
            yield self._part(groups, first, here, batch_tokens)

    def _part(
        self, groups: list[int], first: int, columns: list[str], batch_tokens: int
    ) -> Iterator[Numbered]:
        with self._open(self._metadata) as file:
            rows = MOST_ROWS
            if len(groups) == 1:
                rows = self._rows(file, groups[0], columns, batch_tokens)
            for batch in file.iter_batches(rows, row_groups=groups, columns=columns):
                yield first, batch
                first += batch.num_rows

    def _weight(self, index: int, columns: list[str]) -> tuple[int, int]:
        """The tokens of a row group; and its bytes, as tokens."""
        group = self._metadata.row_group(index)
        tokens = size = 0
        for place, name in enumerate(self._leaves):
            if name in columns:
                tokens += group.column(place).num_values if name == "confidence" else 0
                size += group.column(place).total_uncompressed_size
        return tokens, size // _BYTES

    def _rows(self, file: Any, index: int, columns: list[str], batch_tokens: int) -> int:
        """How many rows of a row group hold about so many tokens, wherever they are taken."""
        tokens, size = self._weight(index, columns)
        heavy = max(tokens, size, 1)
        count = self._metadata.row_group(index).num_rows
        rows: int = max(1, min(MOST_ROWS, count * batch_tokens // heavy))
        if tokens > batch_tokens and "num_tokens" in self.schema.names:
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
        for _, batch in self._part(0, self._count, cheap[:1]):
            self._starts.append(self._starts[-1] + batch.num_rows)
        self.num_rows = self._starts[-1]

    def parts(self, columns: list[str], batch_tokens: int) -> Iterator[Iterator[Numbered]]:
        here = [name for name in columns if name in self.schema.names]
        step = 1 + self._count // _PARTS
        for start in range(0, self._count, step):
            yield self._part(start, min(start + step, self._count), here)

    def _part(self, start: int, stop: int, columns: list[str]) -> Iterator[Numbered]:
        pa = arrow()
        fields = sorted(self.schema.names.index(name) for name in columns)
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        with pa.OSFile(self.name) as file, pa.ipc.open_file(file, options=options) as reader:
            for index in range(start, stop):
                yield self._starts[index], reader.get_batch(index)


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
        self.once = isinstance(given, pa.RecordBatchReader)
        try:
            if not hasattr(given, "__arrow_c_stream__"):
                given = pa.Table.from_batches([pa.record_batch(given)])
            elif not isinstance(given, pa.Table):
                self._reader = given if self.once else pa.RecordBatchReader.from_stream(given)
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
        if reader is None and not self.once:
            reader = pa.RecordBatchReader.from_stream(self._given)
        elif reader is None:
            raise self.wrong("a RecordBatchReader can be read once; give a table or a path")
        return reader


class _Dataset(Source):
    """A dataset of pyarrow: files, a few rows at a time."""

    name = "traces"
    # Of long traces a few hundred are all that memory should hold.
    _SCAN: ClassVar = {"batch_size": 256, "batch_readahead": 2, "fragment_readahead": 1}

    def __init__(self, given: Any) -> None:
        self._given = given
        self.schema = given.schema
        self.num_rows = given.count_rows()

    def parts(self, columns: list[str], batch_tokens: int) -> Iterator[Iterator[Numbered]]:
        yield self._part(columns)

    def _part(self, columns: list[str]) -> Iterator[Numbered]:
        here = [name for name in columns if name in self.schema.names]
        first = 0
        for batch in self._given.to_batches(columns=here, **self._SCAN):
            yield first, batch
            first += batch.num_rows


def opened(given: Any) -> list[Source]:
    """The places that a path, a glob, a folder, several of them or a table stand for."""
    if isinstance(given, str | os.PathLike):
        paths = _paths(given)
    elif hasattr(given, "__arrow_c_stream__") or hasattr(given, "__arrow_c_array__"):
        return [_Table(given)]
    elif hasattr(given, "to_batches") and hasattr(given, "count_rows"):
        return [_Dataset(given)]
    elif isinstance(given, Sequence) and all(isinstance(p, str | os.PathLike) for p in given):
        if not given:
            raise InvalidInput("source is an empty list: must name at least one trace file")
        paths = [path for one in given for path in _paths(one)]
    else:
        raise InvalidType(
            f"source is a {type(given).__name__}: must be a path, a glob, a folder, a sequence of "
            "these, Traces, a pyarrow dataset, or something with the method __arrow_c_stream__, "
            f"such as a pyarrow.Table. {IMPORT}"
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
    part = path.with_name(f"{path.name}.part")
    if not part.is_file():
        return [path]
    if not path.exists():
        return [part]
    if not part.stat().st_size:  # One that has just been begun, and holds nothing yet.
        return [path]
    message = f"{path}: is read without {part.name} beside it, the rest of a recording in progress"
    warnings.warn(message, DeepConfWarning, stacklevel=2)
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
        raise TraceFileError(f"{path}: is neither Parquet nor Arrow IPC. {IMPORT}")
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
