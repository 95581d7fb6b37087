"""Saved adapters and merged checkpoints: what comes back, what is refused, and that nothing is left half written."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch

import rankspace
from rankspace import RankspaceError, adapter_io, atomic_dir
from rankspace.__main__ import main
from rankspace.run_checkpoint import of_run

ORGANISM = "tasks/organism/model"


def load(path=ORGANISM):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("svd")


@pytest.fixture(scope="module")
def trained(cache):
    """(model, adapter with a delta_S that is not zero, direction)."""
    model = load()
    adapter = rankspace.attach(model, svd_cache_dir=cache)
    flat = 0.05 * torch.randn(len(adapter.get_flat()), generator=torch.Generator().manual_seed(0))
    adapter.set_flat(flat)
    return model, adapter, rankspace.random_direction(adapter.modules, 7)


@pytest.fixture
def file(trained, tmp_path):
    _, adapter, direction = trained
    return rankspace.save_adapter(adapter, tmp_path / "saved", ORGANISM, direction, arm="projected", step=12)


def logits(model):
    with torch.no_grad():
        return model(torch.arange(5, 45)[None]).logits


def export(*args) -> int:
    return main(["export", *map(str, args)])


def one_line(capsys) -> str:
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def test_a_saved_adapter_comes_back_bit_equal_with_what_is_known_of_it(trained, file, cache):
    model, adapter, direction = trained
    back = load()
    again = rankspace.load_adapter(file.parent, back, svd_cache_dir=cache)
    assert torch.equal(again.get_flat(), adapter.get_flat()) and torch.equal(logits(back), logits(model))
    read = rankspace.read_delta(file)
    assert read.trained["step"] == 12 and read.trained["arm"] == "projected"
    assert read.trained["direction"]["sha256"] == rankspace.svd_cache.tensor_sha256(direction.vectors)
    assert read.fingerprint == adapter.fingerprint and read.modules == adapter.modules
    card = (file.parent / "README.md").read_text()
    for fact in (ORGANISM, adapter.fingerprint, read.sha256, "`12`", "projected", "load_adapter"):
        assert fact in card
    assert card.startswith("---\nbase_model: ")


def test_without_the_cache_the_basis_is_computed_again_and_agrees(trained, file):
    again = rankspace.load_adapter(file, load())
    assert torch.equal(again.get_flat(), trained[1].get_flat())


def test_a_merged_checkpoint_is_the_adapter(trained, file, tmp_path, cache, capsys):
    model, adapter, _ = trained
    out = tmp_path / "merged"
    assert export("--delta", file, "--out", out, "--svd-cache", cache) == 0
    said = capsys.readouterr().out
    assert "28 modules" in said and "note:" not in said
    merged = load(out)
    assert merged.dtype == torch.float32 and not any("delta_S" in name for name, _ in merged.named_parameters())
    with adapter.disabled():
        change = (logits(model) - logits(merged)).abs().max()
    assert (logits(model) - logits(merged)).abs().max() < 1e-4 < 100 * 1e-4 < change
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (Path(ORGANISM) / name).read_bytes()
    assert oct((out / "model.safetensors").stat().st_mode)[-3:] == "644"
    note = json.loads((out / "rankspace.json").read_text())
    assert note["fingerprint"] == adapter.fingerprint and note["sha256"] in (out / "README.md").read_text()
    assert torch.equal(rankspace.read_delta(out / "adapter").flat, adapter.get_flat())
    assert {p.name for p in tmp_path.iterdir()} == {"saved", "merged"}  # no draft is left


def test_zero_delta_exports_the_base_weights_bit_for_bit(tmp_path, cache):
    model = load()
    adapter = rankspace.attach(model, svd_cache_dir=cache)
    file = rankspace.save_adapter(adapter, tmp_path / "zero", ORGANISM)
    rankspace.export_model(rankspace.read_delta(file), tmp_path / "merged", svd_cache_dir=cache)
    base = dict(load().named_parameters())
    assert all(torch.equal(p, base[name]) for name, p in load(tmp_path / "merged").named_parameters())


def test_bf16_stays_bf16_and_pissa_is_merged_too(make, tmp_path):
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    make("qwen3", torch.bfloat16).save_pretrained(base)
    (base / "tokenizer.json").write_text("{}")
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    adapter = rankspace.attach(model, kind="pissa_freeze_a")
    adapter.set_flat(0.02 * torch.randn(len(adapter.get_flat()), generator=torch.Generator().manual_seed(1)))
    file = rankspace.save_adapter(adapter, tmp_path / "a", str(base))
    assert torch.equal(rankspace.load_adapter(file, load(base)).get_flat(), adapter.get_flat())
    out = rankspace.export_model(rankspace.read_delta(file), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert merged.dtype == torch.bfloat16
    gap = (logits(merged.float()) - logits(model.float())).abs().max()
    with adapter.disabled():
        change = (logits(merged.float()) - logits(model.float())).abs().max()
    assert gap < 0.1 * change


def write_run(tmp_path, adapter, flat, fingerprint):
    run = tmp_path / "run"
    for step in (3, 10):
        (run / f"checkpoints/step_{step:06d}").mkdir(parents=True)
        vector = (flat * step).tolist()
        (run / f"checkpoints/step_{step:06d}/delta_S.f32").write_bytes(struct.pack(f"<{len(vector)}f", *vector))
    (run / "checkpoints/step_000011.draft").mkdir()
    names, ranks = zip(*adapter.modules, strict=True)
    (run / "modules.json").write_text(json.dumps({"names": names, "ranks": ranks}))
    config = {"model": ORGANISM, "adapter": "antipasto", "arm": "projected", "seed": 4, "run_id": "r", "v_hack": None}
    (run / "config.json").write_text(json.dumps(config))
    (run / "v_hack.json").write_text(json.dumps({"fingerprint": fingerprint, "pairs_hash": "ab12"}))
    return run


def test_a_run_is_exported_at_its_newest_checkpoint_or_the_one_asked_for(trained, tmp_path, cache, capsys):
    _, adapter, _ = trained
    run = write_run(tmp_path, adapter, adapter.get_flat(), adapter.fingerprint)
    assert export("--run", run, "--out", tmp_path / "new", "--adapter-only", "--svd-cache", cache) == 0
    newest = rankspace.read_delta(tmp_path / "new")
    assert torch.equal(newest.flat, adapter.get_flat() * 10) and newest.trained["step"] == 10
    assert newest.trained["arm"] == "projected" and newest.trained["direction"]["pairs_hash"] == "ab12"
    assert export("--run", run, "--step", 3, "--out", tmp_path / "old", "--svd-cache", cache, "--adapter-only") == 0
    assert torch.equal(rankspace.read_delta(tmp_path / "old").flat, adapter.get_flat() * 3)
    capsys.readouterr()
    assert export("--run", run, "--step", 4, "--out", tmp_path / "x") == 2
    assert "it has 3, 10" in one_line(capsys)


def test_a_runs_own_checkpoint_is_read_as_the_trainer_writes_it(trained, tmp_path):
    """The bytes are those of Policy.vector, the folder that of services/trainer/checkpoint.py."""
    from services.trainer import checkpoint

    _, adapter, _ = trained
    run = write_run(tmp_path, adapter, adapter.get_flat(), None)
    assert [p.name for p in checkpoint.checkpoints(run)] == ["step_000003", "step_000010"]
    (checkpoint._folder(run, 10) / "delta_S.f32").write_bytes(adapter.get_flat().numpy().astype("<f4").tobytes())
    assert torch.equal(of_run(run).flat, adapter.get_flat()) and of_run(run).fingerprint is None


def test_another_base_model_is_one_clear_line(trained, file, tmp_path, cache, make, capsys):
    changed = load()
    with torch.no_grad():
        changed.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] += 1e-3
    with pytest.raises(RankspaceError, match="trained on other weights"):
        rankspace.load_adapter(file, changed, svd_cache_dir=cache)
    assert not any("delta_S" in name for name, _ in changed.named_parameters())  # left as it was
    changed.save_pretrained(tmp_path / "changed")
    assert export("--delta", file, "--model", tmp_path / "changed", "--out", tmp_path / "no") == 2
    assert "trained on other weights" in one_line(capsys) and not (tmp_path / "no").exists()
    with pytest.raises(RankspaceError, match=r"has no model\.layers\.2|takes \d+ numbers"):
        rankspace.load_adapter(file, make("qwen3"))
    assert export("--delta", file, "--model", tmp_path / "absent", "--out", tmp_path / "no") == 2
    assert "no model at" in one_line(capsys)


def test_a_basis_that_came_out_turned_is_noticed(file, monkeypatch):
    real = adapter_io.probe

    def turned(delta, U, Vh, rows):
        if rows != 384:
            return real(delta, U, Vh, rows)
        turn = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(0)))[0]
        U, Vh = U.clone(), Vh.clone()  # the two leading vectors turned into each other, as among equal singular values
        U[:, :2], Vh[:2] = U[:, :2] @ turn, turn.T @ Vh[:2]
        return real(delta, U, Vh, rows)

    monkeypatch.setattr(adapter_io, "probe", turned)
    with pytest.raises(RankspaceError, match="came out turned"):
        rankspace.load_adapter(file, load())


def test_bases_in_bf16_pass_the_probe(trained, file):
    adapter = trained[1]
    read = rankspace.read_delta(file)
    linears = zip(rankspace.split_flat(read.flat, read.modules), adapter._linears.values(), strict=True)
    rounded = [
        adapter_io.probe(d, m._rankspace_U.bfloat16(), m._rankspace_Vh.bfloat16(), m.out_features) for d, m in linears
    ]
    adapter_io.require_bases(read, rounded)


def test_a_damaged_file_is_refused(trained, file, tmp_path):
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    (tmp_path / "flipped").write_bytes(data)
    (tmp_path / "cut").write_bytes(file.read_bytes()[:-40])
    (tmp_path / "text").write_text("hello")
    for name, why in (("flipped", "hash"), ("cut", "damaged"), ("text", "no adapter"), ("absent", "no adapter at")):
        with pytest.raises(RankspaceError, match=why):
            rankspace.read_delta(tmp_path / name)


def test_nan_is_never_written(trained, tmp_path):
    _, adapter, _ = trained
    flat = adapter.get_flat()
    flat[5] = float("nan")
    with pytest.raises(RankspaceError, match="NaN"):
        rankspace.save_adapter(adapter, tmp_path / "nan", ORGANISM, flat=flat)
    assert not list(tmp_path.iterdir())


def test_a_directory_in_use_is_not_overwritten(file, tmp_path, cache, capsys):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    assert export("--delta", file, "--out", out) == 2 and "not empty" in one_line(capsys)
    assert export("--delta", file, "--out", out, "--force") == 2 and "no earlier export" in one_line(capsys)
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]
    empty = tmp_path / "empty"
    empty.mkdir()
    for force in ((), ("--force",)):
        assert export("--delta", file, "--out", empty, "--adapter-only", "--svd-cache", cache, *force) == 0
    assert {p.name for p in empty.iterdir()} == {"delta_S.safetensors", "README.md"}
    assert export("--delta", file, "--out", file) == 2
    assert "is a file" in capsys.readouterr().err


def test_a_directory_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), atomic_dir.new_directory(out) as draft:
        (draft / "half").write_text("")
        assert not out.exists()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with atomic_dir.new_directory(out, marks=("mark",)) as draft:
        (draft / "mark").write_text("old")
    replace = os.replace

    def full(source, target):
        if str(source).endswith("draft"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with (
        pytest.raises(RankspaceError, match="No space left"),
        atomic_dir.new_directory(out, True, ("mark",)) as draft,
    ):
        (draft / "mark").write_text("new")
    assert (out / "mark").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_run_that_is_none_or_damaged_is_one_clear_line(trained, tmp_path, capsys):
    _, adapter, _ = trained
    assert export("--run", tmp_path / "none", "--out", tmp_path / "x") == 2 and "no run at" in one_line(capsys)
    run = write_run(tmp_path, adapter, adapter.get_flat(), None)
    (run / "checkpoints/step_000010/delta_S.f32").write_bytes(b"1234")
    assert export("--run", run, "--out", tmp_path / "x") == 2 and "has 4 bytes" in one_line(capsys)
    (run / "modules.json").write_text("[]")
    assert export("--run", run, "--out", tmp_path / "x") == 2 and "no JSON object" in one_line(capsys)
    (run / "modules.json").write_text('{"names": ["a"]}')
    assert export("--run", run, "--out", tmp_path / "x") == 2 and "'ranks'" in one_line(capsys)
    assert export("--delta", "x", "--step", 3, "--out", tmp_path / "x") == 2 and "--step belongs" in one_line(capsys)


def test_the_fingerprint_of_a_given_model_never_changes():
    """Files made by earlier versions carry it."""
    from rankspace.fingerprint import Fingerprint

    one = Fingerprint()
    one.add("m", torch.Size([2, 3]), "ab")
    assert one.hexdigest() == "8e60fe7e8741e1f085d8c791d8bf9f4d2bbaf57d1d153beca1a838fd3377a00d"
