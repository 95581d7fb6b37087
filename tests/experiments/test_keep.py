"""Kept runs: small files that every command reads as it reads run directories, and what is refused."""

from __future__ import annotations

import json
import lzma
import random
import re
import shutil
import tarfile

import pytest
from registrations import DOSES, SEEDS, small_alarm, write_registration
from synthetic_runs import Plan, write

from common.cli import EXIT_USER_ERROR
from common.errors import ConfigError
from experiments.__main__ import main
from experiments.analysis import slim
from experiments.analysis.run_files import read_run
from experiments.analysis.run_folders import read_runs
from experiments.design import alarm_registration
from rankspace.errors import RankspaceError
from rankspace.watch_signals import read_rows

LOUD, QUIET = [0.0, 0.0, 0.1, 0.2, 0.3, 0.4], [0.01] * 6


def with_rows(path, change):
    file = path / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row | change(row["step"])) + "\n" for row in rows))
    return path


def dose_runs(root):
    for seed in SEEDS:
        for arm, hack, at in (("leash", 0.5, 0.0), ("projected_from", 0.0, 1.0), ("setpoint", 0.02, 2.5)):
            settings = {"dose": 0.5} if arm == "setpoint" else {}
            plan = Plan(arm=arm, seed=seed, hack=[0.1, 0.2, 0.3, hack], bare=[(0, 0.5), (4, 0.4)], settings=settings,
                        cos=[0.1] * 4)  # fmt: skip
            with_rows(write(root, plan), lambda step, at=at: {"displacement_ref": at * step / 3, "delta_norm": 2.0,
                                                              "intervened": step > 1})  # fmt: skip
    return root


def alarm_runs(root):
    rng = random.Random(1)
    plans = [Plan("no_loophole", seed, hack=LOUD if seed == 3 else QUIET, passed=[0.3] * 6) for seed in range(20)]
    for plan in plans + [Plan("vanilla", seed, hack=LOUD, passed=[0.3] * 6) for seed in range(4)]:
        pull = 0.1 if plan.arm == "vanilla" else 0.0
        with_rows(write(root, plan), lambda step, pull=pull: {"update_ref_cos_mean": rng.gauss(pull, 0.01)})
    return root


def keep(*words):
    assert main(["keep", *map(str, words)]) == 0


def refused(capsys, match, *words):
    capsys.readouterr()
    assert main(list(map(str, words))) == EXIT_USER_ERROR
    told = capsys.readouterr().err
    assert re.search(match, told), told
    assert told.count("\n") == 1


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_alarm_says_the_same_of_kept_runs_and_of_kept_and_fresh_ones_together(tmp_path, capsys):
    runs, kept, file = alarm_runs(tmp_path / "runs"), tmp_path / "kept", small_alarm(tmp_path)
    keep("--runs", runs, "--registration", file, "--out", kept)
    said = capsys.readouterr().out
    assert "tiny demo-no_loophole: 20 kept, 20 of them new; seeds 0-19" in said and "24 kept in all" in said
    assert "%" not in said and "hack" not in said  # no results
    half = tmp_path / "half"
    for path in sorted(runs.iterdir())[::2]:
        shutil.copytree(path, half / path.name)
    for name in [path.name for path in half.iterdir()][:3]:
        (kept / f"{name}.tar.xz").rename(kept / f".{name}")  # only fresh; the others of this half are in both places
    answers = []
    for number, folders in enumerate(([runs], [kept, half])):
        out = tmp_path / f"out{number}"
        main(["alarm", "--runs", *map(str, folders), "--registration", str(file), "--out", str(out)])
        answers.append(files(out))
    assert answers[0] == answers[1] and {"README.md", "alarm.csv", "clean.json", "alarm.png"} <= answers[0].keys()


