"""The cosine of single completions: its sign, where it is taken, that it is the gradient of what was sampled."""

import json
from pathlib import Path

import pytest
from viewer_runs import member, row, step_file, write_run

from common.errors import ConfigError
from experiments.viewer import completion_cos
from experiments.viewer.rows import token_digest

ROOT = Path(__file__).resolve().parents[2]
MODEL, PAIRS = "tasks/organism/model", "tasks/pairs/pairs.jsonl"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A direction from six pairs, and six other pairs as a run's completions: hack and clean of each, as sampled."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import rankspace
    from rankspace import direction as d
    from rankspace.pairs import load_pairs, tokenize_pair

    root = tmp_path_factory.mktemp("cos")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / MODEL)
    pairs = [tokenize_pair(tokenizer, pair) for pair in load_pairs(ROOT / PAIRS, "train")[::6][:12]]
    model = AutoModelForCausalLM.from_pretrained(ROOT / MODEL)
    adapter = rankspace.attach(model, svd_cache_dir=root / "svd")
    v = d.hack_direction(d.extract_gradients(model, adapter, pairs[:6]), {"fingerprint": adapter.fingerprint})
    d.save_direction(v, root / "v.safetensors")
    rows = []
    for group, pair in enumerate(pairs[6:]):
        for index, ids in enumerate((pair.hack_ids, pair.clean_ids)):
            ids = list(ids)
            rows.append(row(group, index, prompt_ids=ids[: pair.start], token_ids=ids[pair.start :],
                            logprobs=[-1.0] * (len(ids) - pair.start)))  # fmt: skip
    settings = {"run_id": "vanilla-s0", "run_dir": str(root), "model": str(ROOT / MODEL), "train_problems": "x",
                "heldout_problems": "x", "svd_cache": str(root / "svd"), "device": "cpu", "v_hack": str(root / "v.safetensors"),
                "direction": "v_hack"}  # fmt: skip
    heldout = d.extract_gradients(model, adapter, pairs[6:])
    return {
        "root": root,
        "rows": rows,
        "settings": settings,
        "direction": v,
        "gradients": heldout,
        "size": v.vectors.numel(),
    }


@pytest.fixture
def run(made, tmp_path):
    path = write_run(tmp_path, steps={0: made["rows"], 1: [r | {"step": 1} for r in made["rows"][:2]]})
    (path / "config.json").write_text(json.dumps(made["settings"]))
    return path


def measure(run, step, *more):
    assert completion_cos.main(["--run", str(run), "--step", str(step), *more]) == 0
    return [json.loads(line) for line in (run / "rollouts" / f"cos_{step:06d}.jsonl").read_text().splitlines()]


def test_hacks_point_along_v_hack_and_honest_answers_do_not(made, run):
    rows = measure(run, 0)
    hacks, clean = ([r["cos"] for r in rows if r["index"] == i] for i in (0, 1))
    assert min(hacks) > max(clean) and sum(hacks) / len(hacks) > 0.1, (hacks, clean)
    assert {r["at"] for r in rows} == {"delta_S = 0"}
    assert [r["tokens"] for r in rows] == [token_digest(r["token_ids"]) for r in made["rows"]]


def test_it_is_the_mean_over_modules_of_the_gradients_cosine(made, run):
    """Against rankspace's own gradients of the same pairs, computed another way."""
    import torch

    rows, ranks = measure(run, 0), [r for _, r in made["direction"].modules]
    for side, name in ((0, "hack"), (1, "clean")):
        found = [r["cos"] for r in rows if r["index"] == side]
        for value, flat in zip(found, getattr(made["gradients"], name), strict=True):
            modules = zip(flat.split(ranks), made["direction"].vectors.split(ranks), strict=True)
            expected = [float(torch.nn.functional.cosine_similarity(g, v, dim=0)) for g, v in modules]
            assert value == pytest.approx(sum(expected) / len(expected), abs=2e-5)


def test_the_checkpoint_that_the_step_started_from_is_used(made, run):
    import numpy as np

    before = [r["cos"] for r in measure(run, 1)]
    folder = run / "checkpoints" / "step_000001"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    (folder / "delta_S.f32").write_bytes((0.3 * rng.standard_normal(made["size"])).astype("<f4").tobytes())
    rows = measure(run, 1)
    assert {r["at"] for r in rows} == {"checkpoint step_000001"}
    assert max(abs(a - r["cos"]) for a, r in zip(before, rows, strict=True)) > 1e-3
    (folder / "delta_S.f32").write_bytes(bytes(7))
    with pytest.raises(ConfigError, match="damaged"):
        measure(run, 1)
    (folder / "delta_S.f32").write_bytes(bytes(8))
    with pytest.raises(ConfigError, match=r"shape \(2,\)"):
        measure(run, 1)


def test_the_limit_and_the_viewer(run):
    from experiments.viewer.index import Indexer

    assert len(measure(run, 0, "--limit", "3")) == 3
    indexer = Indexer(run.parent)
    indexer.scan()
    assert indexer.base.execute("SELECT count(cos), count(*) FROM rollouts").fetchone() == (3, 14)
    indexer.close()
    assert not list((run / "rollouts").glob(".*")), "no draft is left"


def test_what_cannot_be_measured_is_one_line(run, tmp_path):
    path = step_file(run, 2)
    path.write_bytes(member([{k: v for k, v in row(step=2).items() if k != "prompt_ids"}]))
    for argv, complaint in (
        (["--step", "2"], "no prompt_ids"), (["--step", "9"], "--step 9"), (["--step", "-1"], "--step -1"),
        (["--step", "0", "--limit", "0"], "--limit 0"), (["--step", "0", "--model", str(tmp_path / "no")], "--model DIR"),
        (["--step", "0", "--v-hack", str(tmp_path / "no")], "no v_hack at"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=complaint) as error:
            completion_cos.main(["--run", str(run), *argv])
        assert "\n" not in str(error.value)
    path.write_bytes(member([row(step=2, purpose="eval")]))
    with pytest.raises(ConfigError, match="no training completion"):
        completion_cos.main(["--run", str(run), "--step", "2"])
    (run / "config.json").write_text(
        json.dumps(json.loads((run / "config.json").read_text()) | {"v_hack": None, "direction": "none"})
    )
    with pytest.raises(ConfigError, match="--v-hack FILE"):
        completion_cos.main(["--run", str(run), "--step", "0"])
