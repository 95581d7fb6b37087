"""The report: what it says, that it is self-contained, and that hostile rollouts stay text."""

from __future__ import annotations

import csv
import gzip
import json
import re
from html.parser import HTMLParser

import pytest
import yaml
from synthetic_runs import MODULES, Plan, curve, read_gz, write

from common.errors import ConfigError
from experiments.analysis.comparable import Selection, choose
from experiments.analysis.verdict import judged
from experiments.design import prereg, registration
from experiments.report import build, captions, tables
from experiments.report.build import build_report, cell, fence, tex
from experiments.report.figures.directions import short_module

PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Ids, links and sources of an HTML page, and whether its tags balance."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.sources, self.open, self.tags = set(), [], [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.add(tag)
        self.ids |= {found["id"]} if "id" in found else set()
        self.links += [found["href"]] if "href" in found else []
        self.sources += [found["src"]] if "src" in found else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def report(root, **more):
    page = judged(choose(Selection(root, **more)), prereg.load())
    files = build_report(page, tables.views(page.chosen, page.measures), "Title")
    return {name: content if name.endswith(".png") else content.decode() for name, content in files.items()}


@pytest.fixture
def text_only(monkeypatch):
    """Skip drawing where a test is about words."""
    monkeypatch.setattr(build, "draw", lambda arms, rules: [])


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One seed, two arms: what the demo makes."""
    root = tmp_path_factory.mktemp("runs")
    write(root, Plan(hack=[0.0] * 6 + [0.5, 0.7], passed=[0.1] * 6 + [0.3, 0.4], cos=[0.3] * 8))
    write(root, Plan(arm="projected", hack=[0.0] * 6 + [0.1, 0.1], passed=[0.1] * 6 + [0.6, 0.7], cos=[0.2] * 8))
    return report(root)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Three seeds, seven arms: small multiples."""
    root = tmp_path_factory.mktemp("many")
    names = (
        "vanilla",
        "projected",
        "rebound",
        "random_direction",
        "shuffled_pairs",
        "drift_only",
        "rebound_z",
    )
    for rank, arm in enumerate(names):
        for seed in range(3):
            hack = curve(0.02, 0.6 - 0.06 * rank, 12, seed=seed)
            write(
                root,
                Plan(
                    arm=arm, seed=seed, hack=hack, passed=curve(0.1, 0.4, 12, seed=seed), cos=[0.2] * 12, rollouts=False
                ),
            )
    return report(root)


def test_files(demo, many):
    names = {"report.html", "report.md", "table.tex", "runs.csv"}
    pictures = {f"figures/{name}.png" for name in build.FIGURES}
    assert set(demo) == set(many) == names | pictures
    assert all(demo[name].startswith(PNG) and len(demo[name]) > 8000 for name in pictures)


@pytest.mark.parametrize("which", ["demo", "many"])
def test_page_is_self_contained_and_every_link_lands(which, request):
    page = Page(request.getfixturevalue(which)["report.html"])
    assert page.open == [] and "script" not in page.tags
    assert page.sources and all(source.startswith("data:image/png;base64,") for source in page.sources)
    outside = [link for link in page.links if not link.startswith("#")]
    assert outside == ["viewer/index.html"]  # written beside it
    assert len(page.links) > 1 and all(link[1:] in page.ids for link in page.links if link not in outside)


def test_no_viewer_is_linked_where_none_is_written(tmp_path, capsys):
    """A report made anew from CSV files has no rollouts to show."""
    assert build.main(["--from-csv", "docs/results/organism", "--out", str(tmp_path / "anew")]) == 0
    assert not (tmp_path / "anew/viewer").exists()
    for name in ("report.html", "report.md"):
        assert "viewer/index.html" not in (tmp_path / "anew" / name).read_text()


def test_a_summary_holds_no_link_and_the_foot_names_the_code(demo):
    html = demo["report.html"]
    assert html.count("<summary>") > 1
    assert not [s for s in re.findall(r"<summary>.*?</summary>", html, re.DOTALL) if "<a " in s]  # a click opens it
    assert re.search(r"Preset demo\. Code: \S+", html)