def test_why_verdict_and_report_say_the_same_of_kept_runs(tmp_path, capsys):
    runs, kept, file = dose_runs(tmp_path / "runs"), tmp_path / "kept", write_registration(tmp_path, DOSES)
    keep("--runs", runs, "--registration", file, "--out", kept)
    said = capsys.readouterr().out
    assert "far: 2 kept, 2 of them new; seeds 10-11" in said
    assert "note: 6 of these began under another version of doses.yaml" in said
    answers = []
    for folder in (runs, kept):
        out = tmp_path / f"of-{folder.name}"
        where = ["--runs", str(folder), "--registration", str(file)]
        assert main(["why", *where, "--out", str(out / "why")]) == 0
        assert main(["report", *where, "--out", str(out / "report")]) == 0
        capsys.readouterr()
        assert main(["verdict", *where, "--json"]) == 0
        report = files(out / "report")
        numbers = {name: report[name] for name in ("runs.csv", "steps.csv", "evaluations.csv", "table.tex")}
        answers.append((files(out / "why"), numbers, capsys.readouterr().out))
        assert "histogram.png" in report and ("heat_map.png" in report) == (folder is runs)  # modules.jsonl is not kept
    assert answers[0] == answers[1]


def test_a_kept_run_holds_its_rows_exactly_and_nothing_of_the_machine(tmp_path):
    secret = "/machine/of/somebody"
    plan = Plan(arm="projected", cos=[0.1] * 4, settings={"train_problems": f"{secret}/train.jsonl"})
    path = write(tmp_path / "runs", plan)
    said = json.loads((path / "provenance.json").read_text())
    said["command"] = (
        f"python -m experiments run --runs {secret}/x --set v_hack={secret}/v.st --redis-url redis://ten:1/0"
    )
    said["model"] = {"from": f"{secret}/a.gguf", "name": "Qwen/Qwen3-4B"}
    (path / "provenance.json").write_text(json.dumps(said))
    (path / "run.yaml").write_text(f"model: {secret}/m\nsteps: 4\n")
    config = json.loads((path / "config.json").read_text()) | {"redis_password_file": f"{secret}/p"}
    (path / "config.json").write_text(json.dumps(config))
    keep("--runs", path, "--out", tmp_path / "kept")
    file = tmp_path / "kept/demo-projected-s0.tar.xz"
    with tarfile.open(file) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    held = files(tmp_path / "unpacked/demo-projected-s0")
    assert set(held) == {*slim.ROWS, *slim.OBJECTS, "run.yaml"}
    for name in slim.ROWS:
        assert held[name] == (path / name).read_bytes()
    text = b"".join(held.values()).decode()
    assert "somebody" not in text and "redis://ten" not in text and "problem_ids" not in text
    assert "--runs x --set v_hack=v.st --redis-url redis://..." in text and "Qwen/Qwen3-4B" in text
    values = json.loads(held["config.json"])
    assert (
        values["train_problems"].startswith("train.jsonl@") and values["heldout_problems"] == config["heldout_problems"]
    )
    assert not {"redis_url", "redis_password_file", "run_dir", "metrics_host"} & values.keys()
    unpacked, kept = (read_run(one) for one in (tmp_path / "unpacked/demo-projected-s0", file))
    assert unpacked.config == kept.config and kept.folder == "demo-projected-s0" and kept.direction["kind"] == "v_hack"
    assert read_rows(file) == read_rows(path)
    assert slim.contents(file) == slim.contents(path)


def test_two_files_of_one_name_stay_two(tmp_path, capsys):
    for arm, place in (("vanilla", "a"), ("projected", "b")):
        write(tmp_path / "runs", Plan(arm=arm, settings={"train_problems": f"/{place}/train.jsonl"}))
    keep("--runs", tmp_path / "runs", "--out", tmp_path / "kept")
    refused(capsys, r"train_problems is 'train\.jsonl@", "verdict", "--runs", tmp_path / "kept")


def test_running_it_again_adds_and_refuses_other_contents(tmp_path, capsys):
    runs, kept = tmp_path / "runs", tmp_path / "kept"
    first = write(runs, Plan())
    write(runs, Plan(seed=1, state="running", planned=9))
    keep("--runs", runs, "--out", kept)
    assert "not kept: 1 not finished" in capsys.readouterr().out
    before = files(kept)
    write(runs, Plan(seed=2))
    keep("--runs", runs, "--out", kept)
    assert "demo-vanilla: 2 kept, 1 of them new; seeds 0,2" in capsys.readouterr().out
    assert before.items() < files(kept).items()
    with_rows(first, lambda step: {"hack_strict": 0.5})
    write(runs, Plan(seed=3))
    refused(
        capsys,
        r"another run demo-vanilla-s0 is kept in .*kept, and a run counts once",
        "keep",
        "--runs",
        runs,
        "--out",
        kept,
    )
    assert len(files(kept)) == 2  # nothing was written
    with pytest.raises(ConfigError, match=r"demo-vanilla-s0 is in .* and in .*, with other contents"):
        read_runs([runs, kept])
    with pytest.raises(ConfigError, match="demo-vanilla-s0 is in"):
        read_runs([kept, runs])


