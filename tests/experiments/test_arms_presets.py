"""Arms and presets: what resolves to what, and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from copy import deepcopy
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.settings import TrainerSettings, build
from experiments.design import arms, presets

NAMES = [
    "vanilla", "projected", "projected_no_rescale", "rebound", "random_direction", "shuffled_pairs", "measure_only",
    "projected_update", "projected_two_sided", "drift_only", "projected_subspace", "projected_refresh",
    "rebound_multiplicative", "rebound_z", "no_loophole", "ground_truth_penalty", "ground_truth_screening",
    "pissa_freeze_a", "leash", "setpoint", "shift", "bias", "projected_until", "projected_from", "leash_random",
    "bias_random", "shuffled_orthogonal", "rebound_published", "rebound_published_mult", "setpoint_random",
    "project_m_only", "project_moments", "fisher", "posthoc_shift", "pairs_dpo", "tdga", "reseed",
    "reseed_vanilla",
]  # fmt: skip
REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_table_of_arms():
    assert list(arms.ARMS) == NAMES
    assert [arms.get(n).letter for n in ("vanilla", "projected", "projected_no_rescale", "rebound")] == list("abcd")
    letters = [arm.letter for arm in arms.ARMS.values()]
    assert len(set(letters)) == len(letters)
    for arm in arms.ARMS.values():
        assert arm.title and arm.tells and set(arm.overrides) | set(arm.defaults) <= set(TrainerSettings.model_fields)
    with pytest.raises(FrozenInstanceError):
        arms.get("vanilla").letter = "z"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "vanilla"}, "two arms are called 'vanilla'"),
        ({"letter": "z"}, "its letter 'z' is that of bias_random; free are .*Z"),
        ({"letter": "zz"}, "'zz' is not one character"),
        ({"letter": ""}, "'' is not one character"),
    ],
)
def test_an_added_arm_that_nobody_could_tell_apart_is_refused(changes, said):
    added = replace(arms.get("vanilla"), **({"name": "mine", "letter": "Z"} | changes))
    with pytest.raises(ConfigError, match=said):
        arms.by_name([*arms.ARMS.values(), added])


def test_the_arm_of_the_tutorial_can_be_added_as_it_stands():
    page = (REPOSITORY / "docs/tutorial.md").read_text()
    (row,) = re.findall(r"```python\n(Arm\(.*?)```", page, re.DOTALL)
    added = eval(row, {"Arm": arms.Arm})
    assert list(arms.by_name([*arms.ARMS.values(), added]))[-1] == "kl_leash"
    assert set(added.overrides) <= set(TrainerSettings.model_fields)


def test_no_two_arms_are_the_same_run():
    seen = {
        name: (sorted((arm.overrides | arm.defaults).items(), key=str), arm.direction)
        for name, arm in arms.ARMS.items()
    }
    assert all(a == b or seen[a] != seen[b] for a in seen for b in seen)


def test_unknown_arm_is_one_line_with_the_names():
    with pytest.raises(ConfigError) as error:
        arms.get("projectd")
    assert "unknown arm 'projectd'" in str(error.value) and "drift_only" in str(error.value)
    assert "\n" not in str(error.value)


def test_order_puts_former_arms_last():
    assert arms.order(["zz", "rebound", "vanilla", "rebound"]) == ["vanilla", "rebound", "zz"]


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("arm", NAMES)
def test_every_combination_is_a_valid_run(preset, arm):
    settings = build(TrainerSettings, presets.resolve(preset, arm, 3))
    assert settings.arm == arm and settings.seed == 3 and settings.run_id == f"{preset}-{arm}-s3"
    assert settings.run_dir == Path("runs") / settings.run_id
    assert settings.direction != "none" and settings.v_hack is not None and settings.pairs is not None


def test_arms_differ_from_vanilla_only_where_they_say():
    vanilla = presets.resolve("demo", "vanilla", 0)
    for name, arm in arms.ARMS.items():
        other = presets.resolve("demo", name, 0)
        differing = {key for key in vanilla.keys() | other.keys() if vanilla.get(key) != other.get(key)}
        assert differing <= set(arm.overrides) | set(arm.defaults) | {
            "arm", "run_id", "run_dir", "v_hack", "v_ref", *(["start_from"] if arm.starts_from else []),
            *(["hacks"] if "reseed" in arm.overrides else []),
        }, name  # fmt: skip


def test_what_the_arms_mean():
    def settings(arm):
        return build(TrainerSettings, presets.resolve("demo", arm, 0))

    assert (settings("vanilla").projection, settings("vanilla").direction) == ("off", "v_hack")
    assert settings("measure_only").projection == "measure_only"
    assert settings("random_direction").direction == "random"
    assert settings("no_loophole").loophole is None and settings("vanilla").loophole == "simple_overwrite_tests"
    assert (settings("rebound").reward_shaping, settings("rebound").shaping_alpha) == ("rebound", 0.5)
    assert settings("projected_refresh").refresh_every == 25


def test_an_arm_s_dose_is_a_start_that_set_may_change():
    def settings(arm, **free):
        return build(TrainerSettings, presets.resolve("demo", arm, 0, free))

    assert (settings("leash").dose, settings("leash", dose=0.25).dose) == (0.0, 0.25)
    assert (settings("setpoint").dose, settings("setpoint").dose_ramp) == (1.65, 20)
    assert settings("bias", bias_strength=0.05).bias_strength == 0.05
    assert settings("rebound_published", shaping_alpha=1.0).shaping_alpha == 1.0
    with pytest.raises(ConfigError, match="fixes it at 'leash'"):
        presets.resolve("demo", "leash", 0, {"projection": "off"})


def test_every_arm_is_measured_against_v_hack():
    for name in NAMES:
        settings = build(TrainerSettings, presets.resolve("demo", name, 3))
        adapter = "_pissa_freeze_a" if name == "pissa_freeze_a" else ""
        assert Path(settings.v_ref or settings.v_hack).name == f"v_hack{adapter}.safetensors", name
        own = name in ("random_direction", "shuffled_pairs", "projected_subspace", "leash_random", "bias_random",
                       "shuffled_orthogonal", "setpoint_random", "tdga")  # fmt: skip
        assert (settings.v_ref is not None) == own


def test_direction_files():
    def file(arm, seed):
        return Path(presets.resolve("demo", arm, seed)["v_hack"]).name

    assert file("projected", 0) == file("projected", 1) == file("vanilla", 4) == "v_hack.safetensors"
    assert file("shuffled_pairs", 0) == "shuffled_s0.safetensors" != file("shuffled_pairs", 1)
    assert file("projected_subspace", 0) == "subspace.safetensors"
    assert file("pissa_freeze_a", 0) == "v_hack_pissa_freeze_a.safetensors"


def test_runs_that_would_make_different_directions_share_no_file():
    """Two sweeps beside each other, one in bfloat16, made each other's v_hack anew, and a resumed run was refused."""

    def file(**asked):
        return presets.resolve("smoke", "projected", 0, asked)["v_hack"]

    others = ({"dtype": "bfloat16"}, {"chat_date": "2020-01-01"}, {"chat_template_kwargs": {"enable_thinking": False}},
              {"pairs": "mine.jsonl"}, {"pairs": "mine.jsonl", "dtype": "bfloat16"})  # fmt: skip
    assert len({file(), *(file(**asked) for asked in others)}) == 1 + len(others)
    assert file() == file(dtype="float32") == file(chat_template_kwargs={}) == file(lr=0.5), (
        "the preset's own, said aloud"
    )


