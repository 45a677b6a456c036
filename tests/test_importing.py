"""Importing traces: every format, and every kind of bad input."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import os
import pickle
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepconf
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deepconf import import_traces
from deepconf.commands import app
from deepconf.engines.openai import confidences as openai_confidences
from deepconf.errors import DeepConfError, InvalidInput, InvalidType, MissingExtra, RunWarning
from deepconf.questions import load_questions
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

HERE = Path(__file__).parent
LOG = HERE / "data" / "inspect.eval"
"""What Inspect 0.3.285 wrote: questions "a" and 7, two epochs, five log-probabilities a token."""

# Most tests have one trace a question.
pytestmark = pytest.mark.filterwarnings("ignore:each of the .* questions has one trace")

RNG = np.random.default_rng(7)


def likely(n: int, k: int = 4) -> list[list[float]]:
    """Log-probabilities of the k likeliest of n tokens, most likely first."""
    return (-np.sort(RNG.exponential(2.0, (n, k)), axis=1)).tolist()


def chat(rows: list[list[float]], **change: Any) -> dict[str, Any]:
    """The logprobs of a chat completion."""
    content = [
        {
            "token": "t0",
            "logprob": row[0] if row else -9999.0,
            "bytes": [116, 48],
            "top_logprobs": [
                {"token": f"t{j}", "logprob": p, "bytes": [116]} for j, p in enumerate(row)
            ],
        }
        for row in rows
    ]
    return {"content": content, **change}


def choice(rows: list[list[float]], text: str = r"\boxed{2}", **change: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "index": 0,
        "message": message,
        "logprobs": chat(rows),
        "finish_reason": "stop",
        **change,
    }


def response(*choices: dict[str, Any], **change: Any) -> dict[str, Any]:
    head = {"id": "chatcmpl-1", "object": "chat.completion", "model": "m"}
    return {**head, "choices": list(choices), **change}


def batch(custom_id: str, *choices: dict[str, Any], **change: Any) -> dict[str, Any]:
    """A line of a batch file's output."""
    body = {"status_code": 200, "request_id": "r", "body": response(*choices)}
    return {"id": "b", "custom_id": custom_id, "response": body, "error": None, **change}


def expected(rows: list[list[float]], k: int | None = None) -> np.ndarray[Any, Any]:
    table = np.array([row[: k or len(row)] for row in rows])
    return deepconf.token_confidence(table)


def lines(folder: Path, *records: Any, name: str = "in.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def confidence(table: pa.Table, row: int = 0) -> np.ndarray[Any, Any]:
    values = table["confidence"].combine_chunks()[row].values
    return np.asarray(values.to_numpy(zero_copy_only=False))


def column(table: Any, name: str) -> list[Any]:
    found: list[Any] = table[name].to_pylist()
    return found


def recorded(source: Any) -> dict[str, Any]:
    """The settings of a trace file, which has the versions that made it too."""
    settings = deepconf.read_traces(source).settings
    assert settings.pop("versions")["deepconf"] == deepconf.__version__
    return settings


def refused(source: Any, *words: str, **options: Any) -> str:
    """The message with which an import is refused; it must have all words."""
    with pytest.raises(DeepConfError) as caught:
        import_traces(source, **options)
    assert not isinstance(caught.value, MissingExtra)
    message = str(caught.value)
    for word in words:
        assert word in message
    return message


# ---- responses of OpenAI-style servers ----------------------------------------------------------


def test_every_choice_of_a_chat_completion_is_a_trace(tmp_path: Path) -> None:
    first, second, third = likely(5), likely(3), likely(4)
    path = lines(
        tmp_path,
        response(choice(first), choice(second, "hm", finish_reason="length")),
        response(choice(third, r"\boxed{3}")),
    )
    table = import_traces(path)
    assert column(table, "question_id") == ["1", "1", "2"]
    assert column(table, "trace") == [0, 1, 0]
    assert column(table, "answer") == ["2", None, "3"]
    assert column(table, "status") == ["finished", "length", "finished"]
    assert column(table, "num_tokens") == [5, 3, 4]
    assert column(table, "correct") == [None] * 3
    assert column(table, "text") == [r"\boxed{2}", "hm", r"\boxed{3}"]
    for at, rows in enumerate((first, second, third)):
        np.testing.assert_array_equal(confidence(table, at), expected(rows))
    assert recorded(table) == {"k": 4, "entries": "topk", "model": "m"}


def test_confidences_are_those_of_the_scorer_of_responses() -> None:
    one = response(choice(likely(50, 20)))
    for k in (None, 5):
        for entries in ("topk", "returned"):
            got = confidence(import_traces([one], k=k, entries=entries))
            want = openai_confidences(one, k=k, entries=entries)
            np.testing.assert_array_equal(got, want)


def test_a_sampled_token_outside_the_likeliest_counts_where_all_entries_do() -> None:
    one = response(choice([[-0.1, -3.0], [-0.2, -4.0]]))
    one["choices"][0]["logprobs"]["content"][1] |= {"token": "x", "logprob": -7.0}
    got = confidence(import_traces([one], entries="returned"))
    np.testing.assert_array_equal(got, openai_confidences(one, entries="returned"))
    assert got[1] == pytest.approx((0.2 + 4 + 7) / 3)


def test_completions_have_the_sampled_token_among_their_entries(tmp_path: Path) -> None:
    top = [{"a": -0.1, "b": -2.0, "c": -5.0}, {"a": -0.3, "b": -1.0}]
    logprobs = {
        "tokens": ["c", "a"],
        "token_logprobs": [-5.0, -0.3],
        "top_logprobs": top,
        "text_offset": [0, 1],
    }
    one = {"text": "", "index": 0, "logprobs": logprobs, "finish_reason": "stop"}
    table = import_traces(lines(tmp_path, response(one, object="text_completion")), k=2)
    np.testing.assert_array_equal(confidence(table), openai_confidences(logprobs, k=2))
    # One entry more is no surprise.
    short = {**one, "logprobs": {**logprobs, "top_logprobs": top[::-1]}}
    again = import_traces([response(short)])
    np.testing.assert_array_equal(confidence(again), confidence(table)[::-1])
    assert deepconf.read_traces(again).settings["k"] == 2


def test_a_json_array_and_one_object_are_read_like_lines(tmp_path: Path) -> None:
    records = [response(choice(likely(3))), response(choice(likely(4)))]
    want = import_traces(lines(tmp_path, *records))
    listed, one = tmp_path / "list", tmp_path / "one"
    for indent in (None, 2):
        listed.write_text(json.dumps(records, indent=indent))
        assert import_traces(listed).equals(want)
        one.write_text("\n\n" + json.dumps(records[0], indent=indent) + "\n")
        assert column(import_traces(one), "num_tokens") == [3]


def test_a_byte_order_mark_blank_lines_and_line_ends_of_windows_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "x"
    text = json.dumps(response(choice(likely(3))))
    path.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n" + text.encode())
    assert column(import_traces(path), "question_id") == ["1", "3"]


def test_objects_of_the_client_are_read_as_they_are() -> None:
    openai = pytest.importorskip("openai")
    kind = openai.types.chat.ChatCompletion
    one = response(choice(likely(6)), created=0)
    for part in one["choices"]:
        part["message"] |= {"refusal": None}
    made = kind.model_validate(one)
    assert import_traces(made).equals(import_traces([one]))


def test_reasoning_is_part_of_the_text(tmp_path: Path) -> None:
    for field in ("reasoning", "reasoning_content"):
        message = {"content": r"\boxed{2}", field: "since"}
        table = import_traces([response(choice(likely(2), message=message))])
        assert column(table, "text") == ["since\n\\boxed{2}"]
    cut = {"content": None, "reasoning": "since"}
    with pytest.warns(RunWarning, match="no answer was found in 1 trace.*ends with 'since'"):
        table = import_traces([response(choice(likely(2), message=cut, finish_reason="length"))])
    assert column(table, "text") == ["since"]


def test_gold_without_ids_is_not_matched_by_a_number_that_counts_otherwise() -> None:
    gold = [{"question": f"{n}?", "answer": "2"} for n in range(3)]
    files = [batch(str(n), choice(likely(2), r"\boxed{2}")) for n in (1, 2)]
    files[:0] = [batch("0", choice(likely(2), r"\boxed{2}"))]
    refused(files, "called by their number, 1 to 3", "are called '0', '1', '2'", gold=gold)
    same = [batch(str(n), choice(likely(2), r"\boxed{2}")) for n in (1, 2)]
    assert column(import_traces(same, gold=gold), "correct") == [True, True]


def test_half_a_character_is_replaced_in_texts_and_refused_in_ids(tmp_path: Path) -> None:
    table = import_traces([response(choice(likely(2), r"\boxed{2}" + "\ud83d"))])
    assert column(table, "text") == ["\\boxed{2}\ufffd"]
    refused([batch("q\ud83d", choice(likely(2)))], "no Unicode")


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("stop", "finished"),
        ("tool_calls", "finished"),
        ("length", "length"),
        ("repetition", "length"),
        ("abort", "aborted"),
        ("content_filter", "aborted"),
        ("error", "failed"),
    ],
)
def test_how_a_trace_ended_is_its_status(reason: str, status: str) -> None:
    table = import_traces([response(choice(likely(2), finish_reason=reason))])
    assert column(table, "status") == [status]


