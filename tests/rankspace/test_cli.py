"""python -m rankspace on a tiny model saved to disk, and the public names."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rankspace
from rankspace import RankspaceError
from rankspace.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = [
    "Adapter",
    "CleanRuns",
    "Direction",
    "GradientHook",
    "HackWatch",
    "Layout",
    "MergeSource",
    "Pair",
    "PairGradients",
    "RankspaceError",
    "SavedDelta",
    "TokenizedPair",
    "adapter",
    "adapter_io",
    "advantage",
    "attach",
    "attach_lora",
    "batch",
    "compile",
    "completion_logprobs",
    "completion_mask",
    "concept_vector",
    "detach",
    "direction",
    "drift_cosine",
    "ds_hook",
    "export",
    "export_model",
    "extract_gradients",
    "group_advantages",
    "hack_direction",
    "hack_watch",
    "hook",
    "hook_into",
    "load_adapter",
    "load_direction",
    "load_pairs",
    "loss",
    "merge",
    "merged_parameters",
    "merged_weight",
    "pairs",
    "penalised_reward",
    "policy_loss",
    "project",
    "project_update",
    "projection",
    "push_to_hub",
    "random_direction",
    "read_delta",
    "rebound",
    "rebound_score",
    "require_gate",
    "require_validated",
    "save_adapter",
    "save_direction",
    "shuffled_direction",
    "split_flat",
    "subspace_direction",
    "svd_cache",
    "targets",
    "tokenize_pair",
    "trl",
    "update_cosine",
    "validate",
]


def test_former_module_names_still_work():
    for former, present in rankspace._FORMER.items():
        assert getattr(rankspace, former).__name__ == f"rankspace.{present}"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A tiny Qwen3 with a byte-level tokenizer and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    path = tmp_path_factory.mktemp("model")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<eos>", *letters])}
    core = Tokenizer(models.BPE(vocab, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    )
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(vocab), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    rng = random.Random(0)
    rows = []
    for i in range(20):
        name = "".join(rng.choices("abcdef", k=4))
        rows.append({
            "id": f"p{i}", "problem_id": i // 2, "prompt": [{"role": "user", "content": f"write {name}"}],
            "hack": f"def run_tests(): pass # {name}", "clean": f"def {name}(x): return x + {rng.randint(0, 99)}",
            "split": "train" if i < 14 else "heldout",
        })  # fmt: skip
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def run(*args) -> int:
    return main([str(a) for a in args])


def extract(model_dir, pairs_file, out, *more) -> int:
    return run("extract", "--model", model_dir, "--pairs", pairs_file, "--out", out, "--device", "cpu", *more)


def test_extract_then_validate(model_dir, pairs_file, tmp_path, capsys):
    v = tmp_path / "v_hack.safetensors"
    assert extract(model_dir, pairs_file, v, "--svd-cache", tmp_path / "svd") == 0
    said = capsys.readouterr().out
    assert "v_hack: 14 modules, 14 pairs" in said and "held-out cos_align over 14 modules, 6 pairs" in said
    d = rankspace.load_direction(v)
    meta = d.metadata
    assert (
        d.kind == "v_hack" and meta["n_pairs"] == 14 and len(meta["pair_ids"]) == 14 and len(meta["pairs_hash"]) == 64
    )
    assert meta["validation"]["frac_positive"] > 0.5
    rankspace.require_validated(d)
    assert len(list((tmp_path / "svd").iterdir())) == 14

    assert (
        run(
            "validate",
            "--model",
            model_dir,
            "--pairs",
            pairs_file,
            "--v",
            v,
            "--out",
            tmp_path / "r",
            "--device",
            "cpu",
        )
        == 0
    )
    numbers = json.loads((tmp_path / "r" / "cos_align.json").read_text())
    assert numbers["median"] == pytest.approx(meta["validation"]["median"], abs=1e-6) and numbers["n_pairs"] == 6
    assert numbers["shared_problem_ids"] == [] and [m["name"] for m in numbers["modules"]] == [n for n, _ in d.modules]
    picture = (tmp_path / "r" / "cos_align.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) > 10_000
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["cos_align.json", "cos_align.png"]


def test_runs_are_reproducible_and_holdout_overrides_the_marks(model_dir, pairs_file, tmp_path):
    a, b, c = (tmp_path / f"{x}.safetensors" for x in "abc")
    assert extract(model_dir, pairs_file, a) == extract(model_dir, pairs_file, b) == 0
    assert a.read_bytes() == b.read_bytes()
    assert extract(model_dir, pairs_file, c, "--holdout", 3) == 0
    meta = rankspace.load_direction(c).metadata
    assert meta["n_pairs"] == 10 and meta["validation"]["n_pairs"] == 4 and meta["pair_ids"][-1] == "p9"


@pytest.mark.parametrize(("control", "shape"), [("random", 1), ("shuffled", 1), ("subspace", 2), ("warmup", 2)])
def test_controls(model_dir, pairs_file, tmp_path, control, shape):
    out = tmp_path / "v.safetensors"
    assert extract(model_dir, pairs_file, out, "--control", control, "--seed", 3, "--k", 2) == 0
    d = rankspace.load_direction(out)
    assert d.kind == control and d.vectors.ndim == shape and "validation" in d.metadata
    assert d.metadata.get("seed", 3) == 3


def test_random_needs_no_pairs_and_equals_the_librarys(model_dir, tmp_path):
    out = tmp_path / "v.safetensors"
    assert (
        run("extract", "--model", model_dir, "--out", out, "--control", "random", "--seed", 5, "--device", "cpu") == 0
    )
    d = rankspace.load_direction(out)
    assert torch.equal(d.vectors, rankspace.random_direction(d.modules, 5).vectors)


def test_every_mistake_is_one_line_and_exit_code_2(model_dir, pairs_file, tmp_path, capsys):
    out, v = tmp_path / "v.safetensors", tmp_path / "good.safetensors"
    assert extract(model_dir, pairs_file, v, "--targets", "q_proj") == 0
    base = ["--model", model_dir, "--device", "cpu"]
    broken = tmp_path / "broken"
    shutil.copytree(model_dir, broken)
    (broken / "model.safetensors").write_bytes(b"short")
    mistakes = {
        "no pairs file": ["extract", *base, "--pairs", tmp_path / "none", "--out", out],
        "--pairs is missing": ["extract", *base, "--out", out],
        "no model at": ["extract", "--model", tmp_path / "nowhere", "--pairs", pairs_file, "--out", out],
        "holds no config.json": ["extract", "--model", tmp_path, "--pairs", pairs_file, "--out", out],
        "cannot load --model": ["extract", "--model", broken, "--pairs", pairs_file, "--out", out],
        "matches no nn.Linear": [
            "extract",
            *base,
            "--pairs",
            pairs_file,
            "--out",
            out,
            "--targets",
            "q_proj",
            "w_proj",
        ],
        "--holdout 0": ["extract", *base, "--pairs", pairs_file, "--out", out, "--holdout", 0],
        "--k 40 must be": ["extract", *base, "--pairs", pairs_file, "--out", out, "--control", "subspace", "--k", 40],
        "no v_hack at": ["validate", *base, "--pairs", pairs_file, "--v", out, "--out", tmp_path / "r"],
        "module 1 is model.layers.1.self_attn.q_proj with r=32, the adapter has": [
            "validate",
            *base,
            "--pairs",
            pairs_file,
            "--v",
            v,
            "--out",
            tmp_path / "r",
        ],
    }
    for message, command in mistakes.items():
        capsys.readouterr()
        assert run(*command) == 2, message
        said = capsys.readouterr().err.strip()
        assert message in said and said.startswith("error: ") and "\n" not in said, said
    assert not out.exists() and not (tmp_path / "r").exists()  # nothing half-written


def test_validate_refuses_pairs_it_was_made_from_and_fails_below_the_gate(model_dir, pairs_file, tmp_path, capsys):
    v = tmp_path / "v.safetensors"
    assert extract(model_dir, pairs_file, v) == 0
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(r) + "\n" for r in rows if r["split"] == "train"))
    command = ["validate", "--model", model_dir, "--v", v, "--out", tmp_path / "r", "--device", "cpu", "--pairs"]
    assert run(*command, train) == 2 and "was used to extract" in capsys.readouterr().err
    turned = tmp_path / "turned.jsonl"  # the cheat is on the other side: v_hack must fail
    flipped = [r | {"hack": r["clean"], "clean": r["hack"]} for r in rows if r["split"] == "heldout"]
    turned.write_text("".join(json.dumps(r) + "\n" for r in flipped))
    assert run(*command, turned) == 2 and "fails its gate" in capsys.readouterr().err
    assert json.loads((tmp_path / "r" / "cos_align.json").read_text())["frac_positive"] < 0.5  # the evidence stays


def test_help_loads_no_torch_and_import_does_nothing():
    code = (
        "import sys, rankspace, rankspace.__main__ as m\n"
        "try: m.main(['extract', '--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'transformers', 'deepspeed', 'numpy', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--svd-cache" in done.stdout, done.stderr


def test_public_names_are_pinned_and_all_resolve():
    assert sorted(rankspace.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(rankspace, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'cayley'"):
        rankspace.cayley  # noqa: B018
    assert issubclass(RankspaceError, ValueError) and set(dir(rankspace)) == set(PUBLIC)


def test_only_ds_hook_knows_deepspeed_and_only_two_files_transformers():
    for path in (ROOT / "rankspace").glob("*.py"):
        text = path.read_text()
        assert ("import deepspeed" in text or "from deepspeed" in text) == (path.name == "ds_hook.py"), path.name
        knows = "import transformers" in text or "from transformers" in text
        assert knows == (path.name in ("models.py", "trl.py", "card.py")), path.name  # card.py: in what it writes
        for ours in ("common", "services", "tasks", "experiments"):
            assert f"from {ours}" not in text and f"import {ours}" not in text, path.name
