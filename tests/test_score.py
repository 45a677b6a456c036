"""`score`: every form of input, every edge, every refusal."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import deepconf
import numpy as np
import oracle
import polars as pl
import pyarrow as pa
import pytest
from deepconf.errors import InvalidInput, InvalidType
from hypothesis import given, settings
from hypothesis import strategies as st

W, T = 4, 3
RNG = np.random.default_rng(7)
RAGGED = [RNG.uniform(0.5, 20.0, n).astype(np.float32) for n in (9, 0, 1, 3, 4, 5, 40)]
TABLE = RNG.uniform(0.5, 20.0, (5, 11)).astype(np.float32)
LISTS = [trace.tolist() for trace in RAGGED]


def scored(traces: Any, **settings: Any) -> deepconf.Scores:
    return deepconf.score(traces, **{"window": W, "tail": T, "bottom": 0.25, **settings})


def check(found: deepconf.Scores, traces: Any) -> None:
    oracle.assert_scores(found, traces, window=W, tail=T, bottom=0.25)


class Capsule:
    """An Arrow array by its PyCapsule alone."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        return self.array.__arrow_c_array__(requested_schema)


def strided(trace: Any) -> Any:
    return np.repeat(trace, 2)[::2]


def frozen(trace: Any) -> Any:
    trace = trace.copy()
    trace.setflags(write=False)
    return trace


OFFSETS = np.cumsum([0, *map(len, RAGGED)])
PADDED = [[9.0], *LISTS, [8.0, 7.0]]
FORMS: dict[str, Any] = {
    "arrays": RAGGED,
    "lists": LISTS,
    "an iterable": dict(enumerate(RAGGED)).values(),
    "an object array": np.array(RAGGED, dtype=object),
    "float64 and float32": [t.astype(np.float64) if i % 2 else t for i, t in enumerate(RAGGED)],
    "reversed views": [t[::-1].copy()[::-1] for t in RAGGED],
    "strided": [strided(t) for t in RAGGED],
    "read-only": [frozen(t) for t in RAGGED],
    "big-endian": [t.astype(">f4") for t in RAGGED],
    "offsets": (np.concatenate(RAGGED), OFFSETS),
    "offsets in int32": (np.concatenate(RAGGED), OFFSETS.astype(np.int32)),
    "offsets in uint64": (np.concatenate(RAGGED), OFFSETS.astype(np.uint64)),
    "offsets of a part": (np.concatenate([[99.0], *RAGGED, [98.0]]), OFFSETS + 1),
    "List": pa.array(LISTS, pa.list_(pa.float32())),
    "List of float64": pa.array(LISTS, pa.list_(pa.float64())),
    "LargeList": pa.array(LISTS, pa.large_list(pa.float32())),
    "sliced": pa.array(PADDED, pa.list_(pa.float32())).slice(1, len(LISTS)),
    "chunked": pa.chunked_array([LISTS[:2], [], LISTS[2:]], pa.list_(pa.float32())),
    "chunked and sliced": pa.chunked_array([PADDED[:3], PADDED[3:]])[1:-1],
    "a null for the empty trace": pa.array([t or None for t in LISTS], pa.list_(pa.float32())),
    "polars": pl.Series(LISTS, dtype=pl.List(pl.Float32)),
    "polars with a null": pl.Series([t or None for t in LISTS], dtype=pl.List(pl.Float64)),
    "a capsule": Capsule(pa.array(LISTS, pa.list_(pa.float32()))),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_ragged_traces_scores_alike(form: str) -> None:
    found = scored(FORMS[form])
    check(found, RAGGED)
    assert oracle.fields(found) == oracle.fields(scored(RAGGED))


TABLES: dict[str, Any] = {
    "C order": TABLE,
    "Fortran order": np.asfortranarray(TABLE),
    "float64": TABLE.astype(np.float64),
    "strided": np.repeat(TABLE, 2, axis=1)[:, ::2],
    "read-only": frozen(TABLE),
    "rows": list(TABLE),
    "columns": list(np.asfortranarray(TABLE)),
    "FixedSizeList": pa.FixedSizeListArray.from_arrays(pa.array(TABLE.ravel()), 11),
    "FixedSizeList, sliced": pa.FixedSizeListArray.from_arrays(
        pa.array(np.concatenate([TABLE[0], TABLE.ravel()])), 11
    )[1:],
    "polars Array": pl.Series(TABLE, dtype=pl.Array(pl.Float32, 11)),
}


@pytest.mark.parametrize("form", TABLES)
def test_every_form_of_a_table_scores_alike(form: str) -> None:
    found = scored(TABLES[form])
    check(found, TABLE)
    assert oracle.fields(found) == oracle.fields(scored(TABLE))


@pytest.mark.parametrize("form", ["table", "list", "offsets"])
def test_float16_is_taken_at_its_value(form: str) -> None:
    half = TABLE.astype(np.float16)
    given = {
        "table": half,
        "list": list(half),
        "offsets": (half.ravel(), np.arange(0, half.size + 1, 11)),
    }[form]
    check(scored(given), half)


def test_a_null_row_of_a_fixed_size_list_is_a_trace_without_tokens() -> None:
    found = scored(pa.array([[1.0, 3.0], None], pa.list_(pa.float32(), 2)))
    check(found, [[1.0, 3.0], []])


@pytest.mark.parametrize(
    "empty", [[], np.zeros((0, 5)), ([], [0]), pa.array([], pa.list_(pa.float32()))]
)
def test_no_traces_have_no_scores(empty: Any) -> None:
    found = scored(empty)
    assert len(found) == 0
    assert found.mean.shape == found.short.shape == (0,)


@pytest.mark.parametrize("n", [0, 1, W - 1, W, W + 1, 10 * W])
@pytest.mark.parametrize("window", [1, W, 1_000, 2**31])
def test_edges(n: int, window: int) -> None:
    trace = RNG.uniform(0.5, 20.0, n)
    found = deepconf.score([trace], window=window, tail=T)
    oracle.assert_scores(found, [trace], window=window, tail=T)
    assert found.short[0] == (0 < n < window)


@given(
    traces=st.lists(st.lists(st.floats(-100, 100, width=32), max_size=30), max_size=8),
    window=st.integers(1, 12),
    tail=st.integers(1, 12),
    bottom=st.sampled_from([0.01, 0.1, 0.25, 0.5, 1.0]),
)
@settings(deadline=None)
def test_scores_are_the_definitions(
    traces: list[list[float]], window: int, tail: int, bottom: float
) -> None:
    found = deepconf.score(traces, window=window, tail=tail, bottom=bottom)
    for name, expected in oracle.score(traces, window, tail, bottom).items():
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-9, atol=1e-11)


