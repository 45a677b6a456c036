"""Trace files: one row a trace, read and written as Arrow batches of bounded size."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deepconf.errors import DeepConfError, InvalidInput, InvalidType, TraceFileError
from deepconf.traces._parallel import Sized, cores, in_order
from deepconf.traces._schema import STATUSES, canonical, schema
from deepconf.traces._schema import arrow as _arrow
from deepconf.traces._sources import Source, absent, opened

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FORMAT", "STATUSES", "TraceReader", "TraceWriter", "read_traces", "schema"]

FORMAT = "deepconf-traces/1"

T = TypeVar("T")
R = TypeVar("R", bound=Sized)

# Settings that are text; all others are JSON.
_TEXTS = ("format", "model", "entries")
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "k": ((int,), "a whole number"),
    "window": ((int,), "a whole number"),
    "seed": ((int, type(None)), "a whole number or null"),
    "policy": ((dict,), "an object"),
    "sampling": ((dict,), "an object"),
    "versions": ((dict,), "an object"),
    "scores": ((dict,), "an object"),
    "vote": ((dict,), "an object"),
}
# What the confidences themselves depend on: files that differ in it cannot go together.
_OF_CONFIDENCES = ("k", "entries")


def read_traces(
    source: Any, *, columns: Sequence[str] | None = None, batch_tokens: int = 4_000_000
) -> TraceReader:
    """Opens recorded traces, to be read in batches of bounded size.

    Parquet, Arrow IPC files and Arrow IPC streams are told apart by their content. A file of any
    size takes the memory of some batches; of an Arrow IPC file, that of its largest record batch.

    Args:
        source: a path, a glob, a folder (its `.parquet`, `.arrow`, `.feather` and `.ipc` files), a
            sequence of these; a pyarrow `Table`, `Dataset` or `RecordBatchReader`, or anything else
            with the method `__arrow_c_stream__`, as `Traces` and data frames of polars and pandas
            have it; or a `TraceReader`. A stream named `*.part` is a recording in progress, of
            which whole batches count.
        columns: those to read, in this order; None for all. Only these are decoded, checked and
            demanded. One of `schema` that may be null and is in no file comes as nulls.
        batch_tokens: how many tokens a batch holds at the most, or one trace, if that is longer.

    Raises:
        InvalidInput: an argument that cannot be right, or a table whose columns are not those of
            `schema`.
        InvalidType: `source` is none of these.
        MissingExtra: pyarrow is not installed.
        TraceFileError: a file is missing, damaged, empty or no trace file; a column is missing or
            of a wrong type; files whose `k` or `entries` differ.
    """
    _arrow()
    if isinstance(batch_tokens, bool) or not isinstance(batch_tokens, int) or batch_tokens < 1:
        raise InvalidInput(f"batch_tokens={batch_tokens!r}: must be a whole number of at least 1")
    sources = source._sources if isinstance(source, TraceReader) else opened(source)
    return TraceReader(sources, columns, batch_tokens)


class TraceReader:
    """Recorded traces, as `read_traces` opens them: iterating gives `pyarrow.RecordBatch`es.

    Every batch has the types of `schema` (strings, integers and lists of any width are cast, and
    dictionaries decoded; float16 and float64 confidences become float32, rounded), and is checked:
    no nulls where there must be none, statuses that exist, as many confidences as `num_tokens`
    says. Unknown columns stay as they are. Confidences that are not finite are left to whoever
    scores them. Iterating raises `TraceFileError` for a file and `InvalidInput` for a table.

    It may be iterated again, but for a `RecordBatchReader`, which can be read once.
    """

    schema: pa.Schema
    """Columns and types of the batches; the metadata holds `settings`."""
    settings: dict[str, Any]
    """What the metadata says, decoded, as far as it is there and all files agree: `model` and
    `entries` as text; `k`, `window` and `seed` as numbers; `policy`, `sampling`, `versions`, and in
    files of scores and votes `scores` and `vote`, as dicts."""
    differing: dict[str, list[Any]]
    """Settings in which files differ, with their values in the order of the files."""
    num_rows: int | None
    """Traces in all; None where only reading tells."""
    available: tuple[str, ...]
    """The columns that are there, in some file, read or not."""

    def __init__(
        self, sources: list[Source], columns: Sequence[str] | None, batch_tokens: int
    ) -> None:
        self._sources = sources
        self._batch_tokens = batch_tokens
        self.available = tuple(dict.fromkeys(name for s in sources for name in s.schema.names))
        self.settings, self.differing = _merged(sources)
        fields = canonical(sources, columns)
        self.schema = _arrow().schema(fields, metadata=_encoded(self.settings))
        counts = [source.num_rows for source in sources]
        known = [count for count in counts if count is not None]
        self.num_rows = sum(known) if len(known) == len(counts) else None
        if self.num_rows == 0:
            raise absent(sources)

    @property
    def paths(self) -> list[Path]:
        """The files it reads, in order; empty for a table."""
        return [source.path for source in self._sources if source.path is not None]

    def has(self, *columns: str) -> bool:
        """Whether these columns are in every file."""
        return all(name in source.schema.names for source in self._sources for name in columns)

    @property
    def once(self) -> bool:
        """Whether it can be read only once."""
        return any(source.once for source in self._sources)

    def select(self, columns: Sequence[str] | None) -> TraceReader:
        """The same traces, other columns."""
        return read_traces(self, columns=columns, batch_tokens=self._batch_tokens)

    def parts(self) -> Iterator[Iterator[pa.RecordBatch]]:
        """The traces in pieces that several threads may read at once, each an iterator of batches.

        Row groups of Parquet and record batches of an Arrow IPC file are parts, small ones go
        together; a stream or a table is one. One after the other they give what iterating gives.
        """
        for source in self._sources:
            for part in source.parts(self.schema.names, self._batch_tokens):
                yield source.checked(part, self.schema, self._batch_tokens)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """The batches, in the order of the files."""
        yield from self._some(batch for part in self.parts() for batch in part)

    def map(
        self, function: Callable[[pa.RecordBatch], R], *, threads: int | None = None
    ) -> Iterator[R]:
        """What a function makes of each batch, in the order of the batches.

        Several threads read and call it at once, so it should release the interpreter lock.
        Memory: a batch for each thread, and 32 MB of results that wait.

        Args:
            function: from a batch to something with an attribute `nbytes`.
            threads: how many; None for one a core, 16 at the most.
        """
        threads = cores() if threads is None else threads
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise InvalidInput(f"threads={threads!r}: must be a whole number of at least 1")
        parts = list(self.parts())
        if len(parts) == 1 and threads > 1:  # One reads, one calls.
            parts = [in_order(parts, lambda batch: batch, threads=1, room=1)]
        return self._some(in_order(parts, function, threads=min(threads, len(parts) or 1)))

    def _some(self, found: Iterator[T]) -> Iterator[T]:
        """All of these; there must be one."""
        empty = True
        for one in found:
            empty = False
            yield one
        if empty:
            raise absent(self._sources)


class TraceWriter:
    """Writes a trace file, or one with other columns, that is there only when it is whole.

    A context manager. Until its end the rows are in a hidden file beside the target, `.NAME.*.tmp`,
    which is forced to the disk and then renamed; after an exception it is removed.

    Args:
        path: ends in `.parquet` (compressed with zstd), `.arrow` or `.feather` (Arrow IPC, zstd).
        schema: columns and types of what is written.
        settings: for the metadata, over what the schema's has; see `TraceReader.settings`.
        overwrite: whether a file that is there may be replaced.

    Raises:
        InvalidInput: a suffix that says no format; settings that are no JSON; rows of another
            schema.
        MissingExtra: pyarrow is not installed.
        TraceFileError: it cannot be written, or is there and must not be replaced.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        schema: pa.Schema,
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = True,
    ) -> None:
        pa = _arrow()
        self.path = target(path, overwrite=overwrite)
        self.num_rows = 0
        """Rows written so far."""
        self._overwrite = overwrite
        self._parquet = self.path.suffix.lower() == ".parquet"
        whose = {"format": FORMAT} if "confidence" in schema.names else {}
        metadata = {**whose, **_texts(schema.metadata), **_encoded(settings or {})}
        if not self._parquet:
            # A file of Arrow IPC has one dictionary a column, and each batch may have its own.
            plain = [
                field.with_type(field.type.value_type)
                if pa.types.is_dictionary(field.type)
                else field
                for field in schema
            ]
            schema = pa.schema(plain)
        self.schema = schema.with_metadata(metadata)
        name = f".{self.path.name}.{secrets.token_hex(4)}.tmp"
        self._temporary = self.path.with_name(name)
        self._writer: Any = None
        with self._errors():
            # Through a file of Python's: what the disk refuses is an OSError with its number.
            self._file: Any = open(self._temporary, "xb")  # noqa: SIM115
            try:
                self._writer = self._start(pa)
            except BaseException:
                self._discard()
                raise

    def write(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Adds rows, as one row group or record batch; the order of columns does not matter.

        Raises:
            InvalidInput: the columns are not those of the schema, or cannot be cast to it.
            TraceFileError: it cannot be written.
        """
        pa = _arrow()
        if self._writer is None:
            raise InvalidInput(f"{self.path}: is closed, and takes no more rows")
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        if sorted(table.schema.names) != sorted(self.schema.names):
            raise InvalidInput(
                f"rows have the columns {', '.join(table.schema.names)}: "
                f"must be {', '.join(self.schema.names)}"
            )
        try:
            table = table.select(self.schema.names).cast(self.schema)
        except pa.ArrowException as error:
            raise InvalidInput(f"rows do not fit the schema: {error}") from error
        except ValueError as error:
            raise InvalidInput(f"rows do not fit the schema: {error}") from error
        if table.num_rows == 0:
            return
        with self._errors():
            if self._parquet:
                self._writer.write_table(table, row_group_size=table.num_rows)
            else:
                for batch in table.combine_chunks().to_batches():
                    self._writer.write_batch(batch)
        self.num_rows += table.num_rows

    def close(self) -> None:
        """Finishes the file, and gives it its name; nothing more where that is done."""
        if self._writer is None:
            return
        try:
            with self._errors():
                writer, self._writer = self._writer, None
                writer.close()
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                target(self.path, overwrite=self._overwrite)
                os.replace(self._temporary, self.path)
                _sync_folder(self.path.parent)
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> TraceWriter:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finishes the file; after an exception, removes what was written."""
        if kind is None:
            self.close()
        else:
            self._discard()

    def _start(self, pa: Any) -> Any:
        if not self._parquet:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            return pa.ipc.new_file(self._file, self.schema, options=options)
        import pyarrow.parquet as pq

        # Confidences hardly repeat: a dictionary of them is in vain, and split into their bytes
        # they are a tenth smaller and faster to read.
        lists = [f.name for f in self.schema if f.name == "confidence"]
        flat = [f.name for f in self.schema if not pa.types.is_nested(f.type)]
        split = [f"{name}.list.element" for name in lists]
        return pq.ParquetWriter(
            self._file,
            self.schema,
            compression="zstd",
            use_dictionary=flat or False,
            use_byte_stream_split=split or False,
            # How often a page's size is looked at: a thousand long texts would be one page, and
            # whoever reads a page holds all of it.
            write_batch_size=16,
        )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        pa = _arrow()
        try:
            yield
        except TraceFileError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise TraceFileError(f"{self.path}: cannot be written: {error}") from error

    def _discard(self) -> None:
        writer, self._writer = self._writer, None
        with contextlib.suppress(Exception):
            if writer is not None:
                writer.close()
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink()


def target(given: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
    """Where a file can be written.

    Raises:
        InvalidInput: a suffix that says no format, or no path.
        InvalidType: neither text nor a path.
        TraceFileError: it cannot be written there, or is there and must not be replaced.
    """
    if not isinstance(given, str | os.PathLike) or isinstance(os.fspath(given), bytes):
        raise InvalidType(f"out is a {type(given).__name__}: must be a path, as a str or Path")
    if "\0" in os.fspath(given):
        raise InvalidInput(f"{os.fspath(given)!r}: is no path")
    try:
        path = Path(given).expanduser()
        if path.suffix.lower() not in (".parquet", ".arrow", ".feather"):
            raise InvalidInput(f"{path}: the name must end in .parquet, .arrow or .feather")
        if path.is_dir():
            raise TraceFileError(f"{path}: cannot be written: it is a folder")
        if not path.parent.is_dir():
            raise TraceFileError(f"{path}: cannot be written: there is no folder {path.parent}")
        if not overwrite and path.exists():
            raise TraceFileError(f"{path}: is there already, and is not to be overwritten")
    except TraceFileError:
        raise
    except (OSError, RuntimeError) as error:  # A name that is too long; a home that nobody has.
        raise TraceFileError(f"{os.fspath(given)}: cannot be written: {error}") from error
    return path


def spare_recordings(path: Path) -> None:
    """Refuses to replace the recording of an evaluation, which may have taken days.

    Raises:
        TraceFileError: there is one.
    """
    if not path.is_file():
        return
    try:
        (found,) = opened(path)
    except DeepConfError:
        return  # Whatever it is, it holds no traces.
    if b"run" in (found.schema.metadata or {}):
        raise TraceFileError(
            f"{path}: is the recording of an evaluation, and would be replaced: remove it first, "
            "or take another name"
        )


def _sync_folder(folder: Path) -> None:
    """So that the new name survives a power cut; not every file system can."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


# ---- settings -----------------------------------------------------------------------------------


def _texts(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    pairs = (metadata or {}).items()
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in pairs}


def _encoded(settings: Mapping[str, Any]) -> dict[str, str]:
    try:
        return {
            name: str(value) if name in _TEXTS else json.dumps(value, allow_nan=False)
            for name, value in settings.items()
        }
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"settings={settings!r}: must be JSON values: {error}") from error


def _settings(source: Source) -> dict[str, Any]:
    """The settings of one file; what is no setting of ours is left out."""
    found: dict[str, Any] = {}
    for name, text in _texts(source.schema.metadata).items():
        if name == "format":
            if text.startswith("deepconf-traces/") and text != FORMAT:
                raise source.wrong(f"has the format {text}: this release reads {FORMAT}")
        elif name in _TEXTS:
            found[name] = text
        elif name in _KINDS:
            kinds, wanted = _KINDS[name]
            try:
                value = json.loads(text)
            except ValueError:
                value = text
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise source.wrong(f"says {name}={text!r} in its metadata: must be {wanted}")
            found[name] = value
    return found


def _merged(sources: list[Source]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The settings in which the files agree, and those in which they do not."""
    settings: dict[str, Any] = {}
    differing: dict[str, list[Any]] = {}
    first: dict[str, Source] = {}
    for source in sources:
        for name, value in _settings(source).items():
            if name not in first:
                settings[name], first[name] = value, source
            elif name in differing:
                differing[name].append(value)
            elif settings[name] != value:
                if name in _OF_CONFIDENCES:
                    raise source.wrong(
                        f"has {name}={value!r} and {first[name].name} has "
                        f"{name}={settings[name]!r}: their confidences cannot be compared"
                    )
                differing[name] = [settings.pop(name), value]
    return settings, differing
