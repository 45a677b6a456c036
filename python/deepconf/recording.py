"""Recordings: an evaluation's traces, question by question, in files that survive any kill.

While the evaluation runs, its traces go to a journal beside the trace file, `PATH.part`: an Arrow
IPC stream with a record batch for each finished question, appended and forced to the disk before
the run file says that the question is finished. `deepconf.read_traces` reads it at any moment. When
every question is finished, `seal` makes the trace file of it, with a row group for each question.

So after a kill the journal has what the run file has, and at most one question more, its last: that
one is dropped, and asked again.
"""

from __future__ import annotations

import contextlib
import glob
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deepconf._locked import LockedFile
from deepconf.errors import DeepConfError, InvalidInput, RunFileError
from deepconf.runs import differing

if TYPE_CHECKING:
    import pyarrow as pa

    from deepconf.result import Result

__all__ = ["SUFFIXES", "Recording", "check_target", "journal_of"]

SUFFIXES = (".parquet", ".arrow", ".feather")
"""How the name of a trace file that is written ends."""

# What in the schema's metadata says which run it is.
_RUN = "run"
_STREAM = b"\xff\xff\xff\xff"
_ADVICE = "choose another --record, or --overwrite to ask all questions again"


class _Entry(NamedTuple):
    """A question in the journal."""

    question: str
    start: int
    end: int
    batches: int