def test_types_of_the_columns() -> None:
    found = scored(RAGGED)
    assert {getattr(found, name).dtype for name in oracle.SCORES} == {np.dtype(np.float64)}
    assert found.num_tokens.dtype == np.dtype(np.int64)
    assert found.short.dtype == np.dtype(np.bool_)


def test_scores_are_a_sequence_of_the_scores_of_each_trace() -> None:
    found = scored(RAGGED)
    assert [one.num_tokens for one in found] == [len(trace) for trace in RAGGED]
    assert found[-1] == list(found)[-1] == scored([RAGGED[-1]])[0]
    assert found[-1].mean == found.mean[-1]
    with pytest.raises(IndexError, match="trace 7 of 7"):
        found[7]


@pytest.mark.parametrize("threads", [1, 2, 3, 8, None])
def test_the_number_of_threads_changes_no_bit(threads: int | None) -> None:
    traces = [RNG.uniform(0, 20, n).astype(np.float32) for n in RNG.integers(0, 300, 200)]
    assert oracle.fields(scored(traces, threads=threads)) == oracle.fields(
        deepconf.score(traces, window=W, tail=T, bottom=0.25, threads=1)
    )


def test_decimals_round_tokens_and_the_lowest_group() -> None:
    found = deepconf.score([[1.0006, 2.0, 2.0016]], window=3, decimals=3)
    tokens = (1.001 + 2.0 + 2.002) / 3
    assert found.lowest_group[0] == 1.668 != round((1.0006 + 2.0 + 2.0016) / 3, 3)
    assert found.mean[0] == pytest.approx(tokens, rel=1e-12)


