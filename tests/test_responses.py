"""Responses that are in hand: `from_vllm`, `from_openai` and what `Traces` makes of them."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace as Object
from typing import Any

import deepconf
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from deepconf import Traces, from_confidences, from_openai, from_vllm, import_traces
from deepconf.errors import InvalidInput, InvalidType, RunWarning, SignalNeverArmed, TraceFileError
from test_importing import batch, chat, choice, expected, likely, lines, response

ANSWERS = ["1/2", "0.5", "2", "2", r"\frac{1}{2}", "3"]
ROWS = [likely(12) for _ in ANSWERS]
FEW = {"window": 4, "tail": 4}


def choices() -> list[dict[str, Any]]:
    each = zip(ROWS, ANSWERS, strict=True)
    return [choice(row, rf"\boxed{{{a}}}", index=at) for at, (row, a) in enumerate(each)]


def completion(rows: list[list[float]], text: str, **change: Any) -> dict[str, Any]:
    """A completion of vLLM's as JSON has it: ids are strings."""
    logprobs = [
        {
            str(100 + at): {"logprob": p, "rank": at + 1, "decoded_token": "t"}
            for at, p in enumerate(row)
        }
        for row in rows
    ]
    fields = {"index": 0, "text": text, "token_ids": [100] * len(rows), "logprobs": logprobs}
    return {**fields, "cumulative_logprob": -1.0, "finish_reason": "stop", **change}


def request(name: str = "0") -> dict[str, Any]:
    each = zip(ROWS, ANSWERS, strict=True)
    outputs = [completion(row, rf"\boxed{{{a}}}", index=at) for at, (row, a) in enumerate(each)]
    return {"request_id": name, "prompt": f"question {name}", "outputs": outputs}


def objects(value: Any) -> Any:
    """Attributes instead of keys, but for the rows of log-probabilities."""
    if isinstance(value, list):
        return [objects(item) for item in value]
    if isinstance(value, dict) and all(str(key).isdigit() for key in value):
        return {int(key): objects(item) for key, item in value.items()}
    return Object(**{k: objects(v) for k, v in value.items()}) if isinstance(value, dict) else value


def check(traces: Traces, questions: int = 1) -> None:
    assert len(set(traces.questions)) == questions
    assert traces.answers == ["1/2", "1/2", "2", "2", "1/2", "3"] * questions
    for found, rows in zip(traces.confidences, ROWS * questions, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected(rows))


# ---- forms --------------------------------------------------------------------------------------


ONE = response(*choices())
FORMS: dict[str, tuple[Callable[[Path], Any], int]] = {
    "dict": (lambda _: ONE, 1),
    "objects": (lambda _: objects(ONE), 1),
    "list": (lambda _: [ONE, ONE], 2),
    "generator": (lambda _: (each for each in (ONE, ONE)), 2),
    "choices": (lambda _: ONE["choices"], 1),
    "choice objects": (lambda _: objects(ONE["choices"]), 1),
    "text": (lambda _: json.dumps(ONE), 1),
    "indented": (lambda _: json.dumps(ONE, indent=1), 1),
    "listed": (lambda _: json.dumps([ONE, ONE], indent=1), 2),
    "lines": (lambda _: f"{json.dumps(ONE)}\n\n{json.dumps(ONE)}\n", 2),
    "bytes": (lambda _: json.dumps(ONE).encode(), 1),
    "texts": (lambda _: [json.dumps(ONE), json.dumps(ONE)], 2),
    "file": (lambda folder: str(lines(folder, ONE, ONE)), 2),
    "path": (lambda folder: lines(folder, ONE), 1),
    "batch": (lambda _: [batch("a", *choices()), batch("b", *choices())], 2),
}


@pytest.mark.parametrize(("source", "questions"), FORMS.values(), ids=FORMS)
def test_responses_of_every_form(
    source: Callable[[Path], Any], questions: int, tmp_path: Path
) -> None:
    check(from_openai(source(tmp_path)), questions)


