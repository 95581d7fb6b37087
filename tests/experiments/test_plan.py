"""From options to plans: one namespace, lengths that follow, names, grids, and what a run directory refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from common.cli import EXIT_USER_ERROR
from common.errors import ConfigError
from experiments import options
from experiments.__main__ import main
from experiments.design import plan as plans
from experiments.design.plan import plan, split
from experiments.launch import direction, run, sweep
from experiments.launch.given import check_same, given, grid, save, text

SMOKE = ["--preset", "smoke"]


def _run_args(*words):
    return options.run().parse_args([*SMOKE, "--arm", "vanilla", *words])


def test_one_namespace_reaches_trainer_generator_and_graders():
    made = plan(
        "smoke", "vanilla", 0,
        {"lr": 0.5, "trainer.steps": 7, "generator.max_num_seqs": 9, "sandbox.parallel": 3, "sandbox.workers": 5},
    )  # fmt: skip
    assert (made.trainer.lr, made.trainer.steps, made.server["max_num_seqs"]) == (0.5, 7, 9)
    assert (made.sandbox, made.graders) == ({"parallel": 3}, 5)


@pytest.mark.parametrize(
    "assignments, says",
    [
        ({"tensor_parallel_size": 2}, "did you mean generator.tensor_parallel_size"),
        ({"parallel": 2}, "did you mean sandbox.parallel"),
        ({"generator.lr": 2}, "unknown field 'lr'"),
        ({"grader.parallel": 2}, "unknown part 'grader'"),
        ({"generator.model": "x"}, "write model=FOLDER"),
        ({"generator.port": 1}, "leave it out"),
        ({"sandbox.isolation": "best_effort"}, "use --isolation"),
        ({"sandbox.workers": 0}, "sandbox.workers"),
        ({"sandbox.workers": True}, "sandbox.workers"),
        ({"sandbox.parallel": "many"}, "field 'parallel'"),
        ({"generator.max_num_seqs": 0}, "field 'max_num_seqs'"),
        ({"generator.max_model_len": 64}, "max_tokens=64 leaves no room"),
        ({"max_tokens": 4096}, "beyond the 512 positions"),
        ({"generator.max_model_len": 513}, "beyond the 512 positions"),
    ],
)
def test_refusals_are_one_line_that_names_the_field(assignments, says):
    with pytest.raises(ConfigError) as error:
        plan("smoke", "vanilla", 0, assignments)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_what_both_sides_have_is_given_once_and_the_length_follows():
    assert plan("smoke", "vanilla", 0).server["max_model_len"] == 256  # as before: 192 for prompts, 64 to write
    assert plan("smoke", "vanilla", 0, {"max_tokens": 100}).server["max_model_len"] == 292
    assert (
        plan("smoke", "vanilla", 0, {"max_tokens": 100, "generator.max_model_len": 300}).server["max_model_len"] == 300
    )
    both = plan("smoke", "vanilla", 0, {"dtype": "bfloat16", "svd_cache": "elsewhere"})
    assert (both.server["dtype"], both.server["svd_cache"]) == ("bfloat16", "elsewhere")
    apart = plan("smoke", "vanilla", 0, {"dtype": "bfloat16", "generator.dtype": "float32"})
    assert (apart.trainer.dtype, apart.server["dtype"]) == ("bfloat16", "float32")
    assert {"dtype", "device", "svd_cache"} <= plans.SHARED and not plans.SHARED & {"model", "redis_url"}
    coder = plan("coder-1.5b", "projected", 0)
    assert coder.server["max_model_len"] - coder.trainer.max_tokens >= 1940 and coder.server["device"] == "cuda"


def test_a_run_s_file_given_back_plans_the_same_run(tmp_path):
    words = ["--seed", "3", "--name", "mine", "--set", "lr=1e-5", "--set", "generator.max_num_seqs=7",
             "--set", "sandbox.workers=2", "--runs", str(tmp_path)]  # fmt: skip
    first = given(args := _run_args(*words)).plan("vanilla", 3, args, "run")
    save(first)
    file = tmp_path / "mine-vanilla-s3" / "run.yaml"
    again_args = options.run().parse_args(["--config", str(file), "--runs", str(tmp_path)])
    said = given(again_args)
    assert said.plan(said.arm, said.seed, again_args, "run") == first
    assert "*" not in file.read_text() and yaml.safe_load(file.read_text())["generator"]["max_num_seqs"] == 7
    other = given(options.run().parse_args(["--config", str(file), "--set", "lr=2", "--seed", "4", "--name", "n"]))
    assert (other.seed, other.name, other.assignments["lr"], other.preset) == (4, "n", 2, "smoke")


@pytest.mark.parametrize(
    "content, says",
    [
        ("seed: many", "field 'seed'"),
        ("run_id: x", "field 'run_id' is decided by"),
        ("generator: 3", "field 'generator'"),
        ("arm: [a]", "field 'arm'"),
        ("lr: -1", "field 'lr'"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, capsys, content, says):
    (tmp_path / "run.yaml").write_text(content)
    words = ["run", "--arm", "vanilla"] if "arm" not in content else ["run"]
    assert main([*words, "--config", str(tmp_path / "run.yaml"), "--dry-run"]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert says in said and len(said.splitlines()) == 1


def _there(root, state="finished", **settings):
    """A run directory as a run of these settings leaves it."""
    made = plan("smoke", "vanilla", 0, settings, root)
    save(made)
    (made.trainer.run_dir / "config.json").write_text(made.trainer.model_dump_json())
    (made.trainer.run_dir / "status.json").write_text(json.dumps({"state": state, "step": 3, "steps": 3}))


@pytest.mark.parametrize(
    "words", [["run", "--arm", "vanilla"], ["sweep", "--arms", "vanilla", "--seeds", "0"], ["demo"]]
)
@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_other_settings_are_refused_by_every_command(tmp_path, capsys, monkeypatch, words, state):
    monkeypatch.setattr("experiments.demo.ensure_direction", pytest.fail)
    _there(tmp_path, state)
    assert main([*words, *SMOKE, "--runs", str(tmp_path), "--set", "kl_beta=0.3"]) == EXIT_USER_ERROR
    assert "kl_beta=0.0, now 0.3" in (said := capsys.readouterr().err) and "--name" in said


def test_what_counts_as_another_run(tmp_path, capsys):
    _there(tmp_path)
    same = ["run", "--arm", "vanilla", *SMOKE, "--runs", str(tmp_path)]
    assert main(same) == 0 and "already finished" in capsys.readouterr().out
    assert main([*same, "--set", "device=auto", "--set", "generator.max_num_seqs=3"]) == 0  # computes the same
    assert main([*same, "--set", "steps=7"]) == EXIT_USER_ERROR
    assert "steps=3, now 7" in capsys.readouterr().err
    assert main([*same, "--set", "generator.dtype=bfloat16"]) == EXIT_USER_ERROR
    assert "generator.dtype='float32', now 'bfloat16'" in capsys.readouterr().err
    check_same(plan("smoke", "vanilla", 0, {"steps": 7}, tmp_path), finished=False)  # a stopped run may be made longer
    config = tmp_path / "smoke-vanilla-s0" / "config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "betas"}))
    assert main(same) == 0  # a field that an older run lacks had its default


def test_grid_makes_named_runs_side_by_side(tmp_path):
    words = [*SMOKE, "--arms", "vanilla,projected", "--seeds", "0-1", "--runs", str(tmp_path)]
    made = sweep.plans(options.sweep().parse_args([*words, "--grid", "lr=1e-3,3e-3", "--grid", "kl_beta=0,0.1"]))
    assert len(made) == len({p.trainer.run_dir for p in made}) == 16
    assert made[0].trainer.run_id == "smoke-lr1e-3-kl_beta0-vanilla-s0" and made[0].trainer.lr == 1e-3
    assert len(sweep._alike(made)) == 1
    lengths = sweep.plans(options.sweep().parse_args([*words, "--grid", "max_tokens=32,64"]))
    assert [len(group) for group in sweep._alike(lengths)] == [4, 4]  # services of their own
    plain = sweep.plans(options.sweep().parse_args(words))
    assert [p.trainer.run_id for p in plain][:2] == ["smoke-vanilla-s0", "smoke-projected-s0"]


def test_a_grid_of_lists_and_of_a_field_s_long_name(tmp_path):
    words = [
        "--grid",
        "betas=[0.9,0.99],[0.9,0.999]",
        "--grid",
        "trainer.steps=2,3",
        "--arms",
        "vanilla,vanilla",
        "--seeds",
        "0",
    ]
    planned = sweep.plans(options.sweep().parse_args([*words, "--preset", "smoke", "--runs", str(tmp_path)]))
    found = [(p.trainer.betas, p.trainer.steps) for p in planned]
    assert found == [((0.9, b), steps) for b in (0.99, 0.999) for steps in (2, 3)], "each arm once"
    assert len({p.trainer.run_id for p in planned}) == 4


def test_a_field_under_both_its_names_is_refused(tmp_path, capsys):
    file = tmp_path / "both.yaml"
    file.write_text("lr: 1\ntrainer: {lr: 2}\n")
    twice = ["--set", "lr=1", "--set", "steps=3", "--set"]
    assert given(options.run().parse_args([*twice, "trainer.lr=1.0"])).assignments == {"lr": 1, "steps": 3}
    for words in ([*twice, "trainer.lr=2"], [*twice, "lr=2"], ["--config", str(file)]):
        argv = ["run", "--arm", "vanilla", "--preset", "smoke", "--runs", str(tmp_path), "--dry-run", *words]
        assert main(argv) == 2
        assert "lr" in (said := capsys.readouterr().err) and "given twice" in said and said.count("\n") == 1


BAD_GRIDS = [
    "lr", "lr=", "lr=1,,2", "lr=1,1", "lr=1e-3,0.001", "=1", "lr=1e-3 --set lr=2", "lr=1e-3 --set trainer.lr=2",
    "lr=1 --grid trainer.lr=2,3",
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_GRIDS)
def test_bad_grids(tmp_path, bad):
    option, _, rest = bad.partition(" ")
    args = options.sweep().parse_args([*SMOKE, "--arms", "vanilla", "--grid", option, *rest.split()])
    with pytest.raises(ConfigError, match="--grid"):
        list(grid(given(args), args.grid))


@pytest.mark.parametrize("name", ["a b", "../up", "", "x/y"])
def test_bad_names(name):
    with pytest.raises(ConfigError, match="--name"):
        plan("smoke", "vanilla", 0, name=name)


@pytest.mark.parametrize("command", ["sweep", "report", "verdict", "drift", "why"])
def test_one_syntax_for_arms_and_seeds(command, capsys):
    made = options.PARSERS[command]()
    spoken = made.parse_args(["--arms", "vanilla,projected", "rebound", "--seeds", "0-2,7", "9"])
    assert spoken.arms == ["vanilla", "projected", "rebound"] and spoken.seeds == [0, 1, 2, 7, 9]
    for bad in ("4-0", "x", "1-", ""):
        with pytest.raises(SystemExit) as ended:
            made.parse_args(["--arms", "vanilla", "--seeds", bad])
        assert ended.value.code == EXIT_USER_ERROR and "--seeds" in capsys.readouterr().err


def test_directions_of_other_models_and_pairs_lie_apart():
    own = plan("smoke", "projected", 0).trainer.v_hack
    others = {plan("smoke", "projected", 0, {"pairs": p}).trainer.v_hack for p in ("a.jsonl", "b.jsonl")}
    assert len(others | {own}) == 3 and own == Path(".cache/directions/smoke/v_hack.safetensors")
    assert plan("smoke", "projected", 0, {"lr": 1}, name="x").trainer.v_hack == own


def test_dry_run_prints_everything_and_makes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "ensure_direction", pytest.fail)
    monkeypatch.setattr(run, "services", pytest.fail)
    root = tmp_path / "runs"
    assert main(["run", "--arm", "vanilla", *SMOKE, "--runs", str(root), "--set", "lr=1e-3", "--dry-run"]) == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert said["trainer"]["lr"] == 1e-3 and said["generator"]["max_model_len"] == 256
    assert "200 problems" in said["run"]["train_problems"] and said["sandbox"]["workers"] == 1
    assert not root.exists()
    assert main(["sweep", "--arms", "vanilla", "projected", *SMOKE, "--runs", str(root), "--dry-run"]) == 0
    assert "10 runs, 0 complete, 10 to do" in capsys.readouterr().out and not root.exists()


def test_lists_of_arms_and_presets(capsys):
    assert main(["arms"]) == 0 and "projected_no_rescale" in capsys.readouterr().out
    assert main(["presets"]) == 0 and "models/coder-1.5b" in capsys.readouterr().out


def test_text_has_no_aliases():
    shared = [1, 2]
    assert yaml.safe_load(text({"a": shared, "b": shared})) == {"a": [1, 2], "b": [1, 2]}
    assert "&" not in text({"a": shared, "b": shared})


def test_split_keeps_parts_apart():
    assert split({"lr": 1, "generator.enforce_eager": True}) == {
        "trainer": {"lr": 1}, "generator": {"enforce_eager": True}, "sandbox": {}
    }  # fmt: skip


@pytest.mark.parametrize("command", ["report", "drift"])
def test_out_is_tried_before_the_work(tmp_path, capsys, command):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/x")):
        assert main([command, "--runs", str(tmp_path / "no runs"), "--out", str(out)]) == EXIT_USER_ERROR
        said = capsys.readouterr().err
        assert f"--out {out}" in said and len(said.splitlines()) == 1


def test_extraction_says_how_far_it_is_and_why_it_failed(tmp_path, capsys, monkeypatch):
    made = plan("smoke", "projected", 0).trainer
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'extract: 3 of 28' >&2; echo 'error: no room' >&2; exit 2\n")
    script.chmod(0o755)
    monkeypatch.setattr(run.sys, "executable", str(script))
    with pytest.raises(ConfigError, match="failed: no room"):
        direction.extract(made, tmp_path / "v.safetensors", [])
    assert capsys.readouterr().err == "extract: 3 of 28\n"