GOOD = [1.0, 2.0]
LIST_OF = pa.list_(pa.float32())
NOT_FINITE = "confidences holds {} at trace 1, position 1: every value must be finite"
BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ([GOOD, [1.0, np.nan]], {}, InvalidInput, NOT_FINITE.format("NaN")),
    ([GOOD, [1.0, np.inf]], {}, InvalidInput, NOT_FINITE.format("inf")),
    ([GOOD, [1.0, -np.inf]], {}, InvalidInput, NOT_FINITE.format("-inf")),
    (np.array([GOOD, [1.0, np.nan]], "f4"), {}, InvalidInput, NOT_FINITE.format("NaN")),
    (([1.0, 2.0, 3.0, np.nan], [0, 2, 4]), {}, InvalidInput, NOT_FINITE.format("NaN")),
    (pa.array([GOOD, [1.0, np.nan]], LIST_OF), {}, InvalidInput, NOT_FINITE.format("NaN")),
    (pa.array([GOOD, [1.0, None]], LIST_OF), {}, InvalidInput, "null at trace 1, position 1"),
    ([[40_000.0]], {}, InvalidInput, "40000 at trace 0, position 0.*±32768"),
    ([GOOD, [[1.0], [1.0, 2.0]]], {}, InvalidInput, "^trace 1, token confidences: NumPy makes no"),
    (GOOD, {}, InvalidInput, r"trace 0 has shape \[\].*pass \[trace\]"),
    (np.zeros((2, 2, 2)), {}, InvalidInput, r"trace 0 has shape \[2, 2\]"),
    ([GOOD, np.array([1, 2])], {}, InvalidType, "trace 1 has dtype int64"),
    (np.ones((2, 2), int), {}, InvalidType, "traces has dtype int64"),
    ([np.array([1j])], {}, InvalidType, "trace 0 has dtype complex128"),
    ([["a"]], {}, InvalidType, "trace 0 has dtype <U1"),
    (None, {}, InvalidType, "traces is a NoneType: must be a list"),
    (pa.array(["a"]), {}, InvalidType, "Arrow array of Utf8: must be a list of float or double"),
    (pa.array([[1]]), {}, InvalidType, r"Arrow array of List\(Int64\)"),
    ((GOOD, [0, 2, 1]), {}, InvalidInput, r"offsets\[2\] = 1: offsets must not fall"),
    ((GOOD, [0, 3]), {}, InvalidInput, r"offsets\[1\] = 3: there are only 2 values"),
    ((GOOD, [-1, 2]), {}, InvalidInput, r"offsets\[0\] = -1: .* at least 0"),
    ((GOOD, []), {}, InvalidInput, r"offsets=\[\]"),
    ((GOOD, [0.0, 2.0]), {}, InvalidType, "offsets has dtype float64"),
    ((np.ones((2, 2)), [0, 2]), {}, InvalidInput, r"values has shape \[2, 2\]"),
    ((GOOD, [0, 2], 3), {}, InvalidInput, r"traces is a tuple of 3: must be \(values, offsets\)"),
    ([GOOD], {"window": 0}, InvalidInput, "window=0: must be between 1 and 2147483648"),
    ([GOOD], {"window": -1}, InvalidInput, "window=-1: out of range, or negative"),
    ([GOOD], {"window": 2**31 + 1}, InvalidInput, "window=2147483649: must be between"),
    ([GOOD], {"window": 2**64}, InvalidInput, "window=18446744073709551616: out of range"),
    ([GOOD], {"window": 2.0}, InvalidType, "window=2.0 is a float"),
    ([GOOD], {"tail": 0}, InvalidInput, "tail=0: must be between"),
    ([GOOD], {"bottom": 0.0}, InvalidInput, r"bottom=0: must be a fraction .* \(0, 1\]"),
    ([GOOD], {"bottom": 1.5}, InvalidInput, "bottom=1.5"),
    ([GOOD], {"bottom": np.nan}, InvalidInput, "bottom=NaN"),
    ([GOOD], {"decimals": 10}, InvalidInput, "decimals=10: must be 9 at the most"),
    ([GOOD], {"decimals": -1}, InvalidInput, "decimals=-1: out of range, or negative"),
    ([GOOD], {"threads": 0}, InvalidInput, "threads=0: must be between 1 and 4096"),
    ([GOOD], {"threads": -1}, InvalidInput, "threads=-1: out of range, or negative"),
    ([], {"window": 0}, InvalidInput, "window=0"),
]


@pytest.mark.parametrize(("traces", "settings", "error", "message"), BAD)
def test_bad_input_is_refused_by_name(
    traces: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        deepconf.score(traces, **settings)


GROWTH = """
import resource, sys
import numpy as np
{imports}
import deepconf

def mebibytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) / 1024

deepconf.score(np.ones((8, 4096), np.float32))
table = np.ones((4096, 4096), {dtype})
traces = {traces}
with open("/proc/self/clear_refs", "w") as forget:
    forget.write("5")  # The peak starts again from what is in use.
before = mebibytes("VmRSS")
deepconf.score(traces)
print(mebibytes("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is of Linux")
@pytest.mark.parametrize(
    ("traces", "dtype", "copied"),
    [
        ("table", "np.float32", False),
        ("list(table)", "np.float32", False),
        ("(table.ravel(), np.arange(0, table.size + 1, 4096))", "np.float64", False),
        ("pa.FixedSizeListArray.from_arrays(pa.array(table.ravel()), 4096)", "np.float32", False),
        ("table[:, ::2]", "np.float64", True),
    ],
)
def test_only_what_is_not_contiguous_is_copied(traces: str, dtype: str, copied: bool) -> None:
    imports = "import pyarrow as pa" if "pa." in traces else ""
    program = GROWTH.format(traces=traces, dtype=dtype, imports=imports)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    grown = float(run.stdout)  # The table is 64 or 128 MiB.
    assert grown > 48 if copied else grown < 16


def test_scores_are_pickled_and_copied() -> None:
    scores = deepconf.score([[9.0, 2.0, 3.0], [7.0], []], window=2)
    again = pickle.loads(pickle.dumps(scores))
    assert [repr(one) for one in again] == [repr(one) for one in scores]
    assert copy.deepcopy(scores[0]) == scores[0]


def test_a_masked_array_is_refused() -> None:
    masked = np.ma.masked_array([1.0, 2.0, 3.0], [False, True, False])
    for traces in ([masked], (masked, [0, 3]), masked[None]):
        with pytest.raises(InvalidType, match="is a masked array"):
            deepconf.score(traces)