def test_an_empty_trace_has_no_tokens() -> None:
    table = import_traces([response(choice(likely(2)), choice([], ""))])
    assert column(table, "num_tokens") == [2, 0]
    assert confidence(table, 1).tolist() == []


def test_a_sampled_token_in_the_place_of_a_likelier_is_warned_of() -> None:
    # vLLM's server puts it first, and keeps as many entries as were asked for.
    rows = [[-9.0, -0.1, -2.0], [-0.2, -1.0, -3.0], [-2.0, -0.3, -2.5]]
    with pytest.warns(RunWarning, match="1 of 3 tokens .* k=2 is exact.* top_logprobs=4"):
        import_traces([response(choice(rows))])
    table = import_traces([response(choice(rows))], k=2)
    assert confidence(table)[0] == pytest.approx(1.05)


# ---- batch files --------------------------------------------------------------------------------


def test_batch_files_give_failed_requests_as_failed_traces(tmp_path: Path) -> None:
    rows = likely(3)
    wrong = {"message": "too long", "type": "BadRequest"}
    path = lines(
        tmp_path,
        batch("q1", choice(rows), choice(rows)),
        batch("q2", response={"status_code": 400, "request_id": "r", "body": {"error": wrong}}),
        batch("q2", response={"status_code": 500, "body": {"object": "error", "message": "m"}}),
        batch("q3", response=None, error={"code": "expired", "message": "in time"}),
        batch("q3", response={"status_code": 200, "body": None}, error=None),
    )
    table = import_traces(path)
    assert column(table, "question_id") == ["q1", "q1", "q2", "q2", "q3", "q3"]
    assert column(table, "trace") == [0, 1, 0, 1, 0, 1]
    assert column(table, "status") == ["finished"] * 2 + ["failed"] * 4
    assert column(table, "error") == [
        None,
        None,
        "status 400: too long",
        "status 500: m",
        "in time",
        "status 200: there is no response",
    ]
    assert column(table, "num_tokens") == [3, 3, 0, 0, 0, 0]


