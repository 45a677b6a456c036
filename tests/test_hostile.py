"""Hostile and broken input: refused with an error of deepconf, or read right. Never a panic.

`DEEPCONF_FUZZ_EXAMPLES` sets how many examples each property tries.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepconf
import numpy as np
import pyarrow as pa
import pytest
from deepconf._core import dict_confidences, flat_confidences
from deepconf.engines import openai, vllm
from deepconf.errors import DeepConfError, EventError, InvalidInput, InvalidType, RunFileError
from deepconf.runs import RunFile
from hypothesis import given, settings
from hypothesis import strategies as st

# The deadline tells a hang from a busy machine, nothing else.
hostile = settings(
    max_examples=int(os.environ.get("DEEPCONF_FUZZ_EXAMPLES", "50")),
    deadline=timedelta(seconds=60),
)

HUGE = st.sampled_from([-(2**200), -(2**63) - 1, -(2**31), -1, 2**31, 2**32, 2**63, 2**64, 2**200])
SCALARS = (
    st.none() | st.booleans() | st.integers() | HUGE | st.floats() | st.text(max_size=5)
    | st.binary(max_size=5)
)  # fmt: skip
KEYS = st.sampled_from(["choices", "logprob", "token", "logprobs", "a", "outputs"]) | st.integers()
JUNK = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.builds(lambda value: SimpleNamespace(logprob=value, outputs=value), inner)
    ),
    max_leaves=12,
)
OBJECTS = JUNK.filter(lambda value: not isinstance(value, list))


def refused(call: Callable[[], Any]) -> Any:
    """What `call` returns, or None where deepconf refuses; anything else that is raised fails."""
    try:
        return call()
    except DeepConfError:
        return None


def check_confidences(found: Any, rows: int | None = None) -> None:
    if found is not None:
        assert found.dtype == np.float32
        assert found.ndim == 1
        assert np.isfinite(found).all()
        assert rows is None or len(found) == rows


# Log-probabilities


@hostile
@given(JUNK)
def test_no_response_of_a_server_breaks_its_reader(response: Any) -> None:
    check_confidences(refused(lambda: openai.confidences(response)))


@hostile
@given(st.lists(JUNK, max_size=4), st.sampled_from([None, 2, 3, 20, 2**40]), st.booleans())
def test_no_choice_of_a_server_breaks_its_reader(
    rows: list[Any], k: int | None, all_: bool
) -> None:
    entries = "returned" if all_ else "topk"
    for name in ("content", "top_logprobs"):
        response = {"choices": [{"logprobs": {name: rows}}]}
        check_confidences(
            refused(lambda r=response: openai.confidences(r, k=k, entries=entries)), len(rows)
        )
    content = [{"token": "a", "logprob": row, "top_logprobs": rows} for row in rows]
    found = refused(lambda: openai.confidences({"content": content}, k=k, entries=entries))
    check_confidences(found, len(rows))


@hostile
@given(JUNK)
def test_no_output_of_vllm_breaks_its_reader(output: Any) -> None:
    for value in (
        output,
        [output],
        SimpleNamespace(outputs=output),
        SimpleNamespace(outputs=[output]),
        SimpleNamespace(start_indices=output),
        SimpleNamespace(token_ids=[], finish_reason=None),
    ):
        check_confidences(refused(lambda value=value: vllm.confidences(value)))


@hostile
@given(st.lists(JUNK | st.dictionaries(st.integers(), JUNK), max_size=4))
def test_rows_of_dicts_are_read_or_refused(rows: list[Any]) -> None:
    check_confidences(refused(lambda: dict_confidences(rows)), len(rows))


@hostile
@given(
    st.lists(st.integers(0, 6), max_size=5),
    st.sampled_from([None, 2, 3, 20]),
    st.booleans(),
    st.data(),
)
def test_flat_rows_of_any_width_are_read_or_refused(
    widths: list[int], k: int | None, returned: bool, data: st.DataObject
) -> None:
    ends = np.cumsum(widths, dtype=int).tolist()
    size = sum(widths)
    values = data.draw(st.lists(st.floats(), min_size=size, max_size=size))
    rank = st.none() | st.integers(0, 2**63)
    ranks = data.draw(st.lists(rank, min_size=size, max_size=size))
    found = refused(lambda: flat_confidences(values, ends, ranks, k, returned))
    check_confidences(found, len(widths))


@pytest.mark.parametrize("ends", [[], [1], [3], [5], [2, 5], [2**40]])
def test_rows_that_end_elsewhere_than_the_entries_are_refused(ends: list[int]) -> None:
    with pytest.raises(InvalidInput, match="there must be as many of each"):
        flat_confidences([-1.0] * 4, ends, [1, 2, 3, 4])


# Traces


@hostile
@given(JUNK)
def test_no_junk_for_traces_breaks_score(traces: Any) -> None:
    found = refused(lambda: deepconf.score(traces, window=2))
    assert found is None or len(found) == len(found.mean)


DTYPES = ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "i4", ">i8", "u1", "?", "O", "U3", "M8[s]"]
LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda a: a,
    "reversed": lambda a: a[::-1],
    "every other": lambda a: np.repeat(a, 2)[::2],
    "misaligned": lambda a: (
        np.frombuffer(b"x" + a.tobytes(), a.dtype, offset=1) if len(a) and a.dtype != object else a
    ),
    "read-only": lambda a: np.broadcast_to(a, a.shape),
    "0-d": lambda a: np.array(a[0] if len(a) else 0, a.dtype),
    "2-D": lambda a: a.reshape(1, -1),
    "Fortran 2-D": lambda a: np.asfortranarray(np.stack([a, a])),
    "3-D": lambda a: a.reshape(1, 1, -1),
}


@hostile
@given(
    st.lists(st.integers(0, 100), max_size=8),
    st.sampled_from(DTYPES),
    st.sampled_from(sorted(LAYOUTS)),
)
def test_an_array_of_any_dtype_and_layout_is_scored_right_or_refused(
    values: list[int], dtype: str, layout: str
) -> None:
    array = LAYOUTS[layout](np.array(values).astype(dtype))
    for traces in (array, [array], (array, [0, len(values)])):
        found = refused(lambda traces=traces: deepconf.score(traces, window=2))
        if found is not None and len(values) > 0 and len(found) > 0:
            assert array.dtype.kind in "fO"
            if array.dtype.kind == "f":
                assert found.mean[0] == pytest.approx(np.mean(values))
                assert found.num_tokens[0] == len(values)
        if found is None and array.dtype.kind == "f" and array.ndim == 1:
            assert traces is array, "a float trace was refused"


@hostile
@given(st.lists(st.integers(-5, 12) | st.sampled_from([-(2**63), 2**63 - 1]), max_size=5))
def test_offsets_are_taken_only_where_they_cut_the_values(offsets: list[int]) -> None:
    values = np.arange(8.0)
    found = refused(lambda: deepconf.score((values, np.array(offsets, "i8")), window=2))
    right = bool(offsets) and offsets == sorted(offsets) and (offsets[0], offsets[-1]) == (0, 8)
    if right:
        assert found.num_tokens.tolist() == np.diff(offsets).tolist()
    elif found is not None:
        # Values before the first or after the last offset belong to no trace, nothing more.
        assert offsets == sorted(offsets)
        assert not offsets or (offsets[0] >= 0 and offsets[-1] <= 8)


@pytest.mark.parametrize(
    "call",
    [
        lambda odd: deepconf.score([odd(12, "f4")], window=2).mean,
        lambda odd: deepconf.score(odd(12, "f4").reshape(3, 4), window=2).mean,
        lambda odd: deepconf.token_confidence(-odd(12, "f4").reshape(3, 4)),
        lambda odd: deepconf.token_confidence((-odd(12, "f8")).reshape(3, 4)),
        lambda odd: deepconf.TraceScorer(window=2, threshold=5.0).extend(odd(12, "f8")[::-1]),
        lambda odd: deepconf.vote(["a", "b"] * 6, weights=odd(12, "f8")).share,
        lambda odd: deepconf.vote_many(odd(12, "i8"), ["a"] * 12).questions,
        lambda odd: deepconf.BatchScorer(12, window=1).step(odd(12, "i8"), odd(12, "f4")),
    ],
    ids=["score", "table", "token", "double", "extend", "weights", "questions", "slots"],
)
def test_a_misaligned_array_gives_what_an_aligned_one_gives(call: Callable[[Any], Any]) -> None:
    def misaligned(size: int, dtype: str) -> Any:
        array = np.frombuffer(b"x" + np.arange(size).astype(dtype).tobytes(), dtype, offset=1)
        assert not array.flags.aligned
        return array

    aligned = call(lambda size, dtype: np.arange(size).astype(dtype))
    np.testing.assert_array_equal(call(misaligned), aligned)


# Arrow

ROWS = st.lists(
    st.none() | st.lists(st.integers(0, 99).map(float), min_size=2, max_size=2), max_size=5
)
LISTS = [
    pa.list_(pa.float32()),
    pa.list_(pa.float64()),
    pa.large_list(pa.float32()),
    pa.large_list(pa.float64()),
    pa.list_(pa.float32(), 2),
    pa.list_(pa.float64(), 2),
]


@hostile
@given(ROWS, st.sampled_from(LISTS), st.integers(0, 5), st.booleans())
def test_a_column_of_lists_is_scored_however_it_is_cut(
    rows: list[list[float] | None], kind: pa.DataType, cut: int, chunked: bool
) -> None:
    column = pa.array(rows, kind)
    parts = [column[:cut], column[cut:]]
    found = deepconf.score(pa.chunked_array(parts) if chunked else parts[1], window=2)
    expected = [row or [] for row in (rows if chunked else rows[cut:])]
    assert found.num_tokens.tolist() == [len(row) for row in expected]
    np.testing.assert_array_equal(found.mean, [np.mean(row) if row else np.nan for row in expected])


@pytest.mark.parametrize(
    "column",
    [
        pa.nulls(3),
        pa.array([1.0, 2.0]),
        pa.array([[1, 2]]),
        pa.array([["a"]]),
        pa.array([[[1.0]]]),
        pa.array([[1.0]], pa.list_view(pa.float64())),
        pa.array([[1.0]], pa.large_list_view(pa.float32())),
        pa.DictionaryArray.from_arrays([0, 0], pa.array([[1.0, 2.0]])),
        pa.table({"a": [[1.0]]}),
    ],
    ids=lambda column: str(getattr(column, "type", "table")),
)
def test_an_arrow_column_of_anything_else_is_refused(column: Any) -> None:
    with pytest.raises(InvalidType, match="must be a list of float or double"):
        deepconf.score(column, window=2)


def lists_of(offsets: list[int], large: bool = False) -> pa.Array:
    """Lists over eight floats with any offsets; set behind the back of what checks them."""
    kind = pa.large_list(pa.float32()) if large else pa.list_(pa.float32())
    held = np.zeros(len(offsets), "i8" if large else "i4")
    values = pa.array(np.arange(8, dtype=np.float32))
    buffers = [None, pa.py_buffer(held)]
    array = pa.Array.from_buffers(kind, len(offsets) - 1, buffers, children=[values])
    held[:] = offsets
    return array


@hostile
@given(
    st.lists(st.integers(-3, 10) | st.sampled_from([2**31 - 1, -(2**31)]), min_size=2, max_size=6),
    st.booleans(),
)
def test_lists_whose_offsets_lie_are_refused(offsets: list[int], large: bool) -> None:
    found = refused(lambda: deepconf.score(lists_of(offsets, large), window=2))
    sound = offsets == sorted(offsets) and offsets[0] >= 0 and offsets[-1] <= 8
    assert (found is not None) == sound
    if found is not None:
        assert found.num_tokens.tolist() == np.diff(offsets).tolist()


@hostile
@given(st.binary(max_size=8), st.data())
def test_strings_whose_bytes_or_offsets_lie_are_refused(raw: bytes, data: st.DataObject) -> None:
    # Arrow hands over no length of the bytes but the last offset, so that one has to be true.
    places = st.lists(st.integers(-2, len(raw) + 2), min_size=1, max_size=3)
    offsets = [*data.draw(places), data.draw(st.integers(-2, len(raw)))]
    held = np.zeros(len(offsets), "i4")
    buffers = [None, pa.py_buffer(held), pa.py_buffer(raw)]
    column = pa.Array.from_buffers(pa.string(), len(offsets) - 1, buffers)
    held[:] = offsets
    found = refused(lambda: deepconf.vote(column))
    sound = offsets == sorted(offsets) and offsets[0] >= 0
    if not sound:
        assert found is None
    elif found is not None:
        # What stands before the first offset is nobody's, and need not be UTF-8.
        texts = [raw[a:b].decode() for a, b in pairwise(offsets)]
        assert found.num_voters == len(texts)
        assert set(found.ballots) == set(texts)


@pytest.mark.parametrize(
    ("length", "first", "buffer", "start", "text"),
    [
        (13, b"1234", 0, 1, "123456789abcd"),
        (3, b"123", 0, 0, "123"),
        (2, b"\xc3\xa9", 0, 0, "é"),
        (3, b"1234", 0, 0, None),  # a byte after the text
        (2, b"\xc3(", 0, 0, None),
        (17, b"0123", 0, 0, None),
        (13, b"4567", 0, 4, None),
        (13, b"0123", 1, 0, None),
        (13, b"1235", 0, 1, None),
        (13, b"1234", 0, -1, None),
        (-1, b"0123", 0, 0, None),
    ],
)
def test_string_views_that_lie_are_refused(
    length: int, first: bytes, buffer: int, start: int, text: str | None
) -> None:
    views = pa.py_buffer(struct.pack("<i4sii", length, first, buffer, start))
    raw = pa.py_buffer(b"0123456789abcdef")
    column = pa.Array.from_buffers(pa.string_view(), 1, [None, views, raw])
    found = refused(lambda: deepconf.vote(column))
    assert (None if found is None else set(found.ballots)) == (None if text is None else {text})


def test_a_view_that_lies_is_refused_though_its_answer_loses() -> None:
    rows = [struct.pack("<i12s", 1, b"a")] * 2 + [struct.pack("<i4sii", 13, b"0123", 7, 0)]
    column = pa.Array.from_buffers(pa.string_view(), 3, [None, pa.py_buffer(b"".join(rows))])
    with pytest.raises(InvalidInput, match="answers: not an Arrow array"):
        deepconf.vote(column)
    with pytest.raises(InvalidInput, match="questions: not an Arrow array"):
        deepconf.vote_many(column, ["a"] * 3)


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view()])
def test_a_false_count_of_nulls_is_refused(kind: pa.DataType) -> None:
    buffers = pa.array(["a", None, "b"], kind).buffers()
    for count in (2, 3):
        column = pa.Array.from_buffers(kind, 3, buffers, null_count=count)
        with pytest.raises(InvalidInput, match="null_count"):
            deepconf.vote(column)


# Votes

ANSWERS = st.sampled_from(["a", "b", None])


@hostile
@given(JUNK, JUNK, st.none() | JUNK)
def test_no_junk_for_columns_breaks_a_vote(questions: Any, answers: Any, weights: Any) -> None:
    refused(lambda: deepconf.vote(answers, weights))
    refused(lambda: deepconf.vote(answers, scores=weights, keep=0.5))
    refused(lambda: deepconf.vote_many(questions, answers, weights))


@hostile
@given(st.lists(st.tuples(st.integers(0, 2), ANSWERS), max_size=8), st.data())
def test_columns_of_any_arrow_type_give_what_lists_give(
    rows: list[tuple[int, str | None]], data: st.DataObject
) -> None:
    questions, answers = [row[0] for row in rows], [row[1] for row in rows]
    kind = data.draw(st.sampled_from([pa.string(), pa.large_string(), pa.string_view()]))
    column = pa.array(answers, kind)
    if data.draw(st.booleans()) and kind == pa.string():
        column = column.dictionary_encode()
    if data.draw(st.booleans()):
        column = pa.chunked_array([column[:2], column[2:]])
    found = deepconf.vote_many(pa.array(questions, pa.int64()), column)
    expected = deepconf.vote_many(questions, answers)
    assert found.questions == expected.questions
    assert found.answers == expected.answers
    np.testing.assert_array_equal(found.share, expected.share)


class Lying(list[Any]):
    """A list that says another length than it has."""

    said = 0

    def __len__(self) -> int:
        return self.said


@pytest.mark.parametrize("said", [0, 5, 1 << 43, 1 << 60, 1 << 61])
def test_a_length_that_lies_is_not_believed(said: int) -> None:
    answers, traces = Lying(["a", "b", "a"]), Lying([[1.0, 2.0], [3.0]])
    answers.said = traces.said = said
    assert deepconf.vote(answers).num_voters == 3
    assert len(deepconf.vote_many(answers, answers)) == 2
    assert deepconf.score(traces, window=2).num_tokens.tolist() == [2, 1]


# Streaming


@pytest.mark.parametrize("slots", [4e9, 4_000_000_000, 2**20 + 1, 2**32, 2**64, -1, "3", None, [3]])
def test_more_slots_than_can_be_are_refused(slots: Any) -> None:
    with pytest.raises(DeepConfError, match="slots="):
        deepconf.BatchScorer(slots)


@hostile
@given(
    JUNK | st.lists(st.integers(-2, 5), max_size=5),
    JUNK | st.lists(st.floats(0, 9), max_size=5),
)
def test_a_refused_step_adds_nothing(slot_ids: Any, confidences: Any) -> None:
    scorer = deepconf.BatchScorer(4, window=2)
    scorer.step([0, 1, 2, 3], [1.0, 2.0, 3.0, 4.0])
    found = refused(lambda: scorer.step(slot_ids, confidences))
    added = 0 if found is None else len(found)
    assert scorer.num_tokens.sum() == 4 + added
    refused(lambda: scorer.reset(slot_ids))
    assert len(scorer) == 4


@hostile
@given(JUNK)
def test_a_refused_extension_adds_nothing(confidences: Any) -> None:
    scorer = deepconf.TraceScorer(window=2)
    if refused(lambda: scorer.extend(confidences) or 0) is None:
        assert scorer.num_tokens == 0


# Policy and Controller

SETTINGS = st.sampled_from(sorted(deepconf.Policy().as_dict()))


@hostile
@given(st.dictionaries(SETTINGS, JUNK, min_size=1, max_size=4))
def test_settings_are_taken_whole_or_refused(chosen: dict[str, Any]) -> None:
    for make in (deepconf.Policy, deepconf.Policy.low, deepconf.Policy.offline().replace):
        policy = refused(lambda make=make: make(**chosen))
        if policy is not None:
            for name, value in chosen.items():
                assert getattr(policy, name) == value
            assert deepconf.Policy(**policy.as_dict()) == policy


TRACE = st.integers(-1, 6)
FINISH = st.sampled_from(["finished", "length", "aborted", "never"])
EVENTS = st.one_of(
    st.tuples(st.just("start")),
    st.tuples(st.sampled_from(["launched", "failed", "status", "scores"]), TRACE),
    st.tuples(st.just("tokens"), TRACE, st.lists(st.floats(0, 20), max_size=4)),
    st.tuples(st.just("finished"), TRACE, FINISH, ANSWERS),
    st.tuples(st.just("ended"), TRACE, FINISH),
    st.tuples(st.just("answered"), TRACE, ANSWERS),
    st.tuples(st.sampled_from(["cancel", "engine_died"])),
)


@hostile
@given(st.lists(EVENTS, max_size=30), st.sampled_from([None, 1, 3]))
def test_events_in_any_order_are_followed_or_refused(
    events: list[tuple[Any, ...]], concurrency: int | None
) -> None:
    policy = deepconf.Policy(budget=5, warmup=2, window=2, concurrency=concurrency)
    controller = deepconf.Controller(policy)
    for name, *arguments in events:
        before = (controller.num_tokens, [controller.status(trace) for trace in range(6)])
        try:
            getattr(controller, name)(*arguments)
        except EventError:
            pass
        except InvalidInput:
            assert -1 in arguments[:1] or "never" in arguments
        else:
            continue
        after = (controller.num_tokens, [controller.status(trace) for trace in range(6)])
        assert after == before, "a refused event changed something"


# Pickles

PICKLED = [
    deepconf.score([[1.0, 2.0, 3.0], []], window=2),
    deepconf.score([[1.0, 2.0, 3.0]], window=2)[0],
    deepconf.vote(["a", "b", "a"]),
    deepconf.Policy.low(),
]


@hostile
@given(st.sampled_from(range(len(PICKLED))), st.data())
def test_arguments_from_a_damaged_pickle_make_no_panic(which: int, data: st.DataObject) -> None:
    """What a pickle calls, with what damage could make of it; pickle itself is not on trial."""
    value = PICKLED[which]
    if isinstance(value, deepconf.Policy):
        _, named = value.__getnewargs_ex__()
        named[data.draw(st.sampled_from(sorted(named)))] = data.draw(JUNK)
        make: Callable[[], Any] = partial(type(value), **named)
    else:
        arguments = list(value.__getnewargs__())
        arguments[data.draw(st.integers(0, len(arguments) - 1))] = data.draw(JUNK)
        make = partial(type(value), *arguments)
    try:
        again = make()
    except Exception:  # A panic is no `Exception`.
        return
    repr(again)
    pickle.dumps(again)


# NumPy complains, where nobody can catch it, when it lets go of an array whose type was damaged.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@hostile
@given(st.sampled_from(range(len(PICKLED))), st.data())
def test_a_pickle_with_a_flipped_bit_makes_no_panic(which: int, data: st.DataObject) -> None:
    raw = bytearray(pickle.dumps(PICKLED[which], protocol=4))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        # Not the one in C, which makes a memo as long as a damaged index says.
        found = pickle._Unpickler(io.BytesIO(raw)).load()
    except Exception:  # A panic is no `Exception`.
        return
    repr(found)


def test_scores_with_columns_of_other_lengths_are_refused() -> None:
    columns = deepconf.score([[1.0, 2.0], [3.0]], window=1).__getnewargs__()
    for place in range(len(columns)):
        uneven = [column[: 1 if at == place else 2] for at, column in enumerate(columns)]
        with pytest.raises(InvalidInput, match="must be one a trace in each"):
            deepconf.Scores(*uneven)


# Run files

HEADER = {"model": "m", "policies": {"low": {"keep": 0.1}}}
RECORDS = [
    {"policy": "low", "id": f"q{number}", "result": {"answer": text, "policy": {"keep": 0.1}}}
    for number, text in enumerate(["4", "ü\n", None])
]
VALID = b"".join(
    json.dumps(line).encode() + b"\n" for line in ({"deepconf_run": 2, **HEADER}, *RECORDS)
)


def opened(content: bytes) -> list[dict[str, Any]] | None:
    """The records of a run file of these bytes; None where it is refused, and then left alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.jsonl"
        path.write_bytes(content)
        try:
            with RunFile(path, HEADER) as file:
                records = list(file.records)
        except RunFileError:
            assert path.read_bytes() == content
            return None
        with RunFile(path, HEADER) as file:
            assert file.records == records
            file.append(RECORDS[0])
        with RunFile(path, HEADER) as file:
            assert file.records == [*records, RECORDS[0]]
        return records


