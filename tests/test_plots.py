"""Pictures: what is in them, and that results of any kind make one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import deepconf
import numpy as np
import pytest
from conftest import TINY
from deepconf.errors import InvalidInput, MissingExtra
from recorded_engine import RecordedEngine, recorded

matplotlib = pytest.importorskip("matplotlib")
RECORDING = TINY / "calibration.parquet"
POLICY = {"budget": 16, "warmup": 4, "window": 32, "tail": 96, "top_logprobs": 10}


@pytest.fixture(autouse=True)
def _without_a_screen() -> Iterator[None]:
    import matplotlib.pyplot as plt

    with matplotlib.rc_context({"backend": "Agg"}):
        yield
    plt.close("all")


def drawn(ax: Any) -> set[str]:
    """The names in the legend, once everything has been drawn."""
    ax.figure.canvas.draw()
    legend = ax.get_legend()
    return set() if legend is None else {text.get_text() for text in legend.get_texts()}


def crosses(ax: Any) -> list[tuple[float, float]]:
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in ax.get_lines()
        if line.get_marker() == "x"
    ]


def think(traces: list[Any], **settings: Any) -> deepconf.Result:
    policy = deepconf.Policy.low(
        **{"budget": len(traces), "window": 4, "tail": 4, "top_logprobs": 5, **settings}
    )
    with RecordedEngine(traces) as engine:
        return deepconf.DeepThink(engine, policy).run("?")


def test_a_result_shows_where_traces_were_stopped() -> None:
    traces = [recorded(9.0 - at / 4, r"$\frac$ 1", tokens=40) for at in range(8)]
    for values, _, _ in traces[4:]:
        values[20:] -= 3.0
    result = think(traces, warmup=4, keep=0.75, consensus=1.0, stop="budget")
    stopped = [trace for trace in result.traces if trace.status == "stopped"]
    assert stopped
    curves, ballots = result.plot()
    assert drawn(curves) == {"did not vote", "stopped", "voted", "threshold"}
    assert {x for x, _ in crosses(curves)} == {trace.stop_token for trace in stopped}
    assert all(y < result.threshold for _, y in crosses(curves))
    assert len(ballots.patches) == len(result.vote.ballots)
    assert drawn(ballots) == set()


@pytest.mark.parametrize("tokens", [0, 1, 3, 4, 5000])
@pytest.mark.filterwarnings("ignore::deepconf.DeepConfWarning")
def test_results_of_any_length_are_drawn(tokens: int) -> None:
    result = think([recorded(9.0, None, tokens=tokens)] * 4, warmup=2)
    for ax in result.plot():
        drawn(ax)
    (line, *_) = [line for line in result.plot()[0].get_lines() if tokens == 5000] or [None]
    if line is not None:
        assert len(line.get_xdata()) <= 500


def test_long_traces_keep_their_lowest_group() -> None:
    from deepconf._plots import _groups

    values = np.random.default_rng(0).uniform(5, 20, 40_000).astype(np.float32)
    tokens, groups = _groups(values, 16)
    assert len(tokens) <= 500
    assert groups.min() == pytest.approx(deepconf.score([values], window=16).lowest_group[0])
    assert tokens[0] == 15


def test_results_are_drawn_where_they_are_told_to() -> None:
    import matplotlib.pyplot as plt

    result = think([recorded(9.0, "7")] * 4, warmup=2)
    _, axes = plt.subplots(2)
    assert result.plot(axes).tolist() == axes.tolist()
    with pytest.raises(InvalidInput, match="axes: there are 1, and must be two"):
        result.plot(axes[:1])
    _, ax = plt.subplots()
    traces = deepconf.Traces.read(RECORDING).question("calibration-025")
    assert traces.plot(window=32, ax=ax) is ax
    assert drawn(ax) == {"right", "wrong"}


def test_traces_are_drawn_with_a_window_that_fits() -> None:
    traces = deepconf.Traces.read(RECORDING).question("calibration-025")
    recorded = traces.plot().get_lines()[0].get_xdata()
    traces.settings = {}
    fitted = traces.plot().get_lines()[0].get_xdata()
    assert len(recorded) > 1
    assert recorded[0] == 31
    assert fitted[0] in (15, 31)


def test_traces_show_what_a_threshold_would_stop() -> None:
    traces = deepconf.Traces.read(RECORDING).question("calibration-025")
    lowest = traces.score(window=32).lowest_group
    ax = traces.plot(window=32, threshold=15.0)
    assert len(crosses(ax)) == (lowest < 15.0).sum()
    assert drawn(ax) == {"right", "wrong", "threshold"}


def test_a_replay_shows_policies_beside_majority() -> None:
    base = {"low": deepconf.Policy.low(**POLICY), "high": deepconf.Policy.high(**POLICY)}
    played = deepconf.replay(RECORDING, base, repeats=2)
    ax = played.plot()
    assert drawn(ax) == {"plain majority", "majority with early consensus", "low", "high"}
    assert "tokens" in ax.get_xlabel()
    assert "majority at the same tokens" in played._repr_html_()
    grid = deepconf.grid(base, keep=[0.1, 0.3, 0.5, 0.7, 0.9], warmup=[2, 4])
    many = deepconf.replay(RECORDING, grid, repeats=1).plot()
    assert f"{len(grid)} policies" in drawn(many)


def test_a_report_shows_every_row() -> None:
    from deepconf.evaluate import evaluate

    settings = {"window": 4, "tail": 4, "top_logprobs": 5, "budget": 8}
    policies = {
        "offline": deepconf.Policy.offline(**settings),
        "low": deepconf.Policy.low(warmup=2, **settings),
    }
    answers = ["7", "7", "7", "8", "7", "8", "7", "7"]
    with RecordedEngine([recorded(9.0, answer, tokens=8) for answer in answers]) as engine:
        report = evaluate(engine, [{"question": "?", "answer": "7"}], policies)
    assert {"pass@1", "majority", "offline", "low"} <= drawn(report.plot())
    page = report._repr_html_()
    assert all(row.method in page for row, _ in report.shown())
    assert not report.closing or report.closing.split()[0] in page
    assert repr(report).startswith("<deepconf.Report recorded: 1 question, ")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(MissingExtra, match="package matplotlib"):
        deepconf.Traces.read(RECORDING).question("calibration-025").plot(window=32)