def test_what_vllm_writes_is_a_batch_file(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        protocol = pytest.importorskip("vllm.entrypoints.openai.chat_completion.protocol")
        launcher = pytest.importorskip("vllm.entrypoints.launchers.run_batch")
    rows = likely(4)
    usage = {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}
    body = protocol.ChatCompletionResponse(**response(choice(rows), usage=usage))
    data = launcher.BatchResponseData(request_id="r", body=body)
    line = launcher.BatchRequestOutput(id="b", custom_id="q", response=data, error=None)
    path = tmp_path / "out.jsonl"
    path.write_text(line.model_dump_json() + "\n")
    table = import_traces(path, format="batch")
    assert column(table, "question_id") == ["q"]
    np.testing.assert_array_equal(confidence(table), expected(rows))


@pytest.mark.parametrize(
    "question_id",
    [
        r"regex:(.+)-\d+$",
        re.compile(r"^(?P<question>.+)-\d+$"),
        "meta.name",
        lambda record: record["meta"]["name"],
    ],
)
def test_samples_of_one_question_may_have_different_ids(question_id: Any, tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        *(
            batch(f"{name}-{at}", choice(likely(2)), meta={"name": name})
            for name in ("q-1", "q-2")
            for at in (0, 1)
        ),
    )
    table = import_traces(path, question_id=question_id)
    assert column(table, "question_id") == ["q-1", "q-1", "q-2", "q-2"]
    assert column(table, "trace") == [0, 1, 0, 1]


def test_samples_that_each_count_as_a_question_are_warned_of() -> None:
    records = [batch(f"q-{at}", choice(likely(2))) for at in range(3)]
    with pytest.warns(RunWarning, match="each of the 3 questions has one trace.*question_id"):
        import_traces(records)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import_traces(records, question_id="custom_id")
        import_traces(records, question_id=r"regex:(.+)-")


def test_a_field_that_is_not_there_is_named(tmp_path: Path) -> None:
    record = batch("q", choice(likely(2)), meta=[1])
    for source in (lines(tmp_path, record), [record]):
        for name in ("meta.name", "nowhere", "custom_id.x"):
            refused(source, "question_id finds None: must be a string", question_id=name)


def test_a_field_is_found_in_what_python_writes_of_infinity(tmp_path: Path) -> None:
    rows = [[-0.1, -1.0], [-0.2, float("-inf")]]
    path = lines(tmp_path, response(choice(rows), meta={"name": "q"}))
    table = import_traces(path, question_id="meta.name", logprob_floor=-9.0)
    assert column(table, "question_id") == ["q"]
    assert confidence(table)[1] == pytest.approx(4.6)


def test_several_files_go_on_counting_traces(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        lines(tmp_path, batch("q", choice(likely(2))), name=name)
    for source in (str(tmp_path / "*.jsonl"), [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]):
        assert column(import_traces(source), "trace") == [0, 1]


# ---- vLLM ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vllm() -> SimpleNamespace:
    pytest.importorskip("vllm", exc_type=ModuleNotFoundError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What it imports warns of itself.
        from vllm.logprobs import FlatLogprobs, Logprob
        from vllm.outputs import CompletionOutput, RequestOutput
    return SimpleNamespace(
        Flat=FlatLogprobs, Logprob=Logprob, Completion=CompletionOutput, Request=RequestOutput
    )


def entries_of(rows: list[list[float]], sampled: list[int], kind: Any) -> list[dict[int, Any]]:
    """vLLM's dicts: the sampled token, then the likeliest, which are all of a row but the last."""
    found = []
    for row, rank in zip(rows, sampled, strict=True):
        ranked = {j: kind(p, j + 1, f"t{j}") for j, p in enumerate(row[:-1])}
        own = rank - 1 if rank < len(row) else 99
        first = {own: ranked.get(own) or kind(row[-1], rank, "far")}
        found.append(first | ranked)
    return found


def requested(vllm: SimpleNamespace, flat: bool) -> tuple[Any, list[list[float]]]:
    rows = likely(6, 5)
    dicts = entries_of(rows, [1, 2, 4, 17, 5, 1], vllm.Logprob)
    logprobs = vllm.Flat() if flat else dicts
    if flat:
        for row, rank in zip(rows, [1, 2, 4, 17, 5, 1], strict=True):
            own = row[rank - 1] if rank <= 4 else row[-1]
            ids = [rank - 1 if rank <= 4 else 99, 0, 1, 2, 3]
            logprobs.append_fast(ids, [own, *row[:4]], iter([rank, 1, 2, 3, 4]), [None] * 5)
    one = vllm.Completion(0, r"\boxed{2}", [1] * 6, -1.0, logprobs, finish_reason="stop")
    two = vllm.Completion(1, "cut", [1] * 6, -1.0, logprobs, finish_reason="length")
    return vllm.Request("r7", "p", [1], None, [one, two], True), rows


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("entries", ["topk", "returned"])
def test_outputs_of_vllm(vllm: SimpleNamespace, flat: bool, entries: Any) -> None:
    from deepconf.engines.vllm import confidences

    request, rows = requested(vllm, flat)
    table = import_traces([request], entries=entries)
    assert column(table, "question_id") == ["r7", "r7"]
    assert column(table, "status") == ["finished", "length"]
    assert column(table, "answer") == ["2", None]
    assert deepconf.read_traces(table).settings["k"] == 4
    want = confidences(request.outputs[0], k=4, entries=entries)
    np.testing.assert_array_equal(confidence(table), want)
    if entries == "topk":
        np.testing.assert_array_equal(confidence(table), expected(rows, 4))


@pytest.mark.parametrize("flat", [False, True])
def test_ranks_tell_sampled_tokens_that_are_not_among_the_likeliest(
    vllm: SimpleNamespace, flat: bool
) -> None:
    rows = likely(3, 5)
    logprobs: Any = entries_of(rows, [9, 40, 7], vllm.Logprob)
    if flat:
        dicts, logprobs = logprobs, vllm.Flat()
        for row in dicts:
            logprobs.append(row)
    one = vllm.Completion(0, "", [1] * 3, -1.0, logprobs, finish_reason="stop")
    table = import_traces([vllm.Request("0", None, [1], None, [one], True)])
    assert recorded(table)["k"] == 4
    np.testing.assert_array_equal(confidence(table), expected(rows, 4))


def as_plain(vllm: SimpleNamespace, flat: bool, keys: type) -> dict[str, Any]:
    request, _ = requested(vllm, flat)
    outputs = [dataclasses.asdict(output) for output in request.outputs]
    for output in outputs:
        if not flat:
            output["logprobs"] = [
                {keys(token): entry for token, entry in row.items()} for row in output["logprobs"]
            ]
    return {"request_id": request.request_id, "prompt": "p", "outputs": outputs}


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("how", ["objects", "ints", "strings", "json", "pickle", "objects' pickle"])
def test_all_forms_of_vllm_are_the_same(
    vllm: SimpleNamespace, flat: bool, how: str, tmp_path: Path
) -> None:
    state = RNG.bit_generator.state
    request, rows = requested(vllm, flat)
    RNG.bit_generator.state = state
    path = tmp_path / "x"
    source: Any = path
    match how:
        case "objects":
            source = (item for item in [request])
        case "ints" | "strings":
            source = [as_plain(vllm, flat, int if how == "ints" else str)]
        case "json":
            lines(tmp_path, as_plain(vllm, flat, str), name="x")
        case "pickle":
            path.write_bytes(pickle.dumps([as_plain(vllm, flat, int)]))
        case _:
            path.write_bytes(pickle.dumps([request], protocol=4))
    table = import_traces(source)
    assert column(table, "question_id") == ["r7", "r7"]
    np.testing.assert_array_equal(confidence(table, 1), expected(rows, 4))


def test_flat_rows_that_vllm_merged_have_one_entry_less(vllm: SimpleNamespace) -> None:
    flat = vllm.Flat()
    flat.append_fast([2, 0, 1], [-3.0, -0.1, -2.0], iter([3, 1, 2]), [None] * 3)
    flat.append_fast([0, 0, 1, 2], [-0.2, -0.2, -1.0, -2.0], iter([1, 1, 2, 3]), [None] * 4)
    one = vllm.Completion(0, "", [1, 1], None, flat, finish_reason="stop")
    table = import_traces([vllm.Request("0", None, [1], None, [one], True)])
    assert deepconf.read_traces(table).settings["k"] == 3
    assert confidence(table) == pytest.approx([1.7, 3.2 / 3])


def test_rows_of_ray_say_nothing_of_their_end(vllm: SimpleNamespace) -> None:
    one = as_plain(vllm, False, str)["outputs"][0]
    row = {
        "generated_text": one["text"],
        "generated_tokens": one["token_ids"],
        "logprobs": one["logprobs"],
        "question_id": 5,
    }
    with pytest.warns(RunWarning, match="of 1 trace nothing says how it ended"):
        table = import_traces([row])
    assert column(table, "question_id") == ["5"]
    assert column(table, "status") == ["finished"]
    told = {**row, "finish_reason": "length"}
    assert column(import_traces([told]), "status") == ["length"]


def test_completions_alone_need_a_question(vllm: SimpleNamespace) -> None:
    request, _ = requested(vllm, False)
    refused(request.outputs, "source[0]", "which question", "question_id")
    table = import_traces(request.outputs, question_id=lambda output: "q")
    assert column(table, "question_id") == ["q", "q"]
    assert column(table, "trace") == [0, 1]


def test_an_output_that_has_not_ended_is_refused(vllm: SimpleNamespace) -> None:
    request, _ = requested(vllm, False)
    request.outputs[1].finish_reason = None
    refused([request], "source[0], outputs[1], finish_reason is null", "not ended")


# ---- Inspect ------------------------------------------------------------------------------------


def test_a_log_of_inspect() -> None:
    table = import_traces(LOG)
    assert sorted(zip(column(table, "question_id"), column(table, "trace"), strict=True)) == [
        ("7", 0),
        ("7", 1),
        ("a", 0),
        ("a", 1),
    ]
    by_name = {(row["question_id"], row["trace"]): row for row in table.to_pylist()}
    assert {key: row["answer"] for key, row in by_name.items()} == {
        ("7", 0): "3",
        ("7", 1): None,
        ("a", 0): "2",
        ("a", 1): "5",
    }
    assert by_name["a", 0]["correct"] is True
    assert by_name["a", 0]["gold"] == "2"
    assert by_name["7", 0]["correct"] is False
    assert by_name["a", 1]["status"] == "length"
    assert recorded(table) == {
        "k": 5,
        "entries": "topk",
        "model": "mockllm/model",
    }
    assert by_name["a", 0]["confidence"][0] == pytest.approx(2.79314, abs=1e-5)


def repacked(
    path: Path, change: Callable[[str, dict[str, Any]], Any], method: int = zipfile.ZIP_DEFLATED
) -> Path:
    """The log again, with other samples, or none where `change` gives None."""
    from deepconf.importing._inspect import _content

    with zipfile.ZipFile(LOG) as log, zipfile.ZipFile(path, "w", method) as made:
        for info in log.infolist():
            content = _content(log, info)
            if info.filename.startswith("samples/"):
                sample = change(info.filename, json.loads(content))
                if sample is None:
                    continue
                content = json.dumps(sample).encode()
            made.writestr(info.filename, content)
    return path


def test_logs_of_any_compression_are_read(tmp_path: Path) -> None:
    assert {info.compress_type for info in zipfile.ZipFile(LOG).infolist()} == {93}
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        path = repacked(tmp_path / "x", lambda _, sample: sample, method)
        assert import_traces(path).equals(import_traces(LOG))


def test_epochs_come_in_order(tmp_path: Path) -> None:
    whole, path = LOG.read_bytes(), tmp_path / "x"
    for a, b in ((b"_epoch_1.json", b"_epoch_9.json"), (b"_epoch_2.json", b"_epoch_1.json")):
        whole = whole.replace(a, b)
    path.write_bytes(whole)
    answers = {
        (row["question_id"], row["trace"]): row["answer"] for row in import_traces(path).to_pylist()
    }
    assert answers == {("7", 0): None, ("7", 1): "3", ("a", 0): "5", ("a", 1): "2"}


def test_a_log_as_json_is_the_same(tmp_path: Path) -> None:
    samples = []
    repacked(tmp_path / "x", lambda _, sample: samples.append(sample) or sample)
    log = {"version": 2, "eval": {"model": "mockllm/model"}, "samples": samples}
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log, indent=2))
    for source in (path, log):
        table = import_traces(source, question_id=lambda sample: sample["id"])
        key = [("question_id", "ascending"), ("trace", "ascending")]
        assert table.sort_by(key).equals(import_traces(LOG).sort_by(key))


def test_samples_that_failed_are_failed_traces_and_any_target_is_right(tmp_path: Path) -> None:
    def change(name: str, sample: dict[str, Any]) -> dict[str, Any] | None:
        if name.endswith("_epoch_2.json"):
            return None
        if sample["id"] == 7:
            sample |= {"error": {"message": "boom"}, "output": {"model": "m", "choices": []}}
        return {**sample, "target": ["0", "2"]}

    table = import_traces(repacked(tmp_path / "x", change)).sort_by("question_id")
    assert column(table, "status") == ["failed", "finished"]
    assert column(table, "error") == ["boom", None]
    assert column(table, "correct") == [None, True]
    assert column(table, "gold") == ["0", "0"]


def test_a_damaged_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.eval"
    whole = LOG.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, str(path), "damaged, or was not finished")
    with zipfile.ZipFile(LOG) as log:
        info = log.getinfo("samples/a_epoch_1.json")
    at = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    refused(path, str(path), "damaged", "samples/a_epoch_1.json")
    with zipfile.ZipFile(path, "w") as other:
        other.writestr("readme.txt", "hello")
    refused(path, "no log of Inspect", "readme.txt")