def lines_of(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


@hostile
@given(
    st.binary(max_size=60), st.sampled_from([b"", b'{"deepconf_run": ', b'{"deepconf_run": 2}\n'])
)
def test_a_file_of_any_bytes_is_refused_and_left_or_has_nothing(junk: bytes, start: bytes) -> None:
    assert not opened(start + junk)


@hostile
@given(st.integers(0, len(VALID)))
def test_a_file_cut_short_has_every_whole_record(size: int) -> None:
    found = opened(VALID[:size])
    assert found == RECORDS[: max(VALID[:size].count(b"\n") - 1, 0)]


@hostile
@given(
    st.integers(0, len(VALID)),
    st.integers(0, 40),
    st.binary(max_size=4) | st.sampled_from([b"\n", b"\r", b"\0", b"[", b"{", b"null", b"1e999"]),
)
def test_a_damaged_file_is_refused_or_drops_no_whole_line(
    place: int, removed: int, put: bytes
) -> None:
    damaged = VALID[:place] + put + VALID[place + removed :]
    found = opened(damaged)
    if found is not None:
        assert repr(found) == repr(lines_of(damaged)[1:])


@pytest.mark.parametrize(
    "content",
    [
        VALID.replace(b"\n", b" ", 1)[: VALID.find(b"\n", VALID.find(b"\n") + 1) + 1],
        b'{"deepconf_run": ' + b"[" * 100_000 + b"\n" + VALID,
        VALID + b"[" * 100_000 + b"\n",
        VALID.replace(b'"policies": {"low": {"keep": 0.1}}', b'"policies": [1]', 1),
        VALID.replace(b'"policies": {"low": {"keep": 0.1}}', b'"policies": "low"', 1),
    ],
    ids=["a lost line end", "a deep first line", "a deep line", "a list", "a string"],
)
def test_a_damaged_line_is_named_and_the_file_left(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(content)
    with pytest.raises(RunFileError, match=r"run\.jsonl, line \d: damaged"):
        RunFile(path, HEADER)
    assert path.read_bytes() == content


def test_rows_that_end_before_they_begin_are_refused() -> None:
    for k in (None, 2, 10):
        with pytest.raises(InvalidInput, match="position 0 ends at 10 and the next at 4"):
            flat_confidences([-1.0] * 4, [10, 4], [1] * 4, k)


def test_an_empty_slice_is_an_array_like_any_other() -> None:
    assert deepconf.vote(pa.array(["a"])[1:]).answer is None
    assert len(deepconf.score(pa.array([[9.0]], pa.list_(pa.float32()))[1:], window=1)) == 0
