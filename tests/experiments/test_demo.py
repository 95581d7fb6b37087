"""The end of `python -m experiments demo`: the terminal shows the numbers of the report it has just written."""

from __future__ import annotations

import re
from types import SimpleNamespace

from synthetic_runs import Plan, write

from experiments import demo
from experiments.report import build


def test_the_terminal_shows_the_reports_own_rows_and_every_phase(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "draw", lambda arms, registered: [])
    write(tmp_path / "runs", Plan(arm="vanilla"))
    write(tmp_path / "runs", Plan(arm="projected", hack=[0.0, 0.1, 0.0, 0.1], cos=[0.1, 0.2, 0.1, 0.2]))
    write(tmp_path / "runs", Plan(arm="rebound"))  # there, and not asked for
    wanted = [SimpleNamespace(arm="vanilla"), SimpleNamespace(arm="projected")]
    arms = demo._report(wanted, tmp_path / "runs", tmp_path / "out")
    demo._closing(arms, tmp_path / "runs", tmp_path / "out", 90.0)
    shown = [re.split(r"\s*│\s*", line.strip("│ ")) for line in capsys.readouterr().out.splitlines() if "│" in line]
    page = (tmp_path / "out" / "report.md").read_text()
    headline = [
        line.strip("| ").split(" | ")[:-1] for line in page.splitlines() if re.match(r"\| (vanilla|projected) \|", line)
    ]
    assert shown[:2] == [row[: 1 + demo.ON_A_TERMINAL] for row in headline[:2]]
    assert [row[0] for row in shown] == ["vanilla", "projected"] * 2
    assert all(float(cell) >= 0 for row in shown[2:] for cell in row[1:])
