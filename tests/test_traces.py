"""Trace files: written whole or not at all, read in bounded batches, refused where wrong."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepconf
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY
from deepconf.errors import DeepConfWarning, InvalidInput, InvalidType, TraceFileError
from deepconf.traces import FORMAT, TraceReader, TraceWriter, read_traces, schema

SETTINGS: dict[str, Any] = {
    "model": "tiny",
    "k": 20,
    "entries": "topk",
    "window": 2048,
    "seed": None,
    "policy": deepconf.Policy.low().as_dict(),
    "versions": {"deepconf": "0.1.0"},
}
STATUSES = ["finished", "length", "stopped", "aborted", "failed"]


def rows(lengths: list[int], question: str = "q", start: int = 0) -> pa.Table:
    """Traces of these lengths; trace i answers i % 3, and its confidences begin with i."""
    count = len(lengths)
    confidence = [
        np.arange(start + at, start + at + n, dtype=np.float32) for at, n in enumerate(lengths)
    ]
    columns = {
        "question_id": [question] * count,
        "trace": range(start, start + count),
        "answer": [str(at % 3) if at % 4 else None for at in range(count)],
        "status": [STATUSES[at % 5] for at in range(count)],
        "num_tokens": lengths,
        "confidence": confidence,
        "text": [f"so {at}" for at in range(count)],
        "correct": [None if at % 3 == 2 else at % 3 == 0 for at in range(count)],
        "seed": range(count),
        "stop_token": [None] * count,
        "voted": [True] * count,
        "error": [None] * count,
        "gold": ["0"] * count,
        "finish_order": range(count),
    }
    return pa.table({name: pa.array(v, schema().field(name).type) for name, v in columns.items()})


def write(path: Path, *tables: pa.Table, settings: dict[str, Any] | None = None) -> Path:
    with TraceWriter(path, schema=schema(), settings=settings or {}) as writer:
        for table in tables:
            writer.write(table)
    return path


def table_of(reader: TraceReader) -> pa.Table:
    return pa.Table.from_batches(list(reader), schema=reader.schema)


def raw(path: Path, table: pa.Table) -> Path:
    """A file that the writer would not write."""
    pq.write_table(table, path)
    return path


def replaced(table: pa.Table, name: str, column: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


# ---- what is written is what is read -------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
def test_what_is_written_is_what_is_read(tmp_path: Path, suffix: str) -> None:
    first, second = rows([3, 0, 5, 2, 4]), rows([1, 7], "r")
    path = write(tmp_path / f"traces{suffix}", first, second, settings=SETTINGS)
    reader = read_traces(path)
    assert reader.schema.equals(schema())
    assert reader.settings == SETTINGS
    assert reader.schema.metadata[b"k"] == b"20"
    assert (reader.num_rows, reader.differing, reader.paths) == (7, {}, [path])
    assert table_of(reader).equals(pa.concat_tables([first, second]).cast(schema()))
    assert table_of(reader).num_rows == 7  # It may be iterated again.


def test_a_result_is_a_trace_table() -> None:
    from deepconf.deepthink import DeepThink
    from recorded_engine import RecordedEngine, recorded

    engine = RecordedEngine([recorded(9.0, "4", tokens=12), recorded(8.0, "5", tokens=9)])
    policy = deepconf.Policy.offline(budget=2, window=4, tail=4, top_logprobs=5, min_ballots=1)
    result = DeepThink(engine, policy).run("2+2=?")
    engine.close()
    reader = read_traces(result.to_arrow("q", [True, False]))
    table = table_of(reader)
    assert table["num_tokens"].to_pylist() == [t.num_tokens for t in result.traces]
    assert table["seed"].to_pylist() == [t.seed for t in result.traces]
    assert table["voted"].to_pylist() == [t.voted for t in result.traces]
    assert deepconf.Policy(**reader.settings["policy"]) == policy
    assert (reader.settings["k"], reader.settings["window"]) == (5, 4)


WIDER = {"confidence": pa.large_list(pa.float64()), "text": pa.large_string()}
VARIANTS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "large strings": lambda t: t.cast(
        pa.schema(
            pa.field(f.name, pa.large_string() if pa.types.is_string(f.type) else f.type)
            for f in t.schema
        )
    ),
    "string views": lambda t: replaced(t, "answer", t["answer"].cast(pa.string_view())),
    "dictionaries": lambda t: replaced(
        replaced(t, "status", t["status"].dictionary_encode()),
        "answer",
        t["answer"].cast(pa.large_string()).dictionary_encode(),
    ),
    "dictionaries of integers": lambda t: replaced(
        t, "num_tokens", t["num_tokens"].dictionary_encode()
    ),
    "wide integers": lambda t: replaced(
        replaced(t, "trace", t["trace"].cast(pa.uint64())),
        "num_tokens",
        t["num_tokens"].cast(pa.int64()),
    ),
    "narrow integers": lambda t: replaced(t, "trace", t["trace"].cast(pa.int8())),
    "large lists of doubles": lambda t: replaced(
        t, "confidence", t["confidence"].cast(pa.large_list(pa.float64()))
    ),
    "lists of half floats": lambda t: replaced(
        t, "confidence", t["confidence"].cast(pa.list_(pa.float16()))
    ),
    "a piece of a larger table": lambda t: (
        pa.concat_tables(
            [
                rows([9, 9, 9]),
                t,
                rows([8]),
            ]
        )
        .combine_chunks()
        .cast(pa.schema([(f.name, WIDER.get(f.name, f.type)) for f in t.schema]))
        .slice(3, t.num_rows)
    ),
    "another order": lambda t: t.select(t.schema.names[::-1]),
    "nulls without a type": lambda t: replaced(t, "error", pa.nulls(t.num_rows)),
    "only what must be there": lambda t: t.select(t.schema.names[:6]),
    "chunks": lambda t: pa.concat_tables([t[:2], t[2:2], t[2:]]),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("stored", ["memory", "parquet", "ipc"])
def test_types_that_mean_the_same_are_read_alike(name: str, stored: str, tmp_path: Path) -> None:
    plain = rows([3, 0, 5, 2, 4])
    table = VARIANTS[name](plain)
    source: Any = table
    if stored == "parquet":
        source = raw(tmp_path / "t.bin", table)
    elif stored == "ipc":
        source = tmp_path / "t.bin"
        with pa.ipc.new_file(source, table.schema) as writer:
            writer.write_table(table)
    reader = read_traces(source)
    names = [name for name in schema().names if name in table.schema.names]
    expected = plain.select(names).cast(pa.schema([schema().field(name) for name in names]))
    assert table_of(reader).equals(expected)


def test_lists_of_one_size_are_lists() -> None:
    plain = rows([4, 4, 4])
    fixed = pa.FixedSizeListArray.from_arrays(plain["confidence"].combine_chunks().flatten(), 4)
    assert table_of(read_traces(replaced(plain, "confidence", fixed))).equals(plain.cast(schema()))


@pytest.mark.parametrize("library", ["polars", "pandas"])
def test_data_frames_are_tables_of_traces(library: str) -> None:
    plain = rows([3, 0, 5])
    frame: Any = pl.from_arrow(plain) if library == "polars" else plain.to_pandas()
    assert library == "polars" or isinstance(frame, pd.DataFrame)
    if library == "pandas":
        frame = frame.drop(columns=["stop_token", "error"])
    reader = read_traces(frame)
    for _ in range(2):
        table = table_of(reader)
        assert table["confidence"].to_pylist() == plain["confidence"].to_pylist()
        assert table["answer"].to_pylist() == plain["answer"].to_pylist()


def test_a_stream_can_be_read_once() -> None:
    plain = rows([3, 0, 5])
    reader = read_traces(plain.to_reader())
    assert reader.num_rows is None
    assert table_of(reader).equals(plain.cast(schema()))
    with pytest.raises(InvalidInput, match="can be read once"):
        list(reader)


def test_columns_nobody_knows_are_kept(tmp_path: Path) -> None:
    table = rows([3, 2]).append_column("level.of", pa.array([{"a": 1}, {"a": 2}]))
    table = table.append_column("source", pa.array(["x", "y"]).dictionary_encode())
    path = raw(tmp_path / "t.parquet", table)
    read = table_of(read_traces(path))
    assert read.schema.names[-2:] == ["level.of", "source"]
    assert read["level.of"].to_pylist() == [{"a": 1}, {"a": 2}]
    assert pa.types.is_dictionary(read.schema.field("source").type)
    assert read["source"].to_pylist() == ["x", "y"]


def test_only_the_columns_asked_for_are_read_and_demanded(tmp_path: Path) -> None:
    path = raw(tmp_path / "t.parquet", rows([3, 2]).select(["num_tokens", "answer", "trace"]))
    reader = read_traces(path, columns=["answer", "gold"])
    assert table_of(reader).to_pydict() == {"answer": [None, "1"], "gold": [None, None]}
    assert reader.available == ("num_tokens", "answer", "trace")
    assert table_of(reader.select(["trace"])).to_pydict() == {"trace": [0, 1]}
    with pytest.raises(TraceFileError, match="has no column status"):
        reader.select(["status"])
    with pytest.raises(InvalidInput, match="names 'anwser', which is not there"):
        reader.select(["anwser"])
    for wrong in ("answer", [], ["trace", "trace"], [1]):
        with pytest.raises(InvalidInput, match="columns="):
            reader.select(wrong)  # type: ignore[arg-type]


# ---- batches are bounded -------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("batch_tokens", [1, 7, 100, 10_000])
def test_a_batch_holds_so_many_tokens_or_one_trace(
    tmp_path: Path, suffix: str, batch_tokens: int
) -> None:
    # Long traces stand together, among many short ones: the mean says little.
    lengths = [1] * 200 + [50] * 8 + [0] * 90 + [120] + [2] * 100
    path = write(tmp_path / f"t{suffix}", rows(lengths))
    batches = list(read_traces(path, batch_tokens=batch_tokens))
    for batch in batches:
        assert sum(batch["num_tokens"].to_pylist()) <= batch_tokens or batch.num_rows == 1
    assert [n for batch in batches for n in batch["num_tokens"].to_pylist()] == lengths
    if batch_tokens == 10_000:
        assert len(batches) == 1


def test_a_row_group_is_not_decoded_at_once(tmp_path: Path) -> None:
    count, length = 4_000, 4_000  # 64 MB of confidences, in one row group.
    values = np.random.default_rng(1).normal(10, 2, count * length).astype(np.float32)
    offsets = np.arange(0, len(values) + 1, length, dtype=np.int32)
    table = replaced(rows([0] * count), "confidence", pa.ListArray.from_arrays(offsets, values))
    table = replaced(table, "num_tokens", pa.array([length] * count, pa.int32()))
    path = write(tmp_path / "t.parquet", table)
    assert pq.read_metadata(path).num_row_groups == 1
    expected = float(values.astype(np.float64).sum())
    del table, values
    gc.collect()
    before = pa.total_allocated_bytes()
    most, total = 0, 0.0
    for batch in read_traces(path, batch_tokens=500_000):
        most = max(most, pa.total_allocated_bytes() - before)
        total += float(batch["confidence"].flatten().to_numpy().astype(np.float64).sum())
    assert total == pytest.approx(expected, rel=1e-12)
    assert most < 16e6


def test_long_texts_are_not_decoded_at_once(tmp_path: Path) -> None:
    count = 512
    random = np.random.default_rng(2)
    texts = ["".join(map(chr, random.integers(32, 127, 60_000))) for _ in range(count)]
    table = replaced(rows([0] * count), "text", pa.array(texts))
    path = write(tmp_path / "t.parquet", table)
    del table
    gc.collect()
    before = pa.total_allocated_bytes()
    most, found = 0, []
    for batch in read_traces(path, batch_tokens=200_000):
        most = max(most, pa.total_allocated_bytes() - before)
        found += batch["text"].to_pylist()
    assert found == texts  # 31 MB.
    assert most < 12e6


def test_parts_can_be_read_in_any_order(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", rows([300, 400]), rows([500], "r"), rows([600], "s"))
    reader = read_traces(path, columns=["num_tokens", "confidence"], batch_tokens=1_300)
    parts = list(reader.parts())
    assert len(parts) == 2
    found = {at: [n for b in parts[at] for n in b[0].to_pylist()] for at in (1, 0)}
    assert found == {0: [300, 400, 500], 1: [600]}


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_many_small_row_groups_are_read_together(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"t{suffix}", *(rows([3, 4], f"q{at}") for at in range(700)))
    reader = read_traces(path, batch_tokens=1_000)
    assert len(list(reader.parts())) < 300
    assert table_of(reader)["question_id"].to_pylist()[::2] == [f"q{at}" for at in range(700)]
    wrong = [*(rows([3, 4], f"q{at}") for at in range(400)), rows([3, 4])]
    wrong[-1] = replaced(wrong[-1], "num_tokens", pa.array([3, 5], pa.int32()))
    path = write(tmp_path / f"u{suffix}", *wrong)
    with pytest.raises(TraceFileError, match="row 801: num_tokens is 5, and there are 4 conf"):
        list(read_traces(path, batch_tokens=1_000))


# ---- several files -------------------------------------------------------------------------------


def test_several_files_are_one(tmp_path: Path) -> None:
    a = write(tmp_path / "a.parquet", rows([3, 1], "a"), settings={**SETTINGS, "window": 8})
    b = write(tmp_path / "b.arrow", rows([2], "b"), settings={**SETTINGS, "window": 16})
    (tmp_path / "notes.txt").write_text("not a trace file")
    (tmp_path / ".b.arrow.tmp").write_text("hidden")
    for source in (tmp_path, [a, str(b)], str(tmp_path / "[ab].*"), [tmp_path / "*.p*", b]):
        reader = read_traces(source)
        assert table_of(reader)["question_id"].to_pylist() == ["a", "a", "b"]
        assert reader.num_rows == 3
        assert reader.settings == {k: v for k, v in SETTINGS.items() if k != "window"}
        assert reader.differing == {"window": [8, 16]}


def test_a_name_with_glob_characters_is_a_name(tmp_path: Path) -> None:
    path = write(tmp_path / "t[1].parquet", rows([3]))
    assert read_traces(path).num_rows == 1


@pytest.mark.parametrize(("name", "values"), [("k", (20, 5)), ("entries", ("topk", "returned"))])
def test_files_of_other_confidences_do_not_go_together(
    tmp_path: Path, name: str, values: tuple[Any, Any]
) -> None:
    a = write(tmp_path / "a.parquet", rows([3]), settings={name: values[0]})
    b = write(tmp_path / "b.parquet", rows([3]), settings={name: values[1]})
    with pytest.raises(TraceFileError, match=f"b.parquet: has {name}=.*a.parquet has {name}="):
        read_traces([a, b])
    read_traces([a, write(tmp_path / "c.parquet", rows([3]))])  # One that does not say.


def test_columns_that_some_files_have_are_null_in_others(tmp_path: Path) -> None:
    a = raw(tmp_path / "a.parquet", rows([3]).select(schema().names[:6]))
    b = raw(tmp_path / "b.parquet", rows([3]).append_column("level", pa.array([2])))
    c = raw(tmp_path / "c.parquet", rows([3]).append_column("level", pa.array(["2"])))
    table = table_of(read_traces([a, b]))
    assert table["gold"].to_pylist() == [None, "0"]
    assert table["level"].to_pylist() == [None, 2]
    with pytest.raises(
        TraceFileError, match=r"c.parquet: column level is string, and int64 in .*b"
    ):
        read_traces([a, b, c])


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", rows([3]))
    with pytest.raises(InvalidInput, match="is named twice"):
        read_traces([path, tmp_path / ".." / tmp_path.name / "a.parquet"])
    with pytest.raises(InvalidInput, match="is named twice"):
        read_traces([tmp_path, path])


# ---- what is wrong with a file -------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TraceFileError, match=r"no.parquet: there is no such file"):
        read_traces(tmp_path / "no.parquet")
    with pytest.raises(OSError, match=r"\*.parquet: matches no file"):
        read_traces(tmp_path / "*.parquet")
    with pytest.raises(TraceFileError, match="a folder without"):
        read_traces(tmp_path)
    with pytest.raises(TraceFileError, match="is no file"):
        read_traces("/dev/zero")


@pytest.mark.parametrize("source", [None, 3, b"x", [3], {"a": 1}, iter([])])
def test_what_is_no_source_is_refused(source: Any) -> None:
    with pytest.raises(InvalidType, match="must be a path, a glob, a folder"):
        read_traces(source)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(InvalidInput, match="source is an empty list"):
        read_traces([])
    with pytest.raises(InvalidType, match="no table of traces"):
        read_traces(pa.array([1, 2]))
    for path in ("", "a\0b"):
        with pytest.raises(InvalidInput, match="is no path"):
            read_traces(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is an empty file"),
        (b"{}", "is neither Parquet nor Arrow IPC"),
        (b"question_id,trace\n" * 10, "is neither Parquet nor Arrow IPC"),
        (b"PAR1", "is a Parquet file, but damaged or cut off"),
        (b"PAR1" + bytes(100) + b"PAR1", "is a Parquet file, but damaged or cut off"),
        (b"ARROW1\0\0", "is an Arrow IPC file, but damaged or cut off"),
        (b"\xff\xff\xff\xff\x10\0\0\0", "is an Arrow IPC stream, but damaged or cut off"),
    ],
)
def test_what_is_no_trace_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(TraceFileError, match=f"t.parquet: {message}"):
        read_traces(path)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_file_that_was_cut_off_is_never_read_in_part(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"t{suffix}", rows([300, 200]), rows([100], "r"))
    whole = path.read_bytes()
    for size in {*range(0, len(whole), 997), *range(len(whole) - 12, len(whole))}:
        path.write_bytes(whole[:size])
        with pytest.raises(TraceFileError, match=f"t{suffix}: "):
            list(read_traces(path))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_damaged_file_is_an_error_or_reads_as_traces(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"t{suffix}", rows([300, 200]), rows([100], "r"))
    whole = path.read_bytes()
    random = np.random.default_rng(3)
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for at in random.integers(0, len(whole), 8):
            damaged[at] ^= int(random.integers(1, 256))
        path.write_bytes(damaged)
        try:
            for batch in read_traces(path):
                batch.validate(full=True)
        except deepconf.DeepConfError:
            refused += 1
    assert refused > 20


def test_no_rows_are_no_traces(tmp_path: Path) -> None:
    path = raw(tmp_path / "t.parquet", rows([]))
    for source in (path, rows([])):
        with pytest.raises(deepconf.DeepConfError, match="has no rows"):
            read_traces(source)
    with pytest.raises(InvalidInput, match="has no rows"):
        list(read_traces(rows([]).to_reader()))
    other = write(tmp_path / "u.parquet", rows([3]))
    assert len(list(read_traces([path, other]))) == 1


@pytest.mark.parametrize("name", schema().names[:6])
def test_a_missing_column_is_named(tmp_path: Path, name: str) -> None:
    table = rows([3]).rename_columns([n + "s" if n == name else n for n in schema().names])
    path = raw(tmp_path / "t.parquet", table)
    with pytest.raises(TraceFileError, match=f"has no column {name}; .*Its columns: .*{name}s"):
        read_traces(path)
    with pytest.raises(InvalidInput, match=f"traces: has no column {name}; "):
        read_traces(table)


def test_a_column_that_is_there_twice_is_refused() -> None:
    table = rows([3]).append_column("answer", pa.array(["7"]))
    with pytest.raises(InvalidInput, match="has 2 columns named answer"):
        read_traces(table)


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("question_id", pa.array([1]), "is int64: must be a string"),
        ("trace", pa.array([1.0]), r"is double: must be an integer \(int32\)"),
        ("trace", pa.array(["1"]), r"is string: must be an integer \(int32\)"),
        ("answer", pa.array([4]), "is int64: must be a string"),
        ("status", pa.nulls(1), "is null: must be a string"),
        ("confidence", pa.array([1.0]), "is double: must be a list of float32"),
        ("confidence", pa.array([[1]]), "must be a list of float32"),
        ("confidence", pa.array([["1"]]), "must be a list of float32"),
        ("confidence", pa.array([b"1"]), "is binary: must be a list of float32"),
        ("correct", pa.array([1]), "is int64: must be a boolean"),
        ("seed", pa.array([True]), r"is bool: must be an integer \(int64\)"),
    ],
)
def test_a_column_of_another_type_is_named(
    name: str, column: Any, message: str, tmp_path: Path
) -> None:
    table = replaced(rows([3]), name, column)
    path = raw(tmp_path / "t.parquet", table)
    with pytest.raises(TraceFileError, match=f"t.parquet: column {name} .*{message[3:]}"):
        read_traces(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("question_id", None, "row 3: question_id is null"),
        ("status", "done", "row 3: status is 'done': must be finished, length, stopped"),
        ("status", "{x}", "row 3: status is '{x}': must be"),
        ("trace", -1, "row 3: trace is -1: must be at least 0"),
        ("trace", 2**31, "column trace, rows 0 to 3: cannot be int32"),
        ("num_tokens", 3, "row 3: num_tokens is 3, and there are 4 confidences"),
        ("num_tokens", None, "row 3: num_tokens is null"),
        ("confidence", None, "row 3: confidence is null"),
        ("confidence", [1.0, 2.0, None, 3.0], r"row 3: confidence\[2\] is null"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, name: str, value: Any, message: str) -> None:
    table = rows([3, 2, 0, 4])
    kind = pa.int64() if name == "trace" else table.schema.field(name).type
    column = table[name].to_pylist()
    table = replaced(table, name, pa.array([*column[:3], value], kind))
    path = tmp_path / "t.parquet"
    pq.write_table(table, path, row_group_size=2)
    with pytest.raises(TraceFileError, match=f"t.parquet: {message}"):
        list(read_traces(path))


@pytest.mark.parametrize("name", ["question_id", "status", "trace", "num_tokens"])
def test_a_null_among_the_values_of_a_dictionary_is_a_null(name: str) -> None:
    table = rows([3, 2])
    kind = table.schema.field(name).type
    values = pa.array([table[name][0].as_py(), None], kind)
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), values)
    with pytest.raises(InvalidInput, match=f"row 1: {name} is null"):
        list(read_traces(replaced(table, name, column)))


def test_a_dictionary_of_lists_is_named() -> None:
    table = rows([1])
    column = pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), pa.array([[1.0]]))
    with pytest.raises(InvalidInput, match=r"confidence is dictionary<.*: must be a list of f"):
        read_traces(replaced(table, "confidence", column))


def test_only_a_trace_that_was_cut_off_may_have_tokens_without_confidence(tmp_path: Path) -> None:
    lengths = [3, 3, 3, 3, 3]
    table = rows(lengths)
    path = tmp_path / "t.parquet"
    counts = pa.array([3, 3, 7, 7, 7], pa.int32())  # stopped, aborted, failed
    pq.write_table(replaced(table, "num_tokens", counts), path)
    assert table_of(read_traces(path))["num_tokens"].to_pylist() == [3, 3, 7, 7, 7]
    for at, status in enumerate(("finished", "length")):
        counts = pa.array([3 + (i == at) for i in range(5)], pa.int32())
        pq.write_table(replaced(table, "num_tokens", counts), path)
        with pytest.raises(TraceFileError, match=f"row {at}: num_tokens is 4, and there are 3"):
            list(read_traces(path))
        assert status == STATUSES[at]


def test_a_recording_in_progress_is_read_by_the_name_it_will_have(tmp_path: Path) -> None:
    path, part = tmp_path / "t.parquet", tmp_path / "t.parquet.part"
    table = rows([3, 2])
    with pa.ipc.new_stream(part, table.schema) as writer:
        writer.write_table(table)
    reader = read_traces(path)
    assert reader.paths == [part]
    assert table_of(reader).num_rows == 2
    write(path, rows([1]))
    with pytest.warns(DeepConfWarning, match=r"is read without t\.parquet\.part beside it"):
        assert read_traces(path).paths == [path]


def test_confidences_that_are_not_finite_are_left_to_the_scorer() -> None:
    table = replaced(rows([3]), "confidence", pa.array([[1.0, float("nan"), float("inf")]]))
    assert next(iter(read_traces(table)))["confidence"].to_pylist()[0][2] == float("inf")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "deepconf-traces/2"}, "has the format deepconf-traces/2: this release reads"),
        ({"k": "many"}, "says k='many' in its metadata: must be a whole number"),
        ({"k": "true"}, "must be a whole number"),
        ({"policy": "[]"}, "must be an object"),
    ],
)
def test_settings_that_are_none_are_refused(
    tmp_path: Path, metadata: dict[str, str], message: str
) -> None:
    path = raw(tmp_path / "t.parquet", rows([3]).replace_schema_metadata(metadata))
    with pytest.raises(TraceFileError, match=message):
        read_traces(path)


def test_metadata_of_others_is_no_setting(tmp_path: Path) -> None:
    metadata = {"format": "pandas", "k": "5", "pandas": "{}", b"\xff": b"\xfe"}
    path = raw(tmp_path / "t.parquet", rows([3]).replace_schema_metadata(metadata))
    assert read_traces(path).settings == {"k": 5}


@pytest.mark.parametrize("batch_tokens", [0, -1, 2.5, True, None])
def test_a_batch_holds_at_least_a_token(batch_tokens: Any) -> None:
    with pytest.raises(InvalidInput, match="batch_tokens="):
        read_traces(rows([3]), batch_tokens=batch_tokens)


# ---- a recording in progress ---------------------------------------------------------------------


def journal(path: Path, *tables: pa.Table) -> list[int]:
    """Writes a stream; where it could have been cut between two batches."""
    ends = []
    with path.open("wb") as file, pa.ipc.new_stream(file, schema()) as writer:
        for table in tables:
            writer.write_table(table.cast(schema()))
            ends.append(file.tell())
    return ends


def test_a_torn_tail_of_a_recording_is_ignored_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet.part"
    first, second = journal(path, rows([3, 2]), rows([4], "r"))
    whole = path.read_bytes()
    assert table_of(read_traces(path)).num_rows == 3
    for size in range(first, len(whole)):
        path.write_bytes(whole[:size])
        assert table_of(read_traces(path)).num_rows == (3 if size >= second else 2), size


def test_a_recording_that_is_damaged_within_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet.part"
    first, *_ = journal(path, rows([3, 2]), rows([4], "r"), rows([5], "s"))
    damaged = bytearray(path.read_bytes())
    damaged[first + 8 : first + 40] = b"\x01" * 32
    path.write_bytes(damaged)
    with pytest.raises(TraceFileError, match="damaged or cut off"):
        list(read_traces(path))


def test_a_stream_that_is_no_recording_must_be_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.arrows"
    first, _ = journal(path, rows([3, 2]), rows([4], "r"))
    assert table_of(read_traces(path)).num_rows == 3
    path.write_bytes(path.read_bytes()[: first + 60])
    with pytest.raises(TraceFileError, match="damaged or cut off"):
        list(read_traces(path))


# ---- writing -------------------------------------------------------------------------------------


def test_a_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_text("before")
    with TraceWriter(path, schema=schema()) as writer:
        writer.write(rows([3, 2]))
        writer.write(rows([4], "r").to_batches()[0])
        writer.write(rows([]))
        assert path.read_text() == "before"
        assert writer.num_rows == 3
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [2, 1]
    assert metadata.row_group(0).column(5).compression == "ZSTD"
    assert metadata.metadata[b"format"] == FORMAT.encode()
    writer.close()
    with pytest.raises(InvalidInput, match="is closed"):
        writer.write(rows([3]))


def test_nothing_is_left_after_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"

    def fail() -> None:
        with TraceWriter(path, schema=schema()) as writer:
            writer.write(rows([3, 2]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_more_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from deepconf.errors import TraceFileError
from deepconf.traces import TraceWriter, read_traces
reader = read_traces(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), -1))
try:
    with TraceWriter(sys.argv[2], schema=reader.schema) as writer:
        for batch in reader:
            writer.write(batch)
except TraceFileError as error:
    print(error)
"""
    source = write(tmp_path / "t.parquet", rows([100_000] * 4))
    target = tmp_path / "u.parquet"
    whole = source.stat().st_size
    for size in (0, 2, whole // 2, whole - 10):
        run = subprocess.run(
            [sys.executable, "-c", code, source, target, str(size)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.stdout.startswith(f"{target}: cannot be written: "), run
        assert "File too large" in run.stdout
        assert list(tmp_path.iterdir()) == [source]


def test_a_kill_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from deepconf.traces import TraceWriter, read_traces
reader = read_traces(sys.argv[1])
with TraceWriter(sys.argv[2], schema=reader.schema) as writer:
    for batch in reader:
        writer.write(batch)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    source = write(tmp_path / "t.parquet", rows([3, 2]))
    target = tmp_path / "u.parquet"
    run = subprocess.run([sys.executable, "-c", code, source, target], timeout=120)
    assert run.returncode == -9
    assert not target.exists()
    assert read_traces(tmp_path).paths == [source]  # What it left is hidden.


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    def refused(path: Path, message: str, **more: Any) -> None:
        with pytest.raises(TraceFileError, match=message):
            TraceWriter(path, schema=schema(), **more)

    refused(tmp_path / "no" / "t.parquet", "there is no folder .*no")
    (tmp_path / "d.parquet").mkdir()
    refused(tmp_path / "d.parquet", "it is a folder")
    there = write(tmp_path / "t.parquet", rows([3]))
    refused(there, "is there already", overwrite=False)
    with pytest.raises(InvalidInput, match=r"must end in \.parquet, \.arrow or \.feather"):
        TraceWriter(tmp_path / "t.csv", schema=schema())
    refused(tmp_path / f"{'t' * 300}.parquet", "cannot be written: .*too long")
    refused(Path("~nobody-has-this-home/t.parquet"), "cannot be written: .*home")
    wrong = {None: InvalidType, b"t.parquet": InvalidType, "\0.parquet": InvalidInput}
    for name, kind in wrong.items():
        with pytest.raises(kind, match="path"):
            TraceWriter(name, schema=schema())  # type: ignore[arg-type]
        with pytest.raises(kind, match="path"):
            deepconf.score_traces(there, name)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="must be JSON values"):
        TraceWriter(tmp_path / "u.parquet", schema=schema(), settings={"policy": {"x": {1}}})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.parquet", "t.parquet"]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    writer = TraceWriter(path, schema=schema(), overwrite=False)
    writer.write(rows([3]))
    path.write_text("another's")
    with pytest.raises(TraceFileError, match="is there already"):
        writer.close()
    assert [p.read_text() for p in tmp_path.iterdir()] == ["another's"]


def test_rows_must_fit_the_schema(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t.parquet", schema=schema()) as writer:
        with pytest.raises(InvalidInput, match="rows have the columns trace: must be question_id"):
            writer.write(rows([3]).select(["trace"]))
        with pytest.raises(InvalidInput, match="rows do not fit the schema"):
            writer.write(replaced(rows([3]), "trace", pa.array(["x"])))
        with pytest.raises(InvalidInput, match="rows do not fit the schema"):
            writer.write(replaced(rows([3]), "status", pa.array([None], pa.string())))
        writer.write(rows([3]).select(schema().names[::-1]))
    assert read_traces(tmp_path / "t.parquet").num_rows == 1


def test_a_dataset_is_read_a_few_rows_at_a_time(tmp_path: Path) -> None:
    import pyarrow.dataset as ds

    whole = deepconf.read_traces(TINY / "calibration.parquet")
    dataset = ds.dataset([TINY / "calibration.parquet"], format="parquet")
    reader = deepconf.read_traces(dataset)
    batches = list(reader)
    assert reader.num_rows == whole.num_rows == sum(batch.num_rows for batch in batches)
    assert pa.Table.from_batches(batches) == pa.Table.from_batches(list(whole))
    assert max(batch.num_rows for batch in batches) <= 256


def test_categories_that_differ_from_batch_to_batch_are_written_to_arrow(tmp_path: Path) -> None:
    batches = [
        pa.record_batch({"a": pa.array(words).dictionary_encode()}) for words in (["x"], ["y", "z"])
    ]
    for name in ("t.arrow", "t.parquet"):
        with TraceWriter(tmp_path / name, schema=batches[0].schema) as out:
            for batch in batches:
                out.write(batch)
    assert pa.ipc.open_file(tmp_path / "t.arrow").read_all()["a"].to_pylist() == ["x", "y", "z"]
    assert pq.read_table(tmp_path / "t.parquet")["a"].to_pylist() == ["x", "y", "z"]