# ---- the authors' package -----------------------------------------------------------------------


THEIRS = """
import importlib.util, pickle, sys
from pathlib import Path
from types import SimpleNamespace as N
def load(name):
    spec = importlib.util.spec_from_file_location(f"deepconf.{name}", folder / f"{name}.py")
    made = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made
folder, out = Path(sys.argv[1]) / "deepconf", Path(sys.argv[2])
sys.modules["deepconf"] = N()
outputs, utils = load("outputs"), load("utils")
def output(text, n, reason="stop"):
    row = {j: N(logprob=-0.5 * j - 0.1) for j in range(5)}
    return N(text=text, token_ids=list(range(n)), logprobs=[row] * n, finish_reason=reason)
batch = [N(outputs=[output("so \\\\boxed{2}", 6), output("cut", 3, "length")])]
found = utils.process_batch_results(batch, 2)
made = outputs.DeepThinkOutput()
made.all_traces = found["traces"]
made.all_traces[0]["stop_reason"] = sys.argv[3]
made.config = {"model": "theirs"}
made.voting_results = utils.compute_all_voting_results(made.all_traces)
(out / "object.pkl").write_bytes(pickle.dumps(made))
for protocol in (2, 3, 4, 5):
    dumped = pickle.dumps(made.to_dict() | {"qid": 3, "ground_truth": "2.0"}, protocol)
    (out / f"dict{protocol}.pkl").write_bytes(dumped)
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pickles that the authors' package makes."""
    installer = HERE.parent / "tools" / "install_reference.py"
    folder = subprocess.run(
        [sys.executable, installer], check=True, capture_output=True, text=True
    ).stdout.strip()
    out = tmp_path_factory.mktemp("theirs")
    command = [sys.executable, "-c", THEIRS, folder, str(out), "gconf_threshold"]
    subprocess.run(command, check=True, cwd=out)
    return out


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_of_the_authors_package(theirs: Path, protocol: int) -> None:
    path = theirs / f"dict{protocol}.pkl"
    assert b"numpy" in path.read_bytes()  # It has numbers of NumPy's.
    table = import_traces(path)
    assert column(table, "question_id") == ["3", "3"]
    assert column(table, "status") == ["stopped", "length"]
    assert column(table, "answer") == ["2", None]
    assert column(table, "correct") == [True, False]
    assert confidence(table) == pytest.approx([1.1] * 6)
    assert recorded(table) == {"entries": "returned", "model": "theirs"}


def test_their_output_itself_is_read_without_their_package(theirs: Path) -> None:
    table = import_traces(theirs / "object.pkl")
    assert column(table, "question_id") == ["object", "object"]
    assert column(table, "num_tokens") == [6, 3]


def test_arrays_in_pickles_are_read(tmp_path: Path) -> None:
    for dtype in (np.float64, np.float32, ">f8", np.float16, np.int64):
        confs = np.array([3, 4, 5], dtype)
        for protocol in (2, 4, 5):
            trace = {"stop_reason": "stop", "confs": confs, "num_tokens": 3, "text": ""}
            path = tmp_path / "p.pkl"
            path.write_bytes(pickle.dumps({"all_traces": [trace]}, protocol))
            table = import_traces(path)
            assert confidence(table).tolist() == [3, 4, 5]
            assert column(table, "question_id") == ["p"]


def test_pickles_of_theirs_with_log_probabilities_are_scored(
    vllm: SimpleNamespace, tmp_path: Path
) -> None:
    rows = likely(4, 5)
    dicts = entries_of(rows, [1, 1, 9, 2], vllm.Logprob)
    trace = {"stop_reason": "stop", "logprobs": dicts, "text": r"\boxed{1}"}
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps({"all_traces": [trace]}))
    np.testing.assert_array_equal(confidence(import_traces(path)), expected(rows, 4))