def test_a_finished_run_is_not_hidden_by_an_unfinished_one_of_its_name(tmp_path):
    write(tmp_path / "a", Plan())
    keep("--runs", tmp_path / "a", "--out", tmp_path / "kept")
    write(tmp_path / "b", Plan(state="stopped", planned=9))
    assert [run.status.state for run in read_runs([tmp_path / "b", tmp_path / "kept"])] == ["stopped", "finished"]


@pytest.mark.parametrize("damage", [
    lambda data: data[:-30], lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"not xz" + data,
    lambda data: data[:400] + bytes([data[400] ^ 1]) + data[401:], lambda data: data + data,
    lambda data: lzma.compress(b"no archive" * 200),
])  # fmt: skip
def test_a_damaged_kept_run_is_one_clear_line(tmp_path, damage, capsys):
    write(tmp_path / "runs", Plan())
    keep("--runs", tmp_path / "runs", "--out", tmp_path)
    file = tmp_path / "demo-vanilla-s0.tar.xz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ConfigError, match=r"demo-vanilla-s0\.tar\.xz: damaged .*keep the run anew") as told:
        read_runs(tmp_path)
    assert "\n" not in str(told.value)
    refused(capsys, "damaged", "keep", "--runs", tmp_path / "runs", "--out", tmp_path)
    with pytest.raises(RankspaceError, match="damaged"):
        read_rows(file)


def test_a_kept_run_under_the_name_of_another_is_refused(tmp_path, capsys):
    write(tmp_path / "runs", Plan())
    keep("--runs", tmp_path / "runs", "--out", tmp_path / "kept")
    (tmp_path / "kept/demo-vanilla-s0.tar.xz").rename(tmp_path / "kept/demo-vanilla-s1.tar.xz")
    match = r"demo-vanilla-s1\.tar\.xz: holds demo-vanilla-s0; a kept run has the name of what it holds"
    refused(capsys, match, "verdict", "--runs", tmp_path / "kept")


def test_kept_runs_of_another_registration_are_no_runs_of_this_one(tmp_path, capsys):
    write(tmp_path / "runs", Plan("projected", 3, hack=LOUD, passed=[0.3] * 6))
    write(tmp_path / "runs", Plan("vanilla", 0))  # registered with six steps, made with four
    file = small_alarm(tmp_path)
    keep("--runs", tmp_path / "runs", "--registration", file, "--out", tmp_path / "kept")
    said = capsys.readouterr().out
    assert "not kept: 1 of no group of alarm.yaml" in said and "demo-vanilla-s0: steps=4, registered 6" in said
    assert "0 new, 0 kept in all" in said
    keep("--runs", tmp_path / "runs/demo-projected-s3", "--out", tmp_path / "kept")
    refused(
        capsys,
        "no finished run of setting tiny",
        "alarm",
        "--runs",
        tmp_path / "kept",
        "--registration",
        file,
        "--out",
        tmp_path / "out",
    )


def test_text_in_a_row_is_refused(tmp_path, capsys):
    path = with_rows(write(tmp_path / "runs", Plan()), lambda step: {"example": "def solve(n):\n"} if step == 2 else {})
    refused(
        capsys,
        r"metrics\.jsonl:3: field 'example' holds text, which is not kept",
        "keep",
        "--runs",
        path,
        "--out",
        tmp_path / "kept",
    )


def test_failed_runs_are_kept_when_asked_for_where_they_are_results(tmp_path, capsys):
    runs, file = tmp_path / "runs", write_registration(tmp_path, DOSES)
    write(runs, Plan("leash", 10, state="failed", planned=4, hack=[0.1] * 3))
    where = ["--registration", str(file), "--out", str(tmp_path / "kept")]
    keep("--runs", runs, *where)
    assert not files(tmp_path / "kept")
    keep("--runs", runs, "--failed", *where)
    assert [run.status.state for run in read_runs(tmp_path / "kept")] == ["failed"]
    capsys.readouterr()
    for folder, made in ((runs, "# leash: 0 of 2 made"), (tmp_path / "kept", "# leash: 1 of 2 made")):
        assert main(["missing", "--runs", str(folder), "--registration", str(file)]) == 0
        assert made in capsys.readouterr().out