class Recording:
    """The traces of one policy of an evaluation, written as questions finish.

    Not for several threads at once.

    Args:
        path: the trace file to be: `.parquet`, `.arrow` or `.feather`.
        run: what tells the run from others, as JSON values: the run file's header, and whatever
            else must be the same.
        settings: of the traces, for the schema's metadata: see `provenance.trace_settings`.
        finished: the questions that the run file says are finished.
        overwrite: starts anew, whichever run is recorded there. That is kept until `begin`.

    Attributes:
        path: the trace file.
        part: the journal.

    Raises:
        InvalidInput: the path has another ending.
        MissingExtra: pyarrow is not installed, or the file system has no locks and filelock is not.
        RunFileError: it cannot be read or written, is open elsewhere, holds something else or
            another run, or its questions are not those of the run file.
    """

    def __init__(
        self,
        path: str | Path,
        run: Mapping[str, Any],
        settings: Mapping[str, str],
        *,
        finished: Sequence[str] = (),
        overwrite: bool = False,
    ) -> None:
        from deepconf.traces import schema

        self.path = Path(path).expanduser()
        check_target(self.path, f"record={str(path)!r}")
        self.part = journal_of(self.path)
        self._schema = schema().with_metadata({**settings, _RUN: json.dumps(run)})
        self._earlier: list[str] = []
        self._entries: list[_Entry] = []
        self._anew = overwrite
        self._empty = False
        self._file = LockedFile(self.part, "recording", "--record")
        try:
            self._take_up(set(finished))
        except BaseException:
            self.close()
            raise
        # Of a `TraceWriter` that was killed; whoever writes one here has the lock.
        for left in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.tmp"):
            with contextlib.suppress(OSError):
                left.unlink()

    @property
    def questions(self) -> list[str]:
        """The questions that are recorded, in the order of the trace file to be."""
        new = dict.fromkeys(entry.question for entry in self._entries)
        return [*(question for question in self._earlier if question not in new), *new]

    @property
    def where(self) -> Path:
        """What there is to be read: the journal, or the trace file when that has all."""
        return self.part if self._entries else self.path

    def begin(self) -> None:
        """With `overwrite`, lets go of what is there; to be called when work can start.

        Raises:
            RunFileError: it cannot be written.
        """
        if self._anew:
            try:
                self.path.unlink(missing_ok=True)
            except OSError as error:
                raise self._file.error("cannot be started anew", error) from error
            self._anew, self._empty = False, True
        if self._empty:
            self._file.truncate(0)
            self._file.write(self._schema.serialize().to_pybytes())

    def append(
        self,
        question: str,
        result: Result,
        correct: Sequence[bool | None] | None = None,
        gold: str | None = None,
    ) -> None:
        """Adds the traces of a finished question; when this returns, they are on the disk.

        Args:
            question: its id.
            result: what came of it.
            correct: `[traces]`, whether each is right.
            gold: the right answer.

        Raises:
            RunFileError: they could not be written; the journal is then as it was.
        """
        import pyarrow as pa

        self.begin()
        start = self._file.size
        try:
            batches = result.to_arrow(question, correct, gold=gold).to_batches()
            self._write(batches)
        except (pa.ArrowException, InvalidInput, MemoryError) as error:
            raise RunFileError(
                f"{self.part}: question {question!r} cannot be recorded: {error}"
            ) from error
        # One, but for texts of 2 GiB and more.
        self._entries.append(_Entry(question, start, self._file.size, len(batches)))
        self._empty = False

    def take_back(self) -> None:
        """Drops what was appended last: the run file could not take it up.

        Raises:
            RunFileError: it cannot be written; the question is dropped on carrying on, then.
        """
        start = self._entries.pop().start
        self._empty = not self._entries
        self._file.truncate(start)

    def seal(self, progress: Callable[[int, int], object] | None = None) -> None:
        """Makes the trace file of what is recorded, and deletes the journal.

        What the trace file has already, it keeps. One question at a time is in memory. If anything
        fails, both files stay as they are.

        Args:
            progress: told how many questions are written, from 0, and of how many.

        Raises:
            DeepConfError: a file cannot be read or written.
        """
        if not self._entries:
            return
        from deepconf.traces import TraceWriter

        total = len(self.questions)
        if progress is not None:
            progress(0, total)
        with TraceWriter(self.path, schema=self._schema) as out:
            for done, rows in enumerate(self._tables(), start=1):
                out.write(rows)
                if progress is not None:
                    progress(done, total)
        self._earlier, self._entries = self.questions, []
        self._file.remove()

    def close(self) -> None:
        """Closes the journal; one without a question is deleted."""
        if self._empty and self._file.is_open:
            with contextlib.suppress(RunFileError):
                self._file.remove()
        self._file.close()

    def _write(self, batches: Sequence[pa.RecordBatch]) -> None:
        import pyarrow as pa

        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with self._file.appending() as put:
            behind = _Behind(put, self._schema.serialize().size)
            with pa.ipc.new_stream(behind, self._schema, options=options) as writer:
                for batch in batches:
                    writer.write_batch(batch)
                behind.is_over = True
        pa.default_memory_pool().release_unused()

    def _tables(self) -> Iterator[pa.Table]:
        """Each question's rows: of the trace file that is there, and of the journal."""
        import pyarrow as pa

        new = {entry.question for entry in self._entries}
        if self._earlier:
            with _reading(self.path), _opened(self.path) as (_, groups):
                for rows in groups:
                    if rows["question_id"][0].as_py() not in new:
                        yield rows
        with _reading(self.part), pa.OSFile(str(self.part)) as source:
            stream = pa.ipc.open_stream(source)
            for entry in self._entries:
                batches = [stream.read_next_batch() for _ in range(entry.batches)]
                yield pa.Table.from_batches(batches)

    # ---- carrying on -------------------------------------------------------------------------

    def _take_up(self, finished: set[str]) -> None:
        """Finds what is recorded, and holds it against what the run file says is finished."""
        with _reading(self.part):
            journal, entries, end = _journal(self.part)
        self._empty = not entries
        with _reading(self.path):
            sealed, earlier = _sealed(self.path)
        if self._anew:
            return
        for path, found in ((self.part, journal if entries else None), (self.path, sealed)):
            if found is not None:
                self._check(path, found)
                self._schema = found
        self._entries, self._earlier = entries, earlier
        self._agree(finished)
        if entries and entries[-1].question not in finished:  # Killed before the run file had it.
            end = entries.pop().start
        self._empty = not entries
        if entries and end < self._file.size:
            self._file.truncate(end)

    def _check(self, path: Path, found: pa.Schema) -> None:
        """Whether it is this run's."""
        theirs, ours = (
            [json.loads(schema.metadata[key.encode()]) for key in (_RUN, "policy")]
            for schema in (found, self._schema)
        )
        differences = differing(theirs[0], ours[0]) + differing(theirs[1], ours[1], "policy: ")
        if differences:
            raise RunFileError(f"{path} records another run ({'; '.join(differences)}): {_ADVICE}")
        if not found.equals(self._schema):
            raise RunFileError(
                f"{path}: has the columns {', '.join(found.names)}, as another version of deepconf "
                f"writes them: {_ADVICE}"
            )

    def _agree(self, finished: set[str]) -> None:
        recorded = self.questions
        lacking = sorted(finished.difference(recorded))
        if lacking:
            raise RunFileError(
                f"{self.path}: {_some(lacking)} finished in the run file and not recorded: "
                "recording must be on from the first question: choose another --out and "
                "--record, or --overwrite to ask all questions again"
            )
        # A kill leaves one at the most that the run file does not have, the last.
        unknown = [
            question
            for names in (self._earlier, [entry.question for entry in self._entries])
            for question in names[:-1]
            if question not in finished
        ]
        if unknown:
            raise RunFileError(
                f"{self.path}: {_some(unknown)} recorded and not finished in the run file: give "
                f"the --out that belongs to it, {_ADVICE}"
            )