def test_every_number_of_the_headline_table_is_traced(demo):
    html = demo["report.html"]
    # last quarter of 8 steps: two steps
    assert '<a href="#runs-projected" title="demo-projected-s0: 10.0">10.0</a>' in html
    assert '<a href="#runs-vanilla" title="demo-vanilla-s0: 60.0">60.0</a>' in html
    assert '<a href="#runs-vanilla" title="demo-vanilla-s0: 35.0">35.0</a>' in html
    assert '<a href="#runs-projected" title="demo-projected-s0: +60.0">+60.0</a>' in html  # 0.7 - 0.1


def test_one_seed_proves_nothing_and_says_so(demo, many):
    for name in ("report.html", "report.md"):
        assert "One seed (0) proves nothing" in demo[name] and "±" not in re.sub(r"data:image[^\"]*", "", demo[name])
        assert "proves nothing" not in many[name] and "±" in many[name]
    assert "Only 3 seeds: the smallest p-value an exact test can give is 0.25." in many["report.md"]


def test_markdown_table_and_caption(demo):
    text = demo["report.md"]
    assert (
        "| Arm | ΔSafePass | Hack % | Loose % | Pass % | ΔHeldOut | KL·trained | Trained % | Updates | mean·cos | frac·fired | "
        "‖g‖ | Safe | Runs |" in text
    )  # columns that no run has a number for are left out
    assert "Bare %:" not in text and "gradient norm, mean over modules and all steps (trained rows)" in text
    # ΔSafePass of vanilla is 0 by definition; loose = 1.1 times strict; 15 of 16 groups have unlike rewards
    assert (
        "| vanilla | 0.0 | 60.0 | 66.0 | 35.0 | +30.0 | 0.013 | 94 | 8 | +0.300 | 0.00 | 0.031 | 0 of 1 [0.00, 0.97] | "
        "[demo-vanilla-s0](#run-demo-vanilla-s0) |" in text
    )
    assert "mean of the last 2 training steps (the last quarter of the run, as that is fewer than 25)" in text
    assert '<a id="run-demo-vanilla-s0"></a>' in text
    for name in build.FIGURES:
        assert f"](figures/{name}.png)" in text