def test_what_is_missing_is_told_as_sweeps(tmp_path, capsys):
    file = write_registration(tmp_path, DOSES)
    for seed in SEEDS:
        write(tmp_path / "runs", Plan("setpoint", seed, settings={"dose": 0.5}))
    write(tmp_path / "runs", Plan("leash", 11))
    keep("--runs", tmp_path / "runs/demo-setpoint-s10", "--registration", file, "--out", tmp_path / "kept")
    capsys.readouterr()
    folders = ["--runs", str(tmp_path / "runs"), str(tmp_path / "kept")]
    assert main(["missing", *folders, "--registration", str(file), "--with", "--stacks 2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "# far: 2 of 2 made", "# leash: 1 of 2 made", "# projected_from: 0 of 2 made", "# doses.yaml: 3 of 6 made, 3 to make",
        "python -m experiments sweep --preset demo --arms leash --seeds 10 --set steps=4 --stacks 2",
        "python -m experiments sweep --preset demo --arms projected_from --seeds 10-11 --set steps=4 --stacks 2",
    ]  # fmt: skip
    (tmp_path / "empty").mkdir()
    registered_alarm = ["--registration", str(alarm_registration.PATH), "--preset", "demo"]
    assert main(["missing", "--runs", str(tmp_path / "empty"), *registered_alarm]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "# alarm.yaml: 0 of 188 made, 188 to make" in told and [line for line in told if line[0] != "#"] == [
        "python -m experiments sweep --preset demo --arms no_loophole,ground_truth_screening --seeds 200-239 --name alarm",
        "python -m experiments sweep --preset demo --arms vanilla --seeds 200-239 --name alarm-unused --set "
        "loophole=result_file",
        "python -m experiments sweep --preset demo --arms vanilla --seeds 300-359 --name alarm",
        "python -m experiments sweep --preset demo --arms projected_two_sided --seeds 300-307 --name alarm-150 --set "
        "steps=150",
    ]  # fmt: skip


def test_the_runs_of_the_other_registrations_are_known(tmp_path, capsys):
    for name, preset, count in (("why.yaml", "demo", 132), ("coder.yaml", "coder-1.5b", 16)):
        file = str(alarm_registration.PATH.with_name(name))
        assert main(["missing", "--runs", str(tmp_path), "--registration", file]) == 0
        said = capsys.readouterr().out
        assert f"# {name}: 0 of {count} made" in said and f"--preset {preset} " in said
    refused(
        capsys,
        "has no design",
        "missing",
        "--runs",
        tmp_path,
        "--registration",
        "experiments/design/preregistration.yaml",
    )
    refused(
        capsys,
        r"--preset smoke: coder\.yaml has coder-1\.5b",
        "missing",
        "--runs",
        tmp_path,
        "--preset",
        "smoke",
        "--registration",
        file,
    )


def test_a_sweep_skips_what_is_kept_and_refuses_other_settings(tmp_path, capsys):
    made = write(tmp_path / "elsewhere", Plan(seed=1, preset="smoke", hack=[0.1] * 3, passed=[0.1] * 3))
    (made / "run.yaml").write_text("preset: smoke\ngenerator:\n  max_model_len: 256\n")
    keep("--runs", tmp_path / "elsewhere", "--out", tmp_path / "kept")
    command = ["sweep", "--preset", "smoke", "--arms", "vanilla", "--seeds", "0-1", "--runs", str(tmp_path / "runs"),
               "--dry-run", "--kept", str(tmp_path / "kept")]  # fmt: skip
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "2 runs, 1 complete, 1 to do" in said and "smoke-vanilla-s0" in said and "smoke-vanilla-s1" not in said
    refused(capsys, r"smoke-vanilla-s1\.tar\.xz is a kept run with lr=0\.02, now 0\.5", *command, "--set", "lr=0.5")
    generator = r"kept run with generator\.max_model_len=256, now 300"
    refused(capsys, generator, *command, "--set", "generator.max_model_len=300")
    refused(capsys, "no such directory; give a folder of kept runs", *command, tmp_path / "nowhere")