def check_target(path: Path, given: str) -> None:
    """Before hours are spent: whether a trace file can have this name.

    Args:
        path: where it is to be.
        given: the argument or option that says so, for messages.

    Raises:
        InvalidInput: its ending says no format of trace files.
        RunFileError: it is a folder.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidInput(f"{given}: the name must end in {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise RunFileError(f"{path}: cannot be written: it is a folder")


def journal_of(path: Path) -> Path:
    """Where the traces are until the trace file is made."""
    return path.with_name(f"{path.name}.part")


class _Behind:
    """What Arrow takes for a new stream, and goes behind the batches of one that is there.

    Its schema and its end are left out.
    """

    closed = False

    def __init__(self, put: Callable[[memoryview], None], header: int) -> None:
        self.is_over = False
        self._put = put
        self._header = header

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        skipped = min(self._header, len(view))
        self._header -= skipped
        if not self.is_over:
            self._put(view[skipped:])
        return len(view)

    def flush(self) -> None:
        pass


def _journal(path: Path) -> tuple[pa.Schema | None, list[_Entry], int]:
    """The schema of a journal, its questions, and where the last whole one ends.

    Nothing but the columns' places and the questions' names is read.
    """
    import pyarrow as pa

    with open(path, "rb") as file:
        start = file.read(len(_STREAM))
    if not _STREAM.startswith(start):
        raise _foreign(path)
    if not start:
        return None, [], 0
    entries: list[_Entry] = []
    with pa.memory_map(str(path)) as source:
        try:
            schema = pa.ipc.read_schema(source)
        except (OSError, pa.ArrowException):  # Killed in the first write.
            return None, [], 0
        if not _is_recording(schema):
            raise _foreign(path)
        end = source.tell()
        source.seek(0)
        place = schema.get_field_index("question_id")
        options = pa.ipc.IpcReadOptions(included_fields=[place])
        stream = pa.ipc.open_stream(source, options=options)
        while True:
            try:
                batch = stream.read_next_batch()
            except (StopIteration, OSError, pa.ArrowException):
                # The end, or what was being written. Were it damage, questions would be lacking.
                return schema, entries, end
            start, end = end, source.tell()
            question = batch.column(0)[0].as_py()
            if entries and entries[-1].question == question:
                last = entries.pop()
                entries.append(_Entry(question, last.start, end, last.batches + 1))
            else:
                entries.append(_Entry(question, start, end, 1))


def _sealed(path: Path) -> tuple[pa.Schema | None, list[str]]:
    """The schema of a recording's trace file, and its questions."""
    if not path.exists():
        return None, []
    with _opened(path, ["question_id"]) as (schema, groups):
        if not _is_recording(schema):
            raise _foreign(path)
        return schema, [rows["question_id"][0].as_py() for rows in groups if rows.num_rows]


@contextlib.contextmanager
def _opened(
    path: Path, columns: list[str] | None = None
) -> Iterator[tuple[pa.Schema, Iterator[pa.Table]]]:
    """A trace file: its schema, and its row groups or record batches."""
    import pyarrow as pa

    with open(path, "rb") as file:
        start = file.read(6)
    if start.startswith(b"PAR1"):
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as parquet:
            groups = range(parquet.num_row_groups)
            yield parquet.schema_arrow, (parquet.read_row_group(g, columns) for g in groups)
    elif start == b"ARROW1":
        with pa.OSFile(str(path)) as source:
            schema = pa.ipc.open_file(source).schema
            fields = [schema.get_field_index(name) for name in columns or schema.names]
            options = pa.ipc.IpcReadOptions(included_fields=fields)
            arrow = pa.ipc.open_file(source, options=options)
            batches = map(arrow.get_batch, range(arrow.num_record_batches))
            yield schema, (pa.Table.from_batches([batch]) for batch in batches)
    else:
        raise _foreign(path)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except DeepConfError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise RunFileError(f"{path}: cannot be read: {error}: {_ADVICE}") from error


def _is_recording(schema: pa.Schema) -> bool:
    try:
        said = [json.loads((schema.metadata or {})[key]) for key in (_RUN.encode(), b"policy")]
    except (KeyError, ValueError):  # Others say "run" too, and mean something else.
        return False
    return all(isinstance(one, dict) for one in said) and "question_id" in schema.names


def _foreign(path: Path) -> RunFileError:
    return RunFileError(f"{path}: not a recording, and left as it is: choose another --record")


def _some(questions: Sequence[str]) -> str:
    """The first of them, how many there are, and a verb."""
    names = ", ".join(map(repr, questions[:3]))
    if len(questions) == 1:
        return f"question {names} is"
    more = f" and {len(questions) - 3} more" if len(questions) > 3 else ""
    return f"questions {names}{more} are"
