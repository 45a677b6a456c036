"""Finding answers, writing them one way, and telling which are the same."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from deepconf import _helpers, _notation, answers
from deepconf.answers import AnswerBook, boxed, extractor, marks, normalise, same
from deepconf.errors import InvalidInput, InvalidType, MissingExtra
from hypothesis import given
from hypothesis import strategies as st

HANGS = "9^{9^{9^{9}}}"

# ---- extraction ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{5}", "5"),
        (r"so \boxed { 5 } it is", "5"),
        ("\\boxed\n{5}", "5"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{[0,1\}}", r"[0,1\}"),
        (r"\boxed{a\\b}", r"a\\b"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{1} then \boxed{\frac{2}{3}", "1"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{x = \boxed{7}}", "7"),
        (r"\boxed{\boxed{7}", "7"),
        (r"\fbox{5}", "5"),
        (r"\boxed 5", "5"),
        (r"$\boxed 5$", "5"),
        (r"\boxed 5 or \boxed{6}", "6"),
        (r"first\\\boxed{5}", "5"),
        (r"\\boxed{5}", "5"),
        (r"{unbalanced \boxed{5}", "5"),
        (r"unbalanced} \boxed{5}", "5"),
        ("\\boxed{a\nb}", "a\nb"),
        (r"\boxed{}", None),
        (r"\boxed{ }", None),
        (r"\boxed", None),
        (r"\boxed{", None),
        (r"boxed{5}", None),
        (r"\boxedfoo{5}", None),
        (r"\boxed5", None),
        ("5", None),
        ("", None),
    ],
)
def test_boxed(text: str, expected: str | None) -> None:
    assert boxed(text) == expected


def nested(braces: Any) -> Any:
    return st.tuples(braces, braces).map(lambda pair: f"{{{pair[0]}}}x{pair[1]}")


@given(st.text("ab \\{}$"), st.recursive(st.text("ab", min_size=1), nested), st.text("ab {\\$"))
def test_whatever_is_around_a_box_it_is_found(before: str, content: str, after: str) -> None:
    assert boxed(f"{before} \\boxed{{{content}}}. {after}") == content


@given(st.text("\\boxedf{} 1\n"))
def test_boxed_takes_any_text(text: str) -> None:
    found = boxed(text)
    assert found is None or (found.strip() == found != "" and found in text)


@pytest.mark.parametrize(
    "text",
    [
        lambda n: "\\boxed{" * n,
        lambda n: "\\boxed{" * n + "}" * n,
        lambda n: "\\boxed{1}" * n,
        lambda n: "\\boxed{" + "{" * n + "}" * n + "}",
        lambda n: "\\boxed{" * n + "x" * n + "}" * n,
        lambda n: "\\" * n,
        lambda n: "\\boxed" + " " * n,
        lambda n: "\\boxed " * n,
        lambda n: "}" * n + "{" * n,
        lambda n: "\\boxed{" + "\\boxed{1}" * n + "}",
    ],
)
def test_boxed_is_linear(text: Callable[[int], str]) -> None:
    # Ten times the text would take a hundred times as long, were it quadratic.
    def seconds(n: int) -> float:
        subject = text(n)
        return min(timed(boxed, subject) for _ in range(3))

    assert seconds(30_000) < 40 * seconds(3_000) + 0.01


def timed(function: Callable[[str], Any], argument: str) -> float:
    started = time.process_time()
    function(argument)
    return time.process_time() - started


@pytest.mark.parametrize(
    ("spec", "text", "expected"),
    [
        ("boxed", r"\boxed{5}", "5"),
        (r"regex:answer: (\d+)", "answer: 1, no, answer: 2", "2"),
        (r"regex:answer: \d+", "answer: 1", "answer: 1"),
        (r"regex:(\w+) is (?P<answer>\d+)", "this is 5", "5"),
        (r"regex:(a)?b", "b", None),
        (r"regex:answer: (\d*)", "answer: ", None),
        ("regex:nothing", "something", None),
        (re.compile("ANSWER: (.*)", re.IGNORECASE), "answer:  5 ", "5"),
        (str.upper, " yes ", "YES"),
        (lambda _: None, "text", None),
        (lambda _: "  ", "text", None),
    ],
)
def test_extractors(spec: Any, text: str, expected: str | None) -> None:
    assert extractor(spec)(text) == expected


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("box", InvalidInput, 'answer=\'box\': must be "boxed", "regex:..." or a callable'),
        ("", InvalidInput, "answer=''"),
        ("regex:(", InvalidInput, r"answer='regex:\(' is no regular expression: .*position 0"),
        (None, InvalidType, "answer=None: must be"),
        (3, InvalidType, "answer=3: must be"),
        (re.compile(b"5"), InvalidType, "must be one on str"),
    ],
)
def test_wrong_extractors(spec: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        extractor(spec)


def test_a_callable_that_returns_something_else() -> None:
    with pytest.raises(InvalidType, match="the answer extractor returned 5: must be a str or None"):
        extractor(lambda _: 5)("text")


# ---- normalisation -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (r"\dfrac12", r"\frac{1}{2}"),
        (r"\tfrac{1}{2}", r"\frac{1}{2}"),
        (r"\frac 1 2", r"\frac{1}{2}"),
        (r"\frac{1}{2}.", r"\frac{1}{2}"),
        (r"\frac123", r"\frac123"),
        (r"\sqrt2", r"\sqrt{2}"),
        ("1,234,567.50", "1234567.5"),
        ("1{,}234", "1234"),
        (r"1\,234", "1234"),
        ("1,2", "1,2"),
        ("1, 2", "1,2"),
        ("1, 234", "1, 234"),
        ("1 ,234", "1, 234"),
        ("$1, 234$", "1, 234"),
        (r"$\text{1, 234}$", "1, 234"),
        (r"1,\,234", "1, 234"),
        (r"1,\quad 234", "1, 234"),
        ("1,234, 567", "1,234, 567"),
        ("(1, 234)", "(1,234)"),
        (r"\left( 1 , 2 \right]", "(1,2]"),
        ("[1,2]", "[1,2]"),
        (r"\{1, 2\}", r"\{1,2\}"),
        ("0,5", "0,5"),
        ("1,00", "1,00"),
        ("01", "1"),
        ("1.0", "1"),
        (".50", "0.5"),
        ("5.", "5"),
        ("-0.0", "0"),
        ("-0.10", "-0.1"),
        ("−3", "-3"),
        ("- 3", "-3"),
        ("+5", "5"),
        ("$5", "5"),
        (r"\$5", "5"),
        (r"$\$1,234.00$", "1234"),
        (r"-\$5", "-5"),
        (r"\$x", r"\$x"),
        ("€5", "€5"),
        ("50 \\%", "50%"),
        ("$$5$$", "5"),
        (r"\(5\)", "5"),
        (r"\[ 5 \]", "5"),
        (r"\(1\), \(2\)", "1,2"),
        ("$x$ and $y$", "x and y"),
        ("**5**", "5"),
        (r"\textbf{(B)}", "B"),
        ("( B )", "B"),
        ("B.", "B"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90"),
        ("90°", "90"),
        (r"2 \cdot 3", "2*3"),
        (r"\leftarrow x", r"\leftarrow x"),
        (r"5\text{ cm}", "5cm"),
        (r"5 \text{cm}", "5cm"),
        ("x = 5", "x=5"),
        ("Yes", "Yes"),
        ("3:15", "3:15"),
        ("12 3", "12 3"),
        ("...", "."),
        ("$", "$"),
    ],
)
def test_normalise(answer: str, expected: str) -> None:
    assert normalise(answer) == expected


@given(st.text("0123 ,.-+$\\{}()%ab"))
def test_normalising_twice_changes_nothing(answer: str) -> None:
    assert normalise(normalise(answer)) == normalise(answer)


@pytest.mark.parametrize("character", r"½∞−×²₀√°$\ ,;.{}()[]%1*~^_-=ax")
def test_normalising_is_linear(character: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Quadratic, it would take minutes, were it not for the limit on what is looked at.
    assert timed(normalise, character * 80_000) < 5
    monkeypatch.setattr(_notation, "_LONGEST", 80_000)
    assert timed(normalise, character * 80_000) < 5


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4))
def test_the_value_of_a_number_is_kept(number: Any) -> None:
    assert float(normalise(f"$ {number:+,} $")) == float(number)


# ---- which are the same --------------------------------------------------------------------------

KINDS: dict[str, dict[str, list[tuple[str, str]]]] = json.loads(
    (Path(__file__).parent / "data" / "answers.json").read_text(encoding="utf-8")
)
del KINDS["about"]


def pairs(relation: str) -> Any:
    """Two parameters a pair of a kind: each must hold in both directions."""
    return pytest.mark.parametrize(
        ("a", "b"),
        [
            pytest.param(*pair, id=f"{kind}: {pair[0]} ~ {pair[1]}")
            for kind, relations in KINDS.items()
            for one in relations.get(relation, [])
            for pair in (one, one[::-1])
        ],
    )


def test_the_table_has_pairs_of_every_kind() -> None:
    relations = {"same", "same by algebra", "different"}
    for kind, found in KINDS.items():
        assert relations >= found.keys() >= {"same", "different"}, kind
    counts = {r: sum(len(found.get(r, [])) for found in KINDS.values()) for r in relations}
    assert all(count >= 80 for count in counts.values()), counts


@pytest.mark.parametrize("math", [False, True])
@pairs("same")
def test_the_same_without_algebra(a: str, b: str, math: bool) -> None:
    assert same(a, b, math=math)


@pairs("same by algebra")
def test_the_same_by_algebra(a: str, b: str) -> None:
    assert same(a, b, math=True)
    assert not same(a, b, math=False)


@pytest.mark.parametrize("math", [False, True])
@pairs("different")
def test_different(a: str, b: str, math: bool) -> None:
    assert not same(a, b, math=math)


# ---- the book ------------------------------------------------------------------------------------


def test_the_first_seen_represents_all_that_are_the_same() -> None:
    book = AnswerBook()
    assert book.canonical(" .50 ") == ".50"
    for answer in ("0.5", "1/2", r"$\frac{1}{2}$", r"\dfrac12", "2/4", r"\frac{\sqrt{4}}{4}"):
        assert book.canonical(answer) == ".50"
    assert book.canonical("0.51") == "0.51"


@pytest.mark.parametrize("answer", [None, "", " \n"])
def test_nothing_is_no_answer(answer: str | None) -> None:
    assert AnswerBook().canonical(answer) is None


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (["50%", "50", "0.5"], ["50%", "50%", "0.5"]),
        (["50%", "0.5", "50"], ["50%", "50%", "50"]),
        (["0.5", "50%", "50"], ["0.5", "0.5", "50"]),
        (["50", "0.5", "50%"], ["50", "0.5", "50"]),
        (["50%", "5000%", "50"], ["50%", "5000%", "50%"]),
    ],
)
@pytest.mark.parametrize("math", [True, False])
def test_a_percentage_does_not_make_two_numbers_one(
    seen: list[str], expected: list[str], math: bool
) -> None:
    book = AnswerBook(math=math)
    assert [book.canonical(answer) for answer in seen] == expected
    assert [book.canonical(answer) for answer in seen] == expected


def test_thousands_of_traces_cost_few_comparisons() -> None:
    book = AnswerBook()
    formulas = [r"\sqrt{2}", r"2\sqrt{2}", r"\pi", "x+1", r"\frac{\sqrt{2}}{3}"]
    spellings = ["{}", "${}$", " {}.", r"\({}\)"]
    numbers = [f"{n}.0" for n in range(20)]
    for _ in range(200):
        for formula in formulas:
            for spelling in spellings:
                assert book.canonical(spelling.format(formula)) == formula
        for number in numbers:
            assert book.canonical(number) == number
            assert book.canonical(number.removesuffix(".0")) == number
        assert book.canonical("No idea") == "No idea"
    assert book.comparisons == 0
    assert book.timeouts == 0


def test_numbers_and_words_are_never_compared() -> None:
    book = AnswerBook()
    for n in range(100):
        book.canonical(f"{n}/7")
        book.canonical(f"{n}%")
        book.canonical("word" + "s" * n)
    assert book.comparisons == 0


def test_without_algebra_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_helpers, "run", None)
    book = AnswerBook(math=False)
    assert book.canonical(r"\sqrt{4}") == r"\sqrt{4}"
    assert book.canonical("2") == "2"
    assert book.comparisons == 0


def test_a_comparison_that_hangs_times_out_and_the_next_one_works() -> None:
    book = AnswerBook(timeout=1.0)
    assert book.canonical("7+x") == "7+x"
    assert book.canonical("7") == "7"
    assert book.canonical(HANGS) == HANGS
    assert book.timeouts == 1
    for n in range(20):
        assert book.canonical(f"x+{n}+1") == ("7+x" if n == 6 else f"x+{n}+1")
    assert book.canonical(f"${HANGS}$") == HANGS
    assert book.timeouts == 1


def test_an_answer_that_hangs_does_so_once_even_if_it_came_first() -> None:
    book = AnswerBook(timeout=1.0)
    others = ["8^{8^{8^{9}}}", "7", "8", "9", r"\sqrt{49}"]
    found = [book.canonical(answer) for answer in (HANGS, *others)]
    assert found[0] == HANGS
    assert found[2:] == ["7", "8", "9", "7"]
    assert 0 < book.timeouts <= 4


def test_math_needs_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_has_algebra", lambda: False)
    with pytest.raises(MissingExtra, match=r"math-verify.*pip install 'math-verify.*extra math of"):
        AnswerBook(math=True)
    book = AnswerBook()
    assert book.canonical(r"\sqrt{4}") == r"\sqrt{4}"
    assert book.canonical("2") == "2"


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_timeout_that_is_none(timeout: float) -> None:
    with pytest.raises(InvalidInput, match=f"timeout={timeout}: must be above 0 seconds"):
        AnswerBook(timeout=timeout)


def test_math_is_one_of_three() -> None:
    with pytest.raises(InvalidInput, match="math='yes'"):
        AnswerBook(math="yes")  # type: ignore[arg-type]


def test_a_book_under_threads() -> None:
    book = AnswerBook()
    forms = [r"\sqrt{4}+{}", "2+{}", "{}+2", r"\frac{4}{2}+{}"]
    questions = [f.replace("{}", f"x^{n}") for f in forms for n in range(2, 6)] * 25
    barrier = threading.Barrier(8)

    def ask(worker: int) -> list[str | None]:
        barrier.wait()
        mine = questions[worker * 7 :] + questions[: worker * 7]
        return [book.canonical(answer) for answer in mine]

    with ThreadPoolExecutor(8) as pool:
        found = [set(answers) for answers in pool.map(ask, range(8))]
    assert all(len(one) == 4 for one in found)
    assert len(set.union(*found)) == 4


# ---- marks, haste and trouble --------------------------------------------------------------------


def test_an_answer_is_marked_without_regard_to_the_others() -> None:
    assert marks(["10", "10", "0.1", "11"], "10%") == {"10": True, "0.1": True, "11": False}


def test_512_different_formulas_are_named_in_seconds() -> None:
    book = AnswerBook(math=True)
    formulas = [rf"\frac{{x^{n % 7 + 2}+{n}}}{{{n % 5 + 2}}}" for n in range(512)]
    started = time.monotonic()
    assert [book.canonical(formula) for formula in formulas] == formulas
    assert time.monotonic() - started < 60
    assert book.trouble is None


def test_hurrying_ends_a_comparison_that_hangs() -> None:
    book = AnswerBook(math=True, timeout=60.0)
    timer = threading.Timer(0.5, book.hurry)
    timer.start()
    assert book.canonical(HANGS) == HANGS
    assert book.canonical("1/2") == "1/2"
    timer.join()


def test_hurrying_frees_all_threads_that_wait() -> None:
    book = AnswerBook(math=True, timeout=60.0)
    questions = [HANGS, "x+1", r"\sqrt{3}", "2"]
    with ThreadPoolExecutor(len(questions)) as pool:
        found = [pool.submit(book.canonical, question) for question in questions]
        time.sleep(0.5)
        assert not found[0].done()  # And who comes after it waits for it.
        hurried = time.monotonic()
        book.hurry()
        assert [one.result() for one in found] == questions
        assert time.monotonic() - hurried < 2


def test_a_pattern_that_backtracks_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_MATCHING", 0.5)
    with pytest.raises(InvalidInput, match=r"took more than 0\.5 s"):
        extractor("regex:(a+)+$")("a" * 40 + "b")


def test_an_empty_box_does_not_beat_a_real_one() -> None:
    for empty in (r"\boxed{}", r"\boxed{ }", r"\boxed{\text{}}"):
        assert boxed(rf"so \boxed{{42}}. (within {empty})") == "42"


def test_a_helper_that_does_not_start_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = _helpers._Pool()
    monkeypatch.setattr(_helpers._Pool, "_shared", pool)
    monkeypatch.setattr(answers, "_PROFILES", {})
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    book = AnswerBook(math=True)
    assert book.canonical(r"\sqrt{4}") == r"\sqrt{4}"
    assert book.trouble is not None
    assert "does not start" in book.trouble
    pool.close()


# ---- the helper processes ------------------------------------------------------------------------


def python(where: Path, script: str) -> subprocess.Popen[str]:
    (where / "queue.py").write_text("raise SystemExit('the wrong queue')")
    (where / "sub").mkdir()
    (where / "sub" / "script.py").write_text(script)
    env = {**os.environ, "PYTHONPATH": str(Path(answers.__file__).parent.parent)}
    arguments = [sys.executable, "sub/script.py"]
    return subprocess.Popen(arguments, cwd=where, env=env, stdout=subprocess.PIPE, text=True)


def test_a_script_without_a_main_guard_beside_a_file_named_queue(tmp_path: Path) -> None:
    script = (
        "print('once')\nfrom deepconf.answers import same\nprint(same('1+x', 'x+1', math=True))"
    )
    with python(tmp_path, script) as process:
        assert process.communicate(timeout=60)[0].split() == ["once", "True"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_helper_that_spins_dies_with_its_parent(tmp_path: Path) -> None:
    script = """