@pytest.mark.parametrize(
    ("outputs", "questions"),
    [
        (request(), 1),
        ([request("a"), request("b")], 2),
        (objects(request()), 1),
        ([objects(request("a")), objects(request("b"))], 2),
        (request()["outputs"], 1),
        (objects(request()["outputs"]), 1),
        (json.dumps(request()), 1),
        (f"{json.dumps(request('a'))}\n{json.dumps(request('b'))}", 2),
    ],
)
def test_outputs_of_every_form(outputs: Any, questions: int) -> None:
    check(from_vllm(outputs), questions)


def test_what_comes_is_what_an_import_gives() -> None:
    source = [request("a"), request("b")]
    assert from_vllm(source).to_arrow().equals(import_traces(source), check_metadata=True)


def test_clients_objects_that_are_iterable() -> None:
    openai = pytest.importorskip("openai.types.chat")
    one = {"created": 0, **response(*choices())}
    check(from_openai(openai.ChatCompletion.model_validate(one)))
    check(from_openai([openai.ChatCompletion.model_validate(one)] * 2), 2)
    check(from_openai(openai.ChatCompletion.model_validate(one).choices))


# ---- questions ----------------------------------------------------------------------------------


def test_responses_of_one_choice_that_name_no_question_vote_together() -> None:
    together = from_openai(response(*choices())).vote(**FEW)
    with pytest.warns(RunWarning, match="each of the 6 questions has one trace"):
        apart = from_openai([response(each) for each in choices()])
    assert repr(apart.vote(**FEW)) == repr(together)
    with pytest.raises(InvalidInput, match="6 traces, and none says which question it answers"):
        apart.vote_many(**FEW)
    named = from_openai([response(each) for each in choices()], question_id=lambda _: "q")
    assert set(named.questions) == {"q"}
    assert repr(named.vote(**FEW)) == repr(together)


def test_several_questions_do_not_vote_as_one() -> None:
    traces = from_vllm([request("a"), request("b")])
    with pytest.raises(InvalidInput, match=r"2 questions, such as 'a', 'b': vote_many"):
        traces.vote(**FEW)
    votes = traces.vote_many(**FEW)
    assert votes.questions == ["a", "b"]
    one = traces.question("b")
    assert len(one) == 6
    assert one.vote(**FEW).answer == votes.answers[1]
    with pytest.raises(InvalidInput, match="question_id='c': there is none, such as 'a'"):
        traces.question("c")


def test_the_prompt_may_be_the_question() -> None:
    requests = [dict(request(str(at)), prompt="same") for at in range(2)]
    assert set(from_vllm(requests, question_id="prompt").questions) == {"same"}


def test_parts_of_several_requests_need_a_word() -> None:
    parts = [request(name)["outputs"][0] for name in "ab"]
    with pytest.raises(InvalidInput, match="2 outputs and some have the same index"):
        from_vllm(parts)
    assert from_vllm(parts, question_id=lambda _: "q").questions == ["q", "q"]
    with pytest.raises(InvalidInput, match="2 choices and some have the same index"):
        from_openai([choices()[0], choices()[0]])


# ---- votes --------------------------------------------------------------------------------------


def test_a_vote_is_that_of_its_scores() -> None:
    traces = from_openai(response(*choices()))
    scores = traces.score(**FEW)
    alone = deepconf.score(traces.confidences, **FEW)
    assert scores.lowest_group.tolist() == alone.lowest_group.tolist()
    got = traces.vote(measure="mean", weight="tail", keep=0.5, max_weight=2.0, **FEW)
    weights = np.clip(scores.tail, 0, 2.0)
    want = deepconf.vote(traces.answers, weights, 0.5, scores.mean, min_ballots=3)
    assert (got.ballots, got.threshold) == (want.ballots, want.threshold)
    plain = traces.vote(weight="majority", keep=1.0)
    assert plain.ballots == {"1/2": 3.0, "2": 2.0, "3": 1.0}