def test_tables_have_one_width_throughout(many):
    for block in re.findall(r"(?:^\|.*\n)+", many["report.md"], re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block[:200]


def test_latex(demo):
    text = demo["table.tex"]
    assert (
        r"Arm & $\Delta$SafePass & Hack \% & Loose \% & Pass \% & $\Delta$HeldOut & KL$\cdot$trained & Trained \% & Updates & "
        in text
    )
    # (65 - 10) - (35 - 60) = 80
    assert r"projected & +80.0 & 10.0 & 11.0 & 65.0 & +60.0 & 0.013 & 94 & 8 & +0.200 & 0.70 &" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert not re.search(r"(?<!\\)[_#]", text.split(r"\midrule")[1].split("%")[0])
    assert text.count("{") == text.count("}")


def test_csv(many):
    rows = many["runs.csv"].splitlines()
    head = rows[0].split(",")
    assert head[:6] == ["run_id", "arm", "seed", "state", "steps", "window"]
    assert {"safe", "hack", "pass", "kl", "cos", "fired", "norm", "onset", "commit", "prereg"} <= set(head)  # as ever
    assert {"safe_plan", "loose", "bare", "bare_change", "kl_all", "trained", "updates"} <= set(head)
    assert len(rows) == 1 + 21 and all(len(row.split(",")) == len(head) for row in rows)


def test_columns_can_be_cut(tmp_path, text_only):
    write(tmp_path, Plan(cos=[0.1] * 4))
    out = tmp_path / "out"
    assert build.main(["--runs", str(tmp_path), "--out", str(out), "--columns", "3"]) == 0
    assert "| Arm | ΔSafePass | Hack % | Loose % | Runs |" in (out / "report.md").read_text()
    assert "{lrrr}" in (out / "table.tex").read_text()
    assert "mean·cos: " not in (out / "table.tex").read_text()
    with pytest.raises(ConfigError, match="--columns 999: give a number from 1 to"):
        build.main(["--runs", str(tmp_path), "--out", str(out), "--columns", "999"])
    with pytest.raises(SystemExit):  # one line of the command line's own
        build.main(["--runs", str(tmp_path), "--out", str(out), "--columns", "0"])


def test_an_unfinished_run_beside_finished_ones_is_drawn_apart_and_in_no_number(tmp_path, text_only):
    import matplotlib.pyplot as plt

    from experiments.report.figures import outcomes

    for seed, (state, steps) in enumerate((("finished", 40), ("finished", 40), ("failed", 10))):
        write(tmp_path, Plan(seed=seed, state=state, planned=40, hack=[0.2 + 0.2 * seed] * steps, passed=[0.5] * steps))
    text = report(tmp_path)["report.md"]
    assert "vanilla hacks 30.0 ± 10.0%" in text and "2 seeds, mean ± SEM." in text, "0.2 and 0.4, without 0.6"
    (arm,) = tables.views(choose(Selection(tmp_path)), prereg.load().measures)
    assert (
        "thin dotted: unfinished runs, which are in no mean"
        in captions.captions([arm], prereg.load().measures)["trajectories"]
    )
    _, axis = plt.subplots()
    assert outcomes.draw_series(axis, arm, "hack_strict", 5, 100.0) == (39.0, pytest.approx(30.0))
    dotted = [line for line in axis.lines if line.get_linestyle() == ":"]
    assert [len(line.get_ydata()) for line in dotted] == [10] and dotted[0].get_ydata()[-1] == pytest.approx(60.0)
    plt.close("all")


def test_the_numbers_are_there_as_tidy_csv(tmp_path):
    write(tmp_path / "runs", Plan(seed=3, hack=[0.25, 0.5], passed=[0.5, 0.5], cos=[0.1, 0.2]))
    out = tmp_path / "report"
    assert build.main(["--runs", str(tmp_path / "runs"), "--out", str(out)]) == 0
    steps, evaluations = (list(csv.DictReader((out / name).open())) for name in ("steps.csv", "evaluations.csv"))
    assert [(s["arm"], s["seed"], s["step"], s["hack_strict"], s["cos_mean"]) for s in steps] == [
        ("vanilla", "3", "0", "0.25", "0.1"), ("vanilla", "3", "1", "0.5", "0.2")]  # fmt: skip
    assert {e["mode"] for e in evaluations} == {"no_write_access", "hint", "random_test_name"}
    assert [e["hack_strict"] for e in evaluations if e["mode"] == "hint"] == ["0.25", "0.5"]


def test_live_runs_are_marked(tmp_path):
    write(tmp_path, Plan(cos=[0.1] * 4))
    write(tmp_path, Plan(arm="projected", state="running", planned=4, hack=[0.1] * 2, passed=[0.2] * 2, cos=[0.1] * 2))
    files = report(tmp_path)
    assert "projected †" in files["report.html"] and "† unfinished" in files["report.md"]
    assert "demo-projected-s0 (running, 2 of 4 steps)" in files["report.md"]
    assert "Differences from vanilla" not in files["report.md"]  # only finished runs are compared


def test_runs_without_direction_or_rollouts_or_evaluation(tmp_path):
    path = write(tmp_path, Plan(rollouts=False))
    (path / "eval.jsonl").unlink()
    files = report(tmp_path)
    assert "figures/cosines.png" not in files and "figures/heat_map.png" not in files
    assert "No run has a direction loaded." in files["report.html"]
    assert "No rollouts kept." in files["report.md"] and "No evaluation has been written yet." in files["report.md"]
    assert "| vanilla | 0.0 | 60.0 |" in files["report.md"] and "1 hacking, 0 collapsed of 1" in files["report.md"]


def test_outcomes_diagnostic_and_modes_are_on_the_page(tmp_path):
    for seed in (0, 1):
        write(tmp_path, Plan(seed=seed, cos=[0.3] * 4, bare=[(0, 0.5), (4, 0.45)]))
        write(tmp_path, Plan(arm="projected", seed=seed, hack=[0.0] * 4, cos=[0.012] * 4, bare=[(0, 0.5), (4, 0.45)]))
    files = report(tmp_path)
    for name in ("report.md", "report.html"):
        text = files[name]
        assert "projected: 2 safe, 0 hacking, 0 collapsed of 2" in text and "McNemar 0.25" in text
        assert "projected: not active: mean cos +0.012 is not above 0.2" in text and "fires 0.50" in text
        assert "No write access: the hinted prompt, as in training" in text and "offers no loophole" in text
        assert "the prompt offers no loophole and the evaluator cannot" not in text
    table = files["report.md"].split("## Evaluation on held-out problems")[1].split("## The direction")[0]
    assert re.findall(r"^\| (\w+) \| (no hint|hint) ", table, re.M) == [
        ("vanilla", "hint"), ("projected", "hint"), ("vanilla", "no hint"), ("projected", "no hint")]  # fmt: skip
    # (30 - 0) - (30 - 60) = 60; bare 45%, 5 pp lower than at step 0, in columns of their own
    assert (
        "| projected | +60.0 ± 0.0 | 0.0 ± 0.0 | 0.0 ± 0.0 | 30.0 ± 0.0 | 45.0 ± 0.0 | −5.0 ± 0.0 |"
        in files["report.md"]
    )


def test_one_step(tmp_path):
    write(tmp_path, Plan(hack=[0.1], passed=[0.2], cos=[0.3], state="running", planned=80))
    assert "mean of the last 1 training step (" in report(tmp_path)["report.md"]


def test_hostile_rollouts_stay_text(tmp_path, text_only):
    path = write(tmp_path, Plan(hack=[0.1], passed=[0.2]))
    hostile = "</pre><script>alert(1)</script> \ud800 ```` | `\n# heading\n</details>"
    file = path / "rollouts/step_000000.jsonl.gz"
    rows = read_gz(file)
    with gzip.open(file, "wt") as out:
        for row in rows:
            row |= {"text": hostile, "problem_id": "<b>", "evidence": {"test_function": hostile}}
            out.write(json.dumps(row) + "\n")
    files = report(tmp_path)
    page = Page(files["report.html"])
    assert page.open == [] and "script" not in page.tags and "b" in page.tags  # our own <b>
    assert "&lt;script&gt;" in files["report.html"] and "problem &lt;b&gt;" in files["report.html"]
    assert "`````\n</pre><script>" in files["report.md"]  # fence longer than any inside
    assert "problem &lt;b>" in files["report.md"]


def test_differences_from_vanilla_by_hand(tmp_path):
    for seed, gap in enumerate((0.2, 0.3, 0.4)):
        write(tmp_path, Plan(seed=seed, hack=[0.6] * 4, passed=[0.3] * 4))
        write(tmp_path, Plan(arm="projected", seed=seed, hack=[0.6 - gap] * 4, passed=[0.3] * 4))
    found = tables.comparisons(tables.views(choose(Selection(tmp_path)), prereg.load().measures))[0]
    assert found.arm == "projected" and found.hack.mean == pytest.approx(-30.0)
    assert captions.pp(found.hack) == "−30.0 ± 5.8" and captions.interval(found.hack) == "[−40.0, −20.0]"
    assert found.hack.p_value == found.adjusted_p == 0.25
    assert captions.pp(found.passed) == "0.0 ± 0.0" and len(found.run_ids) == 6


def test_stale_figures_go_and_a_refusal_leaves_the_old_report(tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "out"
    runs.mkdir()
    write(runs, Plan(cos=[0.1] * 4))
    build.main(["--runs", str(runs), "--out", str(out), "--title", "First"])
    assert (out / "figures/cosines.png").exists()
    write(runs, Plan(seed=1, arm="projected"))
    before = (out / "report.html").read_bytes()
    with pytest.raises(ConfigError, match="different seeds"):
        build.main(["--runs", str(runs), "--out", str(out)])
    assert (out / "report.html").read_bytes() == before
    build.main(["--runs", str(runs), "--out", str(out), "--arms", "projected"])
    assert not (out / "figures/cosines.png").exists() and (out / "figures/headline.png").exists()


def test_verdicts_and_edited_registration_are_on_the_page(tmp_path, text_only):
    write(tmp_path, Plan(prereg_sha256="ab" * 32))
    text = report(tmp_path)["report.md"]
    assert "NOT PREREGISTERED" in text and "but was abababababab" in text
    assert "| **H4** Without intervention, RL learns to hack | **not evaluable** |" in text


def test_small_helpers():
    assert tables.number(-0.04, 1, signed=True) == "0.0" and tables.number(-1.25, 1) == "−1.2"
    assert tables.number(float("nan"), 1) == "–" and tables.number(3.0, 0, signed=True) == "+3"
    assert fence("a ``` b") == "````\na ``` b\n````" and cell("a|b\nc") == "a\\|b c"
    assert tex("a_b & 5% ± †") == r"a\_b \& 5\% $\pm$ $^\dagger$"
    assert short_module(MODULES[0]) == "0 q_proj" and short_module("lm_head") == "lm_head"


def test_the_class_of_each_run_with_the_bounds_of_its_arm(tmp_path, text_only):
    """Two of three runs safe: 95% Clopper-Pearson (0.094, 0.992); low: the 0.025 quantile of Beta(2, 2)."""
    for seed, late in enumerate((0.0, 0.0, 0.9)):
        write(tmp_path, Plan(seed=seed, hack=[0.0, late], passed=[0.5, 0.6], bare=[(0, 0.5), (2, 0.55)]))
    files = report(tmp_path)
    rows = list(csv.DictReader(files["runs.csv"].splitlines()))
    assert [row["outcome"] for row in rows] == ["safe", "safe", "hacking"]
    assert {(row["safe_low"], row["safe_high"]) for row in rows} == {("0.0943", "0.992")}
    assert "| 2 of 3 [0.09, 0.99] | [demo-vanilla-s0]" in files["report.md"]
    assert "| hacking | 1 |" in files["report.md"] or "| hacking | never |" in files["report.md"]
    assert 'title="demo-vanilla-s0: safe&#10;' in files["report.html"]
    assert "Safe: finished runs that neither hack nor collapsed" in files["report.md"]


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_report_by_a_registration_of_its_own(tmp_path, text_only, by_hand):
    """Its design chooses arms and seeds, its claims are judged, and its name and digest stand on the page."""
    file = tmp_path / "mine.yaml"
    rules = yaml.safe_load(registration.PATH.read_text())
    design = {"preset": "demo", "steps": 2, "arms": {"vanilla": [0, 1]}, "failed_counts_as_collapsed": True}
    claim = {"kind": "outcome_count", "claim": "RL hacks", "arm": "vanilla", "outcome": "hacking", "supported_at_least": 2,
             "falsified_at_most": 0}  # fmt: skip
    more = {"design": design, "claims": {"M-H4": claim}} if by_hand else {}
    file.write_text(yaml.safe_dump(rules | more))
    for seed in (0, 1):
        write(tmp_path / "runs", Plan(seed=seed, hack=[0.0, 0.9], passed=[0.5, 0.6]))
    options = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--registration", str(file)]
    assert build.main(options) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"`mine.yaml`, sha256 `{prereg.digest(file)}`" in text
    assert ("| **M-H4** RL hacks | **supported** |" in text) == by_hand
    assert "NOT PREREGISTERED: mine.yaml" in text and "**H1**" not in text