import time
from deepconf import _helpers
_helpers.run("deepconf._equivalence:profile", "x", limit=60).result()
for _ in range(2):
    _helpers.run("deepconf._helpers:last_match", "(a+)+$", 0, 0, "a" * 60 + "b", limit=600)
time.sleep(2)
print(*[h._process.pid for h in _helpers._Pool.shared().helpers if h._process], flush=True)
time.sleep(600)
"""
    with python(tmp_path, script) as process:
        assert process.stdout is not None
        helpers = process.stdout.readline().split()
        assert helpers
        process.kill()
    end = time.monotonic() + 3
    while any(Path("/proc", pid).exists() for pid in helpers) and time.monotonic() < end:
        time.sleep(0.05)
    left = [pid for pid in helpers if Path("/proc", pid, "cmdline").exists()]
    assert [pid for pid in left if Path("/proc", pid, "cmdline").read_bytes()] == []


def test_a_helper_that_is_killed_is_replaced() -> None:
    pool = _helpers._Pool.shared()
    future = _helpers.run("time:sleep", 1, limit=60)
    time.sleep(0.5)
    for helper in pool.helpers:
        if helper._process is not None:
            helper._process.kill()
    assert future.result(timeout=60) is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory has no limit")
@pytest.mark.parametrize(
    "bomb", [("builtins:bytearray", 1 << 40), ("signal:raise_signal", int(signal.SIGKILL))]
)
def test_a_memory_bomb_takes_only_its_helper_and_counts_as_different(
    bomb: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _helpers.run

    def run_or_burst(name: str, formula: str, *arguments: Any, limit: float) -> Any:
        call = bomb if formula == "bomb+1" else (name, formula, *arguments)
        return run(*call, limit=limit)

    monkeypatch.setattr(_helpers, "run", run_or_burst)
    monkeypatch.setattr(answers, "_PROFILES", {})
    monkeypatch.setattr(answers, "is_formula", lambda _: True)
    book = AnswerBook(math=True)
    formulas = ["x+1", "bomb+1", "1+x", "$bomb+1$", "x+2"]
    assert [book.canonical(formula) for formula in formulas] == [
        "x+1",
        "bomb+1",
        "x+1",
        "bomb+1",
        "x+2",
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_has_helpers_of_its_own() -> None:
    assert same("x+1", "1+x", math=True)
    child = os.fork()
    if child == 0:
        try:
            right = same("x+2", "2+x", math=True)
            _helpers._Pool.shared().close()
        except BaseException:
            right = False
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert same("x+3", "3+x", math=True)