def test_the_plan_s_presets():
    small, large = (build(TrainerSettings, presets.resolve(p, "vanilla", 0)) for p in ("qwen3.5-2b", "qwen3-4b"))
    assert (small.steps, small.groups_per_step, small.group_size, small.dtype) == (200, 16, 8, "bfloat16")
    assert (large.steps, large.groups_per_step, large.group_size, large.dtype) == (200, 16, 4, "bfloat16")
    assert build(TrainerSettings, presets.resolve("smoke", "vanilla", 0)).steps == 3
    assert build(TrainerSettings, presets.resolve("demo", "vanilla", 0)).steps == 80


def test_precedence_and_purity():
    before = deepcopy(presets.PRESETS["demo"].values)
    values = presets.resolve("demo", "projected", 0, {"steps": 7, "lr": 0.5}, Path("out"), redis_url="redis://x:1/0")
    assert (values["steps"], values["lr"], values["redis_url"]) == (7, 0.5, "redis://x:1/0")
    assert values["run_dir"] == "out/demo-projected-s0"
    assert presets.resolve("demo", "projected", 0, run_dir=Path("here"))["run_dir"] == "here"
    assert presets.PRESETS["demo"].values == before and "steps" not in before


@pytest.mark.parametrize(
    "assignments, fragment",
    [
        ({"projection": "off"}, "arm 'projected' fixes it at 'one_sided'"),
        ({"seed": 4}, "decided by --preset, --arm and --seed"),
        ({"v_hack": "x"}, "decided by"),
        ({"learning_rate": 1}, "unknown field 'learning_rate'"),
    ],
)
def test_assignments_that_would_make_the_name_a_lie(assignments, fragment):
    with pytest.raises(ConfigError, match=fragment):
        presets.resolve("demo", "projected", 0, assignments)


def test_unknown_preset():
    with pytest.raises(
        ConfigError,
        match=r"unknown preset 'demp'; presets: smoke, demo, mechanisms, maths, smollm, coder-0\.5b, coder-1\.5b, "
        r"qwen3\.5-2b, qwen3-4b",
    ):
        presets.get("demp")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from experiments.__main__ import main; assert main(['--help']) == 0; "
        "heavy = {'torch', 'numpy', 'scipy', 'matplotlib', 'pydantic', 'vllm'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("run", "sweep", "report", "verdict", "status", "next-preset"):
        assert f"  {command}" in done.stdout


def test_unknown_command(capsys):
    from experiments.__main__ import main

    assert main(["verdcit"]) == 2
    assert "unknown command 'verdcit'" in capsys.readouterr().err
    assert main([]) == 2


def test_git_keeps_the_report_package():
    """`report/` and `runs/` are what commands write; a package of that name must not be ignored with them."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    files = [str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "experiments").rglob("*.py")]
    done = subprocess.run(["git", "check-ignore", *files], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == ""


def test_an_arm_may_start_from_another_s_run():
    values = presets.resolve("demo", "posthoc_shift", 3, {"dose": 0.5}, Path("there"), name="mine")
    settings = build(TrainerSettings, values)
    assert settings.start_from == Path("there/mine-vanilla-s3") and settings.run_id == "mine-posthoc_shift-s3"
    assert (settings.projection, settings.dose, settings.steps) == ("shift", 0.5, 1)
    elsewhere = presets.resolve("demo", "posthoc_shift", 3, {"start_from": "runs/other"})
    assert elsewhere["start_from"] == "runs/other"
    assert build(TrainerSettings, presets.resolve("demo", "vanilla", 3)).start_from is None