def test_what_did_not_end_does_not_vote() -> None:
    cut = choices()
    cut[0]["finish_reason"] = "content_filter"
    cut[1]["finish_reason"] = "length"
    vote = from_openai(response(*cut)).vote(weight="majority", keep=1.0)
    assert vote.ballots == {"1/2": 2.0, "2": 2.0, "3": 1.0}


def test_a_window_that_no_trace_reaches_is_said() -> None:
    traces = from_openai(response(*choices()))
    with pytest.warns(SignalNeverArmed, match="window of 2048 tokens .the longest has 12."):
        traces.vote()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        traces.vote(weight="majority", keep=1.0)  # Which looks at no confidence.


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(InvalidInput, match="unknown setting 'kep': the settings are measure"):
        from_openai(response(*choices())).vote(kep=0.5)


def test_where_no_answer_is_found_the_end_of_a_trace_is_shown() -> None:
    with pytest.warns(
        RunWarning, match=r"no answer was found in 1 trace, the first of which ends with .*is 4'"
    ):
        traces = from_openai(response(choice(ROWS[0], "so it is 4")))
    assert traces.vote(weight="majority", keep=1.0).answer is None
    found = from_openai(response(choice(ROWS[0], "so it is 4")), answer=r"regex:is (\d+)")
    assert found.answers == ["4"]


# ---- what is refused ----------------------------------------------------------------------------


def test_k_is_one_for_all() -> None:
    short = [row[:3] if at == 7 else row for at, row in enumerate(ROWS[0])]
    with pytest.raises(InvalidInput, match=r"token 0 has 4 entries|token 7 has 3 entries"):
        from_openai(response(choice(ROWS[1]), choice(short, index=1)))
    assert from_openai(response(choice(ROWS[1]), choice(short, index=1)), k=3).settings["k"] == 3


def test_a_token_without_entries_is_refused_or_left_out() -> None:
    gap = [[] if at == 2 else row for at, row in enumerate(ROWS[0])]
    one = response(choice([], logprobs=chat(gap)))
    with pytest.raises(InvalidInput, match=r"token 2 has no log-prob.*missing='skip'"):
        from_openai(one)
    with pytest.warns(RunWarning, match="left out: 1 token without log-probabilities"):
        traces = from_openai(one, missing="skip")
    assert len(traces.confidences[0]) == 11


