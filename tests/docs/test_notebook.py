"""The notebook runs from top to bottom, and what it prints is what the report and README say."""

import json
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs/notebooks/organism.ipynb"


def test_it_runs_and_says_what_the_tables_say(monkeypatch, capsys):
    matplotlib.use("Agg")
    monkeypatch.chdir(NOTEBOOK.parent)  # where Jupyter starts it
    cells, space = json.loads(NOTEBOOK.read_text())["cells"], {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None, "committed without outputs"
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), space)
    told = capsys.readouterr().out
    assert "projected                5 seeds   hack   0.2%   solved  57.3%" in told
    assert space["outcomes"]["projected"] == pytest.approx(2 / 252) and space["outcomes"]["random_direction"] == 1.0
    assert len(space["axes"].lines) == 15, "every seed is drawn"
    space["plt"].close("all")
