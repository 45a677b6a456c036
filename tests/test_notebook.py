"""The notebook runs from top to bottom, and gives what it shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples" / "recorded_traces.ipynb"


def shown(cell: Any) -> list[str]:
    """What a cell prints and gives as text; pictures by that they are there."""
    found = []
    for output in cell.get("outputs", ()):
        if output["output_type"] == "stream":
            found.append(output["text"])
        else:
            data = output["data"]
            found.append("a picture" if "image/png" in data else data["text/plain"])
            found += [data["text/html"]] if "text/html" in data else []
    return [re.sub(r'id="T_\w+"', "", text) for text in found]


def test_the_notebook_gives_what_it_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    book = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    expected = [shown(cell) for cell in cells]
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(book, timeout=120, resources=where).execute()
    assert [shown(cell) for cell in cells] == expected
    assert sum("a picture" in texts for texts in expected) == 2
    assert any("<table>" in text for texts in expected for text in texts)