@pytest.mark.parametrize(("value", "words"), [(-9999.0, "logprob_floor"), (0.9, "at most 0")])
def test_what_is_no_log_probability_is_refused(value: float, words: str) -> None:
    rows = [list(row) for row in ROWS[0]]
    rows[3][-1 if value < 0 else 0] = value
    with pytest.raises(InvalidInput, match=f"token 3 has .*{words}"):
        from_vllm({**request(), "outputs": [completion(rows, "a")]})


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: from_openai(request()), InvalidInput, "'openai' or 'batch' was asked for"),
        (lambda: from_vllm(response(*choices())), InvalidInput, "format='vllm' was asked for"),
        (lambda: from_openai({"a": 1}), InvalidInput, r"has the keys \['a'\]"),
        (lambda: from_openai(3), InvalidType, "source is a int: must be"),
        (lambda: from_openai([]), InvalidInput, "there are no traces in it"),
        (lambda: from_openai("no/such.jsonl"), InvalidInput, "there is no such file"),
        (lambda: from_openai('{"choices": ['), InvalidInput, "not JSON: it ends in the middle"),
        (lambda: from_vllm([request()], k=1), InvalidInput, "k=1"),
        (lambda: Traces.read("no/such.parquet"), TraceFileError, "no/such.parquet"),
    ],
)
def test_what_cannot_be_read_is_named(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


# ---- what they become ---------------------------------------------------------------------------


def test_traces_are_written_read_and_replayed(tmp_path: Path) -> None:
    gold = {"a": "0.5", "b": "2"}
    traces = from_vllm([request("a"), request("b")], gold=gold)
    assert traces.correct == [a == "1/2" for a in traces.answers[:6]] + [
        a == "2" for a in traces.answers[6:]
    ]
    table = traces.to_arrow()
    with deepconf.TraceWriter(tmp_path / "t.parquet", schema=table.schema) as writer:
        writer.write(table)
    again = Traces.read(tmp_path / "t.parquet")
    assert repr(again) == repr(traces)
    assert again.to_arrow().equals(table)
    assert repr(again.vote_many(**FEW)) == repr(traces.vote_many(**FEW))
    policy = deepconf.Policy.low(budget=6, warmup=2, top_logprobs=4, **FEW)
    assert deepconf.replay(table, {"low": policy}, repeats=2).tokens.shape == (1, 2, 2)


def test_traces_show_themselves() -> None:
    traces = from_openai(response(*choices()))
    assert repr(traces) == (
        "<deepconf.Traces: 6 traces of 1 question: 6 finished; 6 with an answer; 72 tokens>"
    )
    assert "<td" in traces._repr_html_()
    frame = traces.to_pandas()
    assert frame["answer"].tolist() == traces.answers
    assert list(frame.columns)[:3] == ["question_id", "trace", "answer"]


# ---- what score is told -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("traces.parquet", "'traces.parquet', a str: .*score_traces or read_traces"),
        (Path("traces.parquet"), "a PosixPath: .*score_traces"),
        ([objects(request())], r"a SimpleNamespace of vLLM: .*from_vllm\(outputs\)\.score"),
        (request()["outputs"], r"a dict of vLLM: .*from_vllm"),
        (response(*choices()), r"a dict of an OpenAI-style server: .*from_openai"),
        ([response(*choices())], r"traces holds a dict of an OpenAI-style server"),
        (objects(choices()), r"a SimpleNamespace of an OpenAI-style server"),
        ({"a": 1}, "a dict with the keys 'a': score takes token confidences"),
        (from_openai(response(*choices())), r"a Traces: call its own \.score"),
    ],
)
def test_score_says_what_to_call_for_what_is_no_confidences(given: Any, words: str) -> None:
    with pytest.raises(InvalidType, match=words):
        deepconf.score(given)


# ---- from responses to a verdict ----------------------------------------------------------------


@functools.cache
def several() -> list[dict[str, Any]]:
    """Four questions of twelve responses each, the right ones surer."""
    found = []
    for question in range(4):
        for at in range(12):
            right = (at + question) % 3 > 0
            rows = (np.array(likely(24 + at)) * (2.0 if right else 0.5)).tolist()
            answer = rf"\boxed{{{question if right else 90 + at}}}"
            found.append({**response(choice(rows, answer)), "question_id": f"q{question}"})
    return found


GOLD = {f"q{question}": f"{question}" for question in range(4)}


def test_from_responses_to_a_verdict_without_files(tmp_path: Path) -> None:
    traces = from_openai(several(), gold=GOLD)
    found = deepconf.diagnose(traces)
    assert (found.questions, found.traces, found.known) == (4, 48, 4)
    assert (found.window, found.tail) == (4, 4)
    path = tmp_path / "traces.parquet"
    import_traces(several(), gold=GOLD, out=path)
    assert found == deepconf.diagnose(path)
    pool = deepconf.Pool.read(traces, ["low", "high"])
    assert pool.gold
    assert pool.policies["low"].budget == 12
    assert pool.policies["low"].warmup == 3
    played = pool.replay(repeats=4)
    assert played.to_pandas().equals(deepconf.replay(path, ["low", "high"], repeats=4).to_pandas())
    grid = deepconf.grid(pool.policies, keep=[0.1, 0.5])
    tuned = deepconf.tune(traces, grid, repeats=4)
    assert tuned.separation is not None  # It was scored too: traces can be read again.
    assert f"{tuned.closing}>" in " ".join(map(str.strip, repr(tuned).splitlines()))


def test_data_frames_of_traces_are_taken_too() -> None:
    traces = from_openai(several(), gold=GOLD)
    frame = traces.to_pandas()
    assert deepconf.diagnose(frame, window=4, tail=4) == deepconf.diagnose(traces, window=4, tail=4)
    assert Traces.read(traces).answers == traces.answers