def test_tokens_that_they_dropped_are_counted(tmp_path: Path) -> None:
    trace = {"stop_reason": "stop", "confs": [3.0, 4.0], "num_tokens": 3, "text": ""}
    refused([{"all_traces": [trace]}], "has 3 tokens and 2 confidences", "missing='skip'")
    with pytest.warns(RunWarning, match="left out: 1 token without log-probabilities"):
        table = import_traces([{"all_traces": [trace]}], missing="skip")
    assert column(table, "num_tokens") == [2]
    refused(
        [{"all_traces": [{**trace, "num_tokens": 1}]}], "1 tokens and 2 confidences", missing="skip"
    )


def test_their_confidences_do_not_go_together_with_ours() -> None:
    trace = {"stop_reason": "stop", "confs": [3.0], "num_tokens": 1, "text": ""}
    refused(
        [{"all_traces": [trace]}, response(choice(likely(2)))], "source[1]", "import them apart"
    )


@pytest.mark.parametrize(
    ("trace", "words"),
    [
        ({"stop_reason": "stop", "text": ""}, ["neither confs", "nor logprobs"]),
        ({"stop_reason": "stop", "confs": [1.0, float("nan")]}, ["confs[1] is nan"]),
        ({"stop_reason": "stop", "confs": [[1.0], [2.0]]}, ["2 dimensions"]),
        ({"stop_reason": "stop", "confs": ["a"]}, ["not numbers"]),
        ({"confs": [1.0]}, ["stop_reason is null"]),
        ({"confs": [1.0], "stop_reason": [1]}, ["Expected `str | null`"]),
        ({"confs": [1.0], "stop_reason": "stop", "num_tokens": {}}, ["Expected `int | null`"]),
        (3, ["Expected `object`, got `int`"]),
    ],
)
def test_damaged_traces_of_theirs_are_refused(trace: Any, words: list[str]) -> None:
    refused([{"all_traces": [trace]}], "source[0], all_traces[0]", *words)


# ---- pickles that would run code ----------------------------------------------------------------