def test_traces_are_marked_afterwards() -> None:
    plain = from_openai(several())
    assert set(plain.correct) == {None}
    known = from_openai(several(), gold=GOLD)
    marked = plain.marked(GOLD)
    assert marked.correct == known.correct
    assert marked.to_arrow().equals(known.to_arrow())
    assert set(plain.correct) == {None}
    assert plain.marked({"q1": "1"}).correct == [
        correct if name == "q1" else None
        for name, correct in zip(known.questions, known.correct, strict=True)
    ]
    with pytest.raises(InvalidInput, match=r"gold: has none of the questions, 'q0', .*, but 'x'"):
        plain.marked({"x": "1"})


def test_responses_of_one_trace_each_say_what_they_answer(tmp_path: Path) -> None:
    single = [{k: v for k, v in each.items() if k != "question_id"} for each in several()]
    one = [each for at, each in enumerate(single) if at < 12]
    path = lines(tmp_path, *one)
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question": "0+0=?", "answer": "0"}))
    says = "if several of the 12 records answer one question, question_id says which"
    for source, gold in ((path, questions), (one, {"0": "0"}), (one, {"q": "0"})):
        with pytest.raises(InvalidInput, match=says):
            from_openai(source, gold=gold)
        with pytest.raises(InvalidInput, match=says):
            import_traces(source, gold=gold)
    told = [{**each, "of": {"id": "q0"}} for each in one]
    traces = from_openai(told, gold={"q0": "0"}, question_id="of.id")
    assert set(traces.questions) == {"q0"}
    assert None not in traces.correct


def test_a_questions_file_is_matched_by_its_text_too(tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        json.dumps({"id": "a", "question": "question 0", "answer": "0.5"})
        + "\n"
        + json.dumps({"id": "b", "question": "question 1", "answer": "2"})
    )
    outputs = [request("0"), request("1")]
    traces = from_vllm(outputs, gold=questions, question_id="prompt")
    assert traces.questions[::6] == ["question 0", "question 1"]
    halves, twos = ([answer == of for answer in traces.answers[:6]] for of in ("1/2", "2"))
    assert traces.correct == halves + twos


def test_log_probabilities_that_are_not_there_are_to_be_asked_for() -> None:
    ask = r"logprobs=True, top_logprobs=20 for chat completions, .* vLLM's SamplingParams"
    bare = response(choice([], logprobs=None))
    empty = response(choice([], logprobs=chat([[]] * 3)))
    with pytest.raises(InvalidInput, match=rf"source\[0\], choice 0: has no log-prob.*{ask}"):
        from_openai(bare)
    with pytest.raises(InvalidInput, match=rf"token 0 has no .* \(3 of 3 tokens .*{ask}$"):
        from_openai(empty)
    with pytest.raises(InvalidInput, match=rf"none of its 3 tokens has log-prob.*{ask}"):
        from_openai(empty, missing="skip")


def test_an_import_that_leaves_no_trace_leaves_no_file(tmp_path: Path) -> None:
    source = lines(tmp_path, response(choice([], logprobs=chat([[]] * 3))))
    out = tmp_path / "out.parquet"
    with pytest.raises(InvalidInput, match="no trace is left"):
        import_traces(source, missing="skip", out=out)
    assert not out.exists()


@pytest.mark.parametrize("call", [deepconf.diagnose, lambda of: deepconf.Pool.read(of, "low")])
def test_what_holds_no_traces_says_what_makes_them(call: Any, tmp_path: Path) -> None:
    path = lines(tmp_path, response(choice(likely(3))))
    with pytest.raises(TraceFileError, match=r"in.jsonl: is neither .* deepconf import makes"):
        call(path)
    table = pa.table({"question_id": ["q"], "logprobs": [[0.1]]})
    missing = "num_tokens, confidence; a trace file has them"
    with pytest.raises(
        InvalidInput, match=rf"{missing}.* deepconf import makes .*from_confidences"
    ):
        call(table)


@pytest.mark.parametrize("call", [from_openai, from_vllm])
def test_a_data_frame_of_responses_is_told_what_to_pass(call: Any) -> None:
    frame = pd.DataFrame({"response": [json.dumps(ONE)]})
    with pytest.raises(InvalidType, match=r"a DataFrame, a table: pass the column"):
        call(frame)
    check(from_openai(frame["response"]))


def test_a_data_frame_of_confidences_is_told_what_to_pass() -> None:
    frame = pd.DataFrame({"confidence": [[9.0, 8.0]]})
    with pytest.raises(InvalidType, match=r"a DataFrame, a table: give its column of confidences"):
        deepconf.score(frame)
    assert len(deepconf.score(frame["confidence"].tolist(), window=2)) == 1


# ---- confidences --------------------------------------------------------------------------------


def test_confidences_that_are_there_become_traces() -> None:
    values = [[9.0, 8.5], np.array([7, 3, 2.5], np.float64), [9.5], []]
    answers = ["1/2", "3", "0.5", None]
    traces = from_confidences(values, answers, gold={"1": "0.5"})
    assert traces.answers == ["1/2", "3", "1/2", None]
    assert traces.correct == [True, False, True, False]
    assert [found.dtype for found in traces.confidences] == [np.float32] * 4
    assert traces.vote(window=2, tail=2, keep=1).answer == "1/2"
    assert repr(traces) == (
        "<deepconf.Traces: 4 traces of 1 question: 4 finished; 3 with an answer; 6 tokens>"
    )
    assert "entries" not in traces.settings
    assert deepconf.diagnose(traces, window=1).traces == 4


def test_confidences_of_several_questions() -> None:
    values = [[9.0]] * 4
    traces = from_confidences(
        np.array(values), ["1", "2", "2", "2"], questions=[1, 1, "b", "b"], statuses=["length"] * 4
    )
    assert traces.questions == ["1", "1", "b", "b"]
    assert set(traces.statuses) == {"length"}
    assert traces.vote_many(window=1, keep=1).answers == ["1", "2"]
    assert repr(from_confidences([[1.0]], [None])) == (
        "<deepconf.Traces: 1 trace of 1 question: 1 finished; 0 with an answer; 1 token>"
    )


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (([[1.0]], []), InvalidInput, "answers has 0 entries and confidences 1: must be one a"),
        (([[1.0], 2.0], ["1", "1"]), InvalidInput, r"confidences\[1\] has 0 dimensions"),
        (([[1.0, np.nan]], ["1"]), InvalidInput, r"confidences\[0\]\[1\] is nan: must be finite"),
        (([[-1.0, -2.0]], ["1"]), InvalidInput, "below 0 on the whole: .* token_confidence makes"),
        (([["a"]], ["1"]), InvalidType, r"confidences\[0\] are no numbers"),
        (([[1.0]], [[1]]), InvalidType, r"answers\[0\] is \[1\], a list: must be a str, a number"),
        (("abc", ["1"]), InvalidType, "confidences is a str: must be a sequence"),
        ((pd.DataFrame({"c": [[1.0]]}), ["1"]), InvalidType, "must be one of its columns"),
    ],
)
def test_confidences_that_cannot_be_are_refused(arguments: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        from_confidences(*arguments)


def test_confidences_of_another_end_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"statuses\[0\] is 'stop': must be 'finished' or"):
        from_confidences([[1.0]], ["1"], statuses=["stop"])
    with pytest.raises(InvalidInput, match="there are no traces"):
        from_confidences([], [])


def test_lists_of_lists_are_to_be_flattened() -> None:
    with pytest.raises(InvalidInput, match=r"responses\[0\] is a list: .* flatten"):
        deepconf.from_openai([[], []])
    with pytest.raises(InvalidType, match=r"answers\[0\] is array.*, a ndarray: .* flatten"):
        deepconf.from_confidences(np.ones((3, 4, 5)), np.ones((3, 4)))