class Runs:
    """Pickled, it is a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_no_code_in_a_pickle_is_run(protocol: int, tmp_path: Path) -> None:
    from numpy.lib import format as formats

    mark = tmp_path / "run"
    command = f"touch {mark}"
    calls: dict[str, Any] = {
        "posix.system": Runs(os.system, command),
        "builtins.eval": Runs(eval, f"__import__('os').system({command!r})"),
        "builtins.exec": Runs(exec, f"open({str(mark)!r}, 'w')"),
        "builtins.getattr": Runs(getattr, 1, "real"),
        "builtins.open": Runs(open, str(mark), "w"),
        "subprocess.Popen": Runs(subprocess.Popen, command),
        "numpy.load": Runs(np.load, str(mark)),
        "numpy.fromfile": Runs(np.fromfile, str(mark)),
        "numpy.memmap": Runs(np.memmap, str(mark), "f8", "w+", 0, (4,)),
        "read_array": Runs(formats.read_array, io.BytesIO()),
        "_pickle.loads": Runs(pickle.loads, b"N."),
        "answers.extractor": Runs(deepconf.answers.extractor, "boxed"),
    }
    path = tmp_path / "x.pkl"
    for name, call in calls.items():
        hidden = [
            call,
            {"all_traces": [call]},
            {"all_traces": [{"stop_reason": "stop", "confs": np.array([call, 1], object)}]},
        ]
        for value in hidden:
            path.write_bytes(pickle.dumps(value, protocol))
            message = refused(path, str(path), "this pickle is refused")
            assert name.rsplit(".", 1)[-1] in message or "array of 'O8'" in message
    assert not mark.exists()


def test_modules_cannot_be_reached_in_roundabout_ways(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    # A name with dots is looked up attribute by attribute.
    names = [
        ("numpy", "lib.npyio.os.system"),
        ("builtins", "dict.__subclasses__"),
        ("vllm.outputs", "os.system"),
        ("vllm", "Logprob"),
        ("deepconf", "import_traces"),
        ("collections", "namedtuple"),
        ("copyreg", "_reconstructor"),
        ("numpy", "object_"),
        ("numpy.core._internal", "_ctypes"),
    ]
    for module, name in names:
        coded = b"\x80\x04" + b"".join(
            b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)
        )
        path.write_bytes(coded + b"\x93)R.")
        refused(path, f"it wants {module}.{name}", "could run code")


def test_a_pickle_cannot_change_our_classes(tmp_path: Path) -> None:
    from deepconf.importing import _pickle

    path = tmp_path / "x.pkl"
    # BUILD on the class itself, with the attributes of slots.
    for name in (b"cnumpy\ndtype\n", b"cvllm.outputs\nX\n", b"c_codecs\nencode\n"):
        path.write_bytes(
            b"\x80\x02" + name + b"N}X\x07\x00\x00\x00__new__c__builtin__\nlist\ns\x86b."
        )
        refused(path, "this pickle is")
    assert _pickle._Dtype.__new__ is not list
    import_traces_again = {"all_traces": [{"stop_reason": "stop", "confs": np.ones(2), "text": ""}]}
    path.write_bytes(pickle.dumps(import_traces_again))
    assert column(import_traces(path), "num_tokens") == [2]


def forged(dtype: Any, shape: Any, data: Any, state: Any = None) -> bytes:
    """The pickle of an array whose parts contradict each other."""

    class Array:
        def __reduce__(self) -> Any:
            _reconstruct = np.empty(0).__reduce__()[0]
            kind = Runs(np.dtype, dtype, False, True)
            return (
                _reconstruct,
                (np.ndarray, (0,), b"b"),
                (1, shape, state or kind, False, data),
            )

    trace = {"stop_reason": "stop", "confs": Array(), "text": ""}
    return pickle.dumps({"all_traces": [trace]}, 4)


@pytest.mark.parametrize(
    ("dtype", "shape", "data", "word"),
    [
        ("O", (1,), b"\x41" * 8, "array of 'O'"),
        ("O8", (1,), [1], "array of 'O8'"),
        ("V8", (1,), b"\x41" * 8, "array of 'V8'"),
        ("f8", (1 << 40,), b"\0" * 8, "1 numbers as an array"),
        ("f8", (-1,), b"\0" * 8, "of shape (-1,)"),
        ("f8", "12", b"\0" * 8, "of shape '12'"),
        ("f8", (1,), [1.0], "data is a list"),
        ("f8", (1,), b"\0" * 7, "damaged or hostile"),
    ],
)
def test_forged_arrays_are_refused(
    dtype: str, shape: Any, data: Any, word: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(forged(dtype, shape, data))
    refused(path, word)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_random_pickles_are_refused_or_read(body: bytes) -> None:
    from deepconf.importing._pickle import load

    # Any other exception fails the test.
    with contextlib.suppress(InvalidInput):
        load(io.BytesIO(b"\x80\x04" + body), "x")


def test_a_pickle_that_refers_elsewhere_or_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x04\x8c\x03abcQ.")
    refused(path, "outside of it, 'abc'")
    path.write_bytes(pickle.dumps([response(choice(likely(2)))])[:-10])
    refused(path, "this pickle is refused")


# ---- answers ------------------------------------------------------------------------------------


def test_answers_get_one_name_within_a_question_and_are_marked() -> None:
    texts = [r"\boxed{0.50}", r"\boxed{1/2}", r"\boxed{1}", "none"]
    records = [
        batch(name, *(choice(likely(2), text) for text in texts)) for name in ("a", "b", "c")
    ]
    with pytest.warns(RunWarning, match="not in gold: 1 question, such as 'c'"):
        table = import_traces(records, gold={"a": 0.5, "b": "1"}, math=False)
    assert column(table, "answer") == ["0.50", "0.50", "1", None] * 3
    marks = [True, True, False, False, False, False, True, False, None, None, None, None]
    assert column(table, "correct") == marks
    assert column(table, "gold") == ["0.5"] * 4 + ["1"] * 4 + [None] * 4


def test_gold_answers_come_from_a_file_of_questions(tmp_path: Path) -> None:
    questions = lines(tmp_path, {"id": "a", "question": "?", "answer": 2}, name="questions.jsonl")
    records = [batch("a", choice(likely(2)))]
    assert column(import_traces(records, gold=questions), "correct") == [True]
    assert column(import_traces(records, gold=load_questions(questions)), "correct") == [True]


def test_other_ways_to_find_an_answer() -> None:
    one = [response(choice(likely(2), "so x = 7."))]
    for answer in (r"regex:x = (\d+)", re.compile(r"x = (\d+)"), lambda text: text[-2]):
        assert column(import_traces(one, answer=answer), "answer") == ["7"]


def test_an_extractor_that_fails_is_named_with_its_trace() -> None:
    refused(
        [response(choice(likely(2)))],
        "source[0], choice 0 (question '1', trace 0): the answer extractor raised ZeroDivision",
        answer=lambda text: str(1 // 0),
    )


def test_gold_that_knows_none_of_the_questions_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    refused(
        [batch("q1-0", choice(likely(2)))],
        "none of the questions of the traces is in it",
        "'q1-0'",
        "'q1'",
        gold={"q1": "2"},
        out=out,
    )
    assert list(tmp_path.iterdir()) == []


# ---- k, floors and tokens without entries -------------------------------------------------------


def test_tokens_that_differ_in_entries_need_a_k(tmp_path: Path) -> None:
    rows = likely(3)
    rows[1] = rows[1][:3]
    path = lines(tmp_path, response(choice(likely(2))), response(choice(rows)))
    refused(
        path,
        f"{path}, line 2, choice 0 (question '2', trace 0): token 1 has 3 entries",
        f"{path}, line 1, choice 0 (question '1', trace 0) has 4 a token",
        "k=3 or less?",
    )
    refused(path, "line 2, choice 0", "token 1 has 3 entries, k=4: k can be at most 3", k=4)
    for k in (2, 3):
        table = import_traces(path, k=k)
        np.testing.assert_array_equal(confidence(table, 1), expected(rows, k))
        assert deepconf.read_traces(table).settings["k"] == k
    refused([response(choice(rows)), response(choice(likely(2)))], "token 0 has 4 entries", "k=3")


def test_one_entry_a_token_is_too_few() -> None:
    refused(
        [response(choice(likely(2, 1)))], "token 0 has 1 entry", "at least 2", "top_logprobs=20"
    )


def test_tokens_without_entries_are_refused_or_left_out(tmp_path: Path) -> None:
    rows = likely(4)
    rows[2] = []
    one = response(choice(rows))
    says = "(question '1', trace 0): token 2 has no log-probabilities of the likeliest tokens (1 of"
    refused([one], says, "top_logprobs=20", "missing='skip' leaves out")
    with pytest.warns(RunWarning, match="left out: 1 token without log-probabilities"):
        table = import_traces([one], missing="skip")
    np.testing.assert_array_equal(confidence(table), expected([rows[0], rows[1], rows[3]]))
    assert column(table, "num_tokens") == [3]
    for empty in (None, {}):
        top = [{"a": -0.1, "b": -1.0}, empty]
        half = {"text": "", "logprobs": {"top_logprobs": top}, "finish_reason": "stop"}
        refused([response(half)], "token 1 has no log-probabilities")


def test_masked_tokens_need_a_floor() -> None:
    rows = likely(3)
    rows[1][-1] = -9999.0
    refused([response(choice(rows))], "token 1", "-9999", "logprob_floor")
    floored = import_traces([response(choice(rows))], logprob_floor=-50.0)
    rows[1][-1] = -50.0
    np.testing.assert_array_equal(confidence(floored), expected(rows))
    # An entry that does not count may be what it wants.
    rows[1][-1] = -9999.0
    import_traces([response(choice(rows))], k=3)


def test_numbers_that_are_no_log_probabilities_are_refused(tmp_path: Path) -> None:
    rows = likely(3)
    rows[2] = [0.7, 0.2, 0.08, 0.02]
    refused([response(choice(rows))], "token 2 has the entry 0.7", "at most 0", "probabilities")
    rows[2] = [1e-7, -2.0, -3.0, -4.0]  # A rounding.
    import_traces([response(choice(rows))])
    path = tmp_path / "x"
    for wrong, words in (
        ("NaN", "no number"),
        ("-Infinity", "logprob_floor"),
        ("Infinity", "at most 0"),
    ):
        rows[2][1] = float(wrong.replace("Infinity", "inf"))
        path.write_text(json.dumps(response(choice(rows))) + "\n")
        refused(path, f"{path}, line 1, choice 0", "token 2", words)


@settings(deadline=None)
@given(st.data())
def test_any_k_gives_what_the_scorer_of_responses_gives(data: st.DataObject) -> None:
    width = data.draw(st.integers(2, 6))
    value = st.floats(-30, 0, width=32)
    rows = data.draw(st.lists(st.lists(value, min_size=width, max_size=width), min_size=1))
    one = response(choice(rows))
    k = data.draw(st.integers(2, width))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)
        got = confidence(import_traces([one], k=k))
    np.testing.assert_array_equal(got, openai_confidences(one, k=k))


# ---- what is no source --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty"]),
        (b"question,answer\n1,2\n", ["begins with b'question,answer", "neither JSON", "inspect"]),
        (b"PAR1....", ["Parquet", "read_traces"]),
        (gzip.compress(b"{}"), ["gzip", "unpack"]),
        (b"{}\n", ["line 1: has the keys []", "no record of a known format"]),
        (b'{"prompt": "a", "text": "b"}\n', ["'prompt', 'text'", "'choices'"]),
        (b"[]", ["there are no traces in it"]),
        (b'{"eval": {}, "samples": []}', ["there are no traces in it"]),
        (b"[1]", ["[0]: Expected `object`, got `int`"]),
        (b'{"choices": []}\n', ["line 1: holds no choices"]),
        (b'{"choices": {}}\n', ["line 1: Expected `array | null`, got `object` - at `choices`"]),
        (b'{"choices": [\n', ["line 1: not JSON: it ends in the middle"]),
        (b'{"choices": ]}\n', ["line 1: not JSON: invalid character"]),
        (b'{"custom_id": "\xff"}\n', ["line 1: not UTF-8"]),
        (b'{"choices": ' + b"[" * 100_000, ["line 1"]),
        (b'{"error": ' + b"[" * 100_000, ["line 1", "recursion"]),
        (b"[" * 100_000, ["recursion"]),
        (b"[{}, ", ["not JSON: it ends in the middle"]),
    ],
)
def test_files_that_are_none_are_refused(content: bytes, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    refused(path, *words)


def test_a_wrong_value_is_named_with_its_place(tmp_path: Path) -> None:
    good = response(choice(likely(3)))
    bad = response(choice(likely(3)))
    bad["choices"][0]["logprobs"]["content"][2]["top_logprobs"][1]["logprob"] = "x"
    path = lines(tmp_path, good, bad)
    place = "logprobs.content[2].top_logprobs[1].logprob"
    refused(path, f"{path}, line 2, choice 0", "Expected `float`, got `str`", place)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logprobs": None}, ["has no log-probabilities", "top_logprobs=20"]),
        ({"logprobs": {}}, ["has no log-probabilities"]),
        ({"logprobs": {"content": None}}, ["has no log-probabilities"]),
        ({"logprobs": {"content": []}}, ["has a text and no log-probabilities"]),
        ({"finish_reason": None}, ["finish_reason is null", "streamed"]),
        ({"finish_reason": [1]}, ["Expected `str | null`"]),
        ({"finish_reason": "tired"}, ["finish_reason is 'tired'", "stop, eos"]),
        ({"message": None}, ["neither message nor text", "streamed"]),
    ],
)
def test_choices_that_are_no_traces_are_refused(
    change: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    good = choice(likely(2))
    path = lines(tmp_path, response(good), response(good, {**good, **change}))
    refused(path, f"{path}, line 2", *words)


def test_a_torn_last_line_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path, response(choice(likely(2))), response(choice(likely(2))))
    path.write_bytes(path.read_bytes()[:-20])
    refused(path, f"{path}, line 2: not JSON: it ends in the middle")


def test_a_format_that_is_asked_for_must_be_it(tmp_path: Path) -> None:
    path = lines(tmp_path, response(choice(likely(2))))
    refused(path, "line 1: format='batch' was asked for, and this is 'openai'", format="batch")
    refused(LOG, "format='vllm' was asked for", "'inspect'", format="vllm")
    assert len(import_traces(path, format="openai")) == 1


def test_plain_responses_in_several_files_need_a_question(tmp_path: Path) -> None:
    paths = [lines(tmp_path, response(choice(likely(2))), name=name) for name in "ab"]
    refused(paths, f"{paths[0]}, line 1", "which question", "question_id")
    table = import_traces(paths, question_id="id")
    assert column(table, "question_id") == ["chatcmpl-1"] * 2


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"format": "csv"}, InvalidInput, ["format='csv'", "'openai'"]),
        ({"k": 1}, InvalidInput, ["k=1", "at least 2"]),
        ({"k": 2.5}, InvalidInput, ["k=2.5"]),
        ({"k": True}, InvalidInput, ["k=True"]),
        ({"entries": "all"}, InvalidInput, ["entries='all'"]),
        ({"missing": "drop"}, InvalidInput, ["missing='drop'"]),
        ({"logprob_floor": float("nan")}, InvalidInput, ["logprob_floor"]),
        ({"answer": "box"}, InvalidInput, ["answer='box'"]),
        ({"math": "no"}, InvalidInput, ["math='no'"]),
        ({"gold": 3}, InvalidType, ["gold is a int"]),
        ({"gold": {}}, InvalidInput, ["gold: there is nothing in it"]),
        ({"gold": {"a": None}}, InvalidType, ["gold['a'] is None"]),
        ({"gold": {"a": " "}}, InvalidInput, ["gold['a'] is empty"]),
        ({"gold": "nowhere.jsonl"}, InvalidInput, ["nowhere.jsonl"]),
        ({"question_id": 3}, InvalidType, ["question_id=3"]),
        ({"question_id": ""}, InvalidType, ["question_id=''"]),
        ({"question_id": "regex:("}, InvalidInput, ["no regular expression"]),
        ({"question_id": "regex:x"}, InvalidInput, ["'x' is not in its custom_id, 'q'"]),
        ({"question_id": "nowhere.at"}, InvalidInput, ["question_id finds None"]),
        ({"question_id": lambda r: r["no"]}, InvalidInput, ["question_id raised KeyError"]),
        ({"question_id": lambda r: 1.5}, InvalidInput, ["question_id finds 1.5"]),
    ],
)
def test_arguments_that_cannot_be_right(
    options: dict[str, Any], kind: type[Exception], words: list[str]
) -> None:
    with pytest.raises(kind) as caught:
        import_traces([batch("q", choice(likely(2)))], **options)
    for word in words:
        assert word in str(caught.value)


def test_sources_that_cannot_be(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder", "*.jsonl")
    refused(tmp_path / "no.jsonl", "there is no such file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is no plain file")
    refused(str(tmp_path / "*.jsonl"), "no file matches")
    refused(3, "source is a int")
    refused(b"{}", "source is a bytes")
    refused([], "there are no traces")
    refused([3], "source[0]: ")
    refused(tmp_path.parent.glob("*"), "source[0]: is a path; pass paths as a list")
    refused([object()], "source[0]: is a object")
    path = lines(tmp_path, batch("q", choice(likely(2))))
    refused([path, path], "named twice")
    refused([path, {}], "source holds paths, and a dict")


# ---- files that are written ---------------------------------------------------------------------


def test_the_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    good, bad = response(choice(likely(3))), response(choice(likely(2), logprobs=None))
    out = tmp_path / "out" / "traces.parquet"
    out.parent.mkdir()
    refused(lines(tmp_path, good, bad), "line 2", out=out)
    assert list(out.parent.iterdir()) == []
    path = lines(tmp_path, good, good)
    assert import_traces(path, out=out) == out
    table = pa.Table.from_batches(deepconf.read_traces(out))
    assert table.equals(import_traces(path))
    assert deepconf.read_traces(out).settings == deepconf.read_traces(table).settings
    assert [entry.name for entry in out.parent.iterdir()] == ["traces.parquet"]


def test_a_file_that_cannot_be_written_is_known_after_one_trace(tmp_path: Path) -> None:
    read = []

    def records() -> Any:
        for at in range(100):
            read.append(at)
            yield response(choice(likely(2)))

    refused(records(), "no folder", out=tmp_path / "no" / "x.parquet")
    assert len(read) < 5
    refused(records(), "must end in .parquet", out=tmp_path / "x.csv")


def test_row_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepconf.importing._TOKENS", 100)
    out = tmp_path / "x.parquet"
    import_traces((response(choice(likely(30))) for _ in range(10)), out=out)
    file = pq.ParquetFile(out)
    assert [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)] == [4, 4, 2]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    line = json.dumps(response(choice(likely(400, 20)))) + "\n"
    path = tmp_path / "big.jsonl"
    with path.open("w") as file:
        for _ in range(250):
            file.write(line)
    assert path.stat().st_size > 100e6
    code = (
        "import resource, sys\nfrom deepconf import import_traces\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3\n"
        "import_traces(sys.argv[2], out=sys.argv[3])\nbefore = peak()\n"
        "import_traces(sys.argv[1], out=sys.argv[3])\nprint(peak() - before)"
    )
    small = tmp_path / "small.jsonl"
    small.write_text(line * 3)
    command = [sys.executable, "-c", code, path, small, tmp_path / "x.parquet"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert float(done.stdout) < 40


def test_progress_is_told(tmp_path: Path) -> None:
    path = lines(tmp_path, *(response(choice(likely(2))) for _ in range(5)))
    told: list[tuple[int, int]] = []
    import_traces(path, progress=lambda done, total: told.append((done, total)))
    size = path.stat().st_size
    assert told[-1] == (size, size)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


# ---- the command --------------------------------------------------------------------------------


def test_the_command_writes_a_file_and_says_what_came_in(tmp_path: Path) -> None:
    rows = [[-9.0, -0.1, -2.0], [-0.2, -1.0, -3.0]]
    path = lines(tmp_path, *(batch(f"q{at}-0", choice(rows)) for at in range(3)))
    questions = lines(
        tmp_path, {"id": "q1", "question": "?", "answer": "2"}, name="questions.jsonl"
    )
    out = tmp_path / "out.parquet"
    arguments = ["import", path, "-o", out, "--gold", questions, "--question-id", "regex:(.+)-"]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert "3 traces of 3 questions (3 finished)" in done.stdout
    assert "6 tokens, k=3" in done.stdout
    assert "3 with an answer, 1 of 1 right" in done.stdout
    assert "warning: at 3 of 6 tokens" in done.stderr
    assert "warning: not in gold: 2 questions" in done.stderr
    assert deepconf.read_traces(out).num_rows == 3
    told = CliRunner().invoke(app, [str(argument) for argument in [*arguments, "--json"]])
    assert json.loads(told.stdout)["correct"] == 1


def test_the_command_says_in_a_line_what_is_wrong(tmp_path: Path) -> None:
    path = lines(tmp_path, response(choice(likely(2), logprobs=None)))
    out = tmp_path / "out.parquet"
    done = CliRunner().invoke(app, ["import", str(path), "-o", str(out)])
    assert done.exit_code == 2
    assert f"error: {path}, line 1, choice 0: has no log-probabilities" in done.stderr
    assert not out.exists()


def test_what_is_not_installed_is_named() -> None:
    for package in ("msgspec", "pyarrow"):
        code = (
            f"import sys; sys.modules[{package!r}] = None\n"
            "import deepconf\n"
            "try: deepconf.import_traces([])\n"
            "except deepconf.MissingExtra as error: print(error)"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert f"needs the package {package}" in done.stdout
        assert "pip install '" in done.stdout
        assert "(the extra import of deepconf-rs)" in done.stdout


def test_records_and_gold_without_ids_are_both_numbered_from_1(tmp_path: Path) -> None:
    several = [response(*[choice(likely(2), f"\\boxed{{{n}}}")] * 2) for n in range(3)]
    right = {n + 1: str(n) for n in range(3)}
    questions = [{"question": f"{n}?", "answer": str(n)} for n in range(3)]
    for source in (several, lines(tmp_path, *several)):
        for gold in (right, questions):
            found = import_traces(source, gold=gold)
            assert column(found, "question_id") == ["1", "1", "2", "2", "3", "3"]
            assert column(found, "correct") == [True] * 6
        refused(
            source,
            "called by their number, 0 to 2",
            "numbered 1 to 3 (the first is 1)",
            gold={n: str(n) for n in range(3)},
        )
    named = {f"q{n}": str(n) for n in range(3)}
    refused(several, "3 questions without ids, numbered 1 to 3", "question_id='id'", gold=named)


def test_marking_later_goes_by_the_same_numbers() -> None:
    several = [response(*[choice(likely(2), f"\\boxed{{{n}}}")] * 2) for n in range(3)]
    traces = deepconf.from_openai(several)
    assert traces.marked({n + 1: str(n) for n in range(3)}).correct == [True] * 6
    with pytest.raises(InvalidInput, match="numbered 1 to 3: number gold as they are, from 1"):
        traces.marked({n: str(n) for n in range(3)})


def test_a_pattern_reads_id_where_there_is_no_custom_id() -> None:
    records = [{**response(choice(likely(2))), "id": f"q{n}-0"} for n in range(2)]
    found = import_traces(records, question_id="regex:(.+)-")
    assert column(found, "question_id") == ["q0", "q1"]
    refused(records, "is not in its id, 'q0-0': searched is the first", question_id="regex:x")
    named = [{**record, "question_id": "q0"} for record in records]
    refused(named, "is not in its question_id, 'q0': searched", question_id="regex:(.+)-")
    none = [response(choice(likely(2)))]
    refused(none, "question_id finds None", "has the keys ", "choices", question_id="nothing")


@pytest.mark.parametrize("gold", [["1", "2"], pytest.importorskip("pandas").Series(["1"])])
def test_gold_that_is_a_mere_list_is_named(gold: Any) -> None:
    with pytest.raises(InvalidType, match=r"gold is a .*must be a mapping .*to_dict.*{1: "):
        import_traces([response(choice(likely(2)))], gold=gold)


def test_gold_may_not_be_none_where_traces_are_marked() -> None:
    traces = deepconf.from_confidences([[9.0]], ["4"])
    with pytest.raises(InvalidInput, match="gold is None"):
        traces.marked(None)


def test_answers_come_as_a_column_of_a_frame_has_them() -> None:
    pandas = pytest.importorskip("pandas")
    column = pandas.Series([4, None, 5])
    traces = deepconf.from_confidences([[9.0]] * 3, column, gold={"1": 4})
    assert traces.answers == ["4", None, "5"]
    assert traces.correct == [True, False, False]
    assert deepconf.from_confidences([[9.0]] * 2, [7, pandas.NA]).answers == ["7", None]
    with pytest.raises(InvalidType, match="answers: there are none"):
        deepconf.from_confidences([[9.0]])
    with pytest.raises(InvalidInput, match="questions says which question each trace answers"):
        deepconf.from_confidences([[9.0]] * 2, ["4", "5"], gold={"q1": "4"})


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
def test_traces_are_saved(tmp_path: Path, name: str) -> None:
    traces = deepconf.from_confidences([[9.0, 8.0], [7.0]], ["4", "5"], gold={"1": "4"})
    path = traces.save(tmp_path / name)
    again = deepconf.Traces.read(path)
    assert again.correct == traces.correct
    assert again.to_arrow().drop_columns(["confidence"]).to_pylist() == (
        traces.to_arrow().drop_columns(["confidence"]).to_pylist()
    )
    with pytest.raises(InvalidInput, match=r"\.parquet"):
        traces.save(tmp_path / "t.txt")


def test_gold_needs_no_question(tmp_path: Path) -> None:
    source = [{**response(choice(likely(2), r"\boxed{4}")), "question_id": "q"}]
    good = lines(tmp_path, {"id": "q", "answer": "4"}, name="gold.jsonl")
    for gold in (good, [{"id": "q", "answer": 4}]):
        assert column(import_traces(source, gold=gold), "correct") == [True]
    other = lines(tmp_path, {"id": "q", "gold": "4"}, name="other.jsonl")
    refused(source, "other.jsonl, line 1: there is no 'answer'", "['gold', 'id']", gold=other)
    table = tmp_path / "gold.csv"
    table.write_text("id,answer\nq,4\n")
    refused(source, "gold.csv: questions are JSON lines, a JSON array or Parquet", gold=table)
