"""The promises of docs/shell.md: light --help, exit codes, colour, completion, Ctrl-C, what is running."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from common import acl, cli, delta_store, keys
from common.errors import ConfigError
from common.heartbeat import EXPIRES_S
from common.types import DeliveryProof, DeltaS, checksum
from experiments import completion, status, status_view
from experiments.__main__ import COMMANDS
from experiments.launch import live_services
from experiments.launch.stack import Stack, environment

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch",
    "vllm",
    "transformers",
    "deepspeed",
    "numpy",
    "scipy",
    "statsmodels",
    "matplotlib",
    "redis",
    "fastapi",
    "rich",
)
EVERY = [
    *([f"experiments {name}" for name in ("", *COMMANDS)]), "rankspace", "rankspace extract", "rankspace validate",
    "rankspace export", "services.trainer", "services.ref_server", "services.sandbox", "services.sandbox worker",
    "services.sandbox grade", "services.sandbox oracle", "services.sandbox selftest", "deploy", "bench", "bench.gpu",
    "bench.grading", "bench.bases", "bench.viewer", "deploy.audit", "tasks", "tasks check", "tasks fetch",
    "tasks.organism.make", "tasks.practice.generate", "tasks.practice.instruct",
]  # fmt: skip
MAY_LOAD = {"bench.viewer": {"rich"}}


def python(*arguments, **environment_):
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", cli.STARTED_BY)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT,
                          env=clean | environment_, timeout=200)  # fmt: skip


# ---- --help ----


@pytest.mark.parametrize("command", EVERY)
def test_help_imports_nothing_heavy(command):
    module, *words = command.split()
    done = python("-X", "importtime", "-m", module, *words, "--help")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr[-500:]
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    daily = {"pydantic"} if module.startswith(("experiments", "rankspace", "services")) else set()
    assert not loaded & ({*HEAVY} | daily) - MAY_LOAD.get(command.strip(), set())


# ---- exit codes and colour ----


@pytest.mark.parametrize(("command", "code", "says"), [
    (["experiments"], 2, ""),
    (["experiments", "nonsense"], 2, "error: unknown command 'nonsense'; commands: demo, run"),
    (["experiments", "run"], 2, "error: the following arguments are required: --arm; `python -m experiments run --help`"),
    (["experiments", "run", "--arm", "nope"], 2, "error: unknown arm 'nope'; arms: vanilla"),
    (["experiments", "status", "--watch", "0"], 2, "error: --watch 0.0: give seconds above 0"),
    (["rankspace", "extract", "--out", "x"], 2, "error: the following arguments are required: --model"),
    (["rankspace", "extract", "--model", "nowhere", "--pairs", "no.jsonl", "--out", "x"], 2, "error: "),
    (["services.trainer", "--set", "nope=1"], 2, "error: trainer: "),
    (["services.ref_server", "--bogus"], 2, "error: unrecognized arguments: --bogus"),
    (["services.sandbox", "grade", "--input", "no.jsonl", "--output", "y"], 2, "error: --input no.jsonl cannot be read"),
    (["deploy", "sideways"], 2, "error: unknown command 'sideways'"),
])  # fmt: skip
def test_what_the_user_can_put_right_is_one_line_and_2(command, code, says):
    done = python("-m", *command)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1 and done.stderr.startswith(says), done.stderr


def test_status_of_nothing_is_1_with_stack_and_0_without(tmp_path, capsys, monkeypatch):
    for name in ("REDIS_URL", "REDIS_PASSWORD_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert status.main(["--stack"]) == cli.EXIT_FAILED
    assert "no stack runs here: start one with `make up`" in " ".join(capsys.readouterr().out.split())
    assert status.main([]) == 0
    assert "no runs yet" in capsys.readouterr().out
    assert status.main(["--stack", "--json"]) == 1 and capsys.readouterr().out == "[]\n"
    with pytest.raises(ConfigError, match="no such directory"):
        status.main(["--runs", "elsewhere"])


@pytest.mark.parametrize("module", ["experiments", "rankspace", "services.sandbox", "deploy"])
@pytest.mark.parametrize(("variables", "red"), [
    ({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False), ({"FORCE_COLOR": "0"}, False),
])  # fmt: skip
def test_colour_in_a_pipe(module, variables, red):
    done = python("-m", module, "nonsense", **variables)
    assert done.returncode == 2
    assert done.stderr.startswith("\033[1;31merror:\033[0m " if red else "error: ")


@pytest.mark.parametrize("module", ["experiments", "rankspace"])
@pytest.mark.parametrize(("variables", "red"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colour_on_a_terminal(module, variables, red):
    said, code = in_terminal([sys.executable, "-m", module, "nonsense"], variables=variables)
    assert code == 2 and ("\033[1;31merror:" in said) == red, said


# ---- Ctrl-C, typed at a terminal ----


def in_terminal(command, until=None, variables=None, limit=240.0, number=None):
    """Run in a pseudo-terminal; type Ctrl-C once the pattern `until` was printed, or send that process the signal `number`.
    (what was printed, exit code)."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", cli.STARTED_BY)}
        os.execvpe(command[0], command, {**clean, "TERM": "xterm", "OMP_NUM_THREADS": "1", **(variables or {})})
    said, typed, deadline = "", False, time.monotonic() + limit
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                data = os.read(terminal, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            said += data.decode(errors="replace")
        if until and not typed and re.search(until, said):
            time.sleep(0.3)
            os.write(terminal, b"\x03") if number is None else os.kill(pid, number)
            typed = True
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(terminal)
    return said, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def resumes(said, command):
    """The command that the last words of `said` give, word for word as it was typed."""
    import shlex

    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", said)
    given = re.findall(r"to (?:resume|start it again|start again): (.+)", plain)
    return bool(given) and shlex.split(given[-1]) == command


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """Redis alone, with its users."""
    found = Stack(tmp_path_factory.mktemp("runs") / ".stack" / "r")
    found.root.mkdir(parents=True)
    from common.ports import free_port

    found._start_redis(free_port())
    found._wait("Redis", found._connected)
    yield found
    found.stop()


def test_a_grader_stops_at_ctrl_c_and_says_how_to_start_it_again(stack):
    access = stack.access("sandbox")
    command = [sys.executable, "-m", "services.sandbox", "worker", "--name", "g", "--no-require-isolation"]
    command += [part for name, value in access.items() for part in ("--set", f"{name}={value}")]
    said, code = in_terminal(command, "sandbox g ready")
    assert code == 130 and "taken over" in said and resumes(said, command), said
    assert "Traceback" not in said


def test_sigterm_ends_a_grader_with_0(stack):
    command = [sys.executable, "-m", "services.sandbox", "worker", "--name", "g2", "--no-require-isolation"]
    command += [part for name, value in stack.access("sandbox").items() for part in ("--set", f"{name}={value}")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment())
    assert any("ready" in line for line in process.stdout)
    process.terminate()
    assert process.wait(60) == 0


def test_extraction_interrupted_leaves_no_direction(tmp_path):
    command = [sys.executable, "-m", "rankspace", "extract", "--model", "tasks/organism/model", "--pairs",
               "tasks/pairs/pairs.jsonl", "--out", str(tmp_path / "v.safetensors")]  # fmt: skip
    said, code = in_terminal(command, r"(SVD|gradients)")
    assert code == 130 and resumes(said, command) and "Traceback" not in said, said
    assert list(tmp_path.iterdir()) == []


def test_a_second_ctrl_c_does_not_wait():
    stop = cli.Stop.on_signals("once")
    try:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5) and stop.exit_code(cli.EXIT_STOPPED) == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        asked = cli.Stop.on_signals("once")
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # the terminal's, after the parent's: one request, not two
        assert asked.is_set() and asked.exit_code(cli.EXIT_STOPPED) == cli.EXIT_STOPPED
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "number"),
    [("run", None), ("sweep", None), ("demo", None), ("run", signal.SIGTERM), ("sweep", signal.SIGTERM)],
)
def test_training_stops_at_ctrl_c_or_sigterm_and_the_same_command_finishes_it(kind, number, tmp_path):
    arms = {
        "run": ["--arm", "projected"],
        "sweep": ["--arms", "projected", "--seeds", "0"],
        "demo": ["--arms", "projected"],
    }
    more = ["--out", str(tmp_path / "report")] if kind == "demo" else ["--isolation", "best_effort"]
    command = [sys.executable, "-m", "experiments", kind, *arms[kind], *more, "--preset", "smoke", "--set", "steps=40",
               "--runs", str(tmp_path)]  # fmt: skip
    begun = r"steps/s|\b[1-9]\d?/40"  # not 0/40, which a sweep shows before its trainer has begun
    said, code = in_terminal(command, begun, limit=280, number=number)
    assert code == (130 if number is None else 3) and resumes(said, command) and "Traceback" not in said, said[-2000:]
    saved = json.loads((tmp_path / "smoke-projected-s0/status.json").read_text())
    assert saved["state"] == "stopped" and saved["step"] < 40


@pytest.mark.slow
def test_a_trainer_by_hand_stops_at_ctrl_c_and_the_same_command_resumes_it(tmp_path):
    from common.settings import TrainerSettings, build
    from experiments.design import presets
    from experiments.launch.direction import ensure_direction

    values = presets.resolve("smoke", "projected", 0, {"steps": 200, "eval_problems": 1}, tmp_path)
    settings = build(TrainerSettings, values)
    ensure_direction("smoke", "projected", 0, settings)
    with Stack.start(tmp_path / "stack", settings.model, presets.get("smoke").server, 1, "best_effort") as services:
        config = tmp_path / "trainer.json"
        config.write_text(settings.model_copy(update=services.access("trainer")).model_dump_json())
        command = [sys.executable, "-m", "services.trainer", "--config", str(config)]
        for before in (0, 1):  # the second time it goes on where the first one stopped
            said, code = in_terminal(command, r"steps/s")
            assert code == 130 and resumes(said, command) and "Traceback" not in said, said[-2000:]
            step = json.loads((settings.run_dir / "status.json").read_text())["step"]
            assert before <= step < 200
            assert len((settings.run_dir / "metrics.jsonl").read_text().splitlines()) == step


# ---- what is running ----


def delta(version):
    vector = bytes(8)
    return DeltaS(run_id="r", version=version, modules=[("m", 2)], adapter="antipasto", vector=vector,
                  checksum=checksum(vector), probe_ids=[1, 2])  # fmt: skip


def test_status_of_a_stack(stack, monkeypatch, capsys):
    for name in ("REDIS_URL", "REDIS_PASSWORD_FILE"):
        monkeypatch.delenv(name, raising=False)
    (stack.root / "ref_server.json").write_text(json.dumps({"redis_url": stack.redis_url}))
    trainer, generator, grader = (stack.client(user) for user in ("trainer", "ref_server", "sandbox"))
    generator.set(keys.heartbeat("ref_server", "gen-0"), "1", ex=EXPIRES_S)
    generator.set(keys.heartbeat("ref_server", "gen-1"), "1", ex=EXPIRES_S)
    grader.set(keys.heartbeat("sandbox", "alive"), "1", ex=EXPIRES_S)
    trainer.set(keys.trainer_lock("r"), "me", ex=15)
    for version in range(4):
        delta_store.publish(trainer, delta(version))
        for replica in ("gen-0", "gen-1", "long-gone")[: 3 if version < 2 else 1]:
            proof = DeliveryProof(
                run_id="r", version=version, replica=replica, checksum="x", probe_logprobs=[0.0], load_s=0.1
            )
            delta_store.prove(generator, proof)
    for n in range(3):
        generator.xadd(keys.ROLLOUTS, {"m": str(n)})
    with suppress(redis.ResponseError):  # an earlier grader has made it
        grader.xgroup_create(keys.ROLLOUTS, keys.GRADERS, id="0", mkstream=True)
    grader.xreadgroup(keys.GRADERS, "killed", {keys.ROLLOUTS: ">"}, count=2)
    grader.xadd(keys.DEAD, {"stream": keys.ROLLOUTS, "reason": "poison", "at": "1.0"})
    (found,) = live_services.running(live_services.candidates(stack.root.parents[1]))
    services = {(s["service"], s["name"]): (s["state"], s["claimed"]) for s in found["services"]}
    assert services == {("trainer", "r"): ("alive", 0), ("ref_server", "gen-0"): ("alive", 0),
                        ("ref_server", "gen-1"): ("alive", 0), ("sandbox", "alive"): ("alive", 0),
                        ("sandbox", "killed"): ("gone", 2)}  # fmt: skip
    (rollouts,) = [s for s in found["streams"] if s["stream"] == keys.ROLLOUTS]
    assert (rollouts["depth"], rollouts["claimed"]) == (3, 2) and 0 <= rollouts["oldest_claim_s"] < 60
    assert (found["dead"]["count"], found["dead"]["reason"]) == (1, "poison")
    (policy,) = found["policies"]
    assert (policy["run"], policy["trainer"], policy["version"]) == ("r", "alive", 3)
    assert policy["generators"] == {"gen-0": {"version": 3, "behind": 0}, "gen-1": {"version": 1, "behind": 2}}
    assert status.main(["--stack", "--json", "--runs", str(stack.root.parents[1])]) == 0
    assert json.loads(capsys.readouterr().out)[0]["policies"] == [policy]
    assert status.main(["--stack", "--runs", str(stack.root.parents[1])]) == 0
    page = capsys.readouterr().out
    assert "gone" in page and "1 dead letters" in page and "poison" in page


def test_a_stack_that_was_asked_for_and_is_silent_is_an_error(tmp_path):
    done = python("-m", "experiments", "status", "--redis-url", "redis://127.0.0.1:1/0")
    assert done.returncode == 2 and done.stderr.startswith("error: redis_url redis://127.0.0.1:1/0: no Redis answers")


def test_a_missing_service_is_told():
    from rich.console import Console

    console = Console(record=True, width=100)
    stack = {"name": "s", "redis_url": "u", "services": [{"service": "sandbox", "name": "g", "state": "alive", "claimed": 0}],
             "streams": [], "policies": [], "dead": {"count": 0, "stream": None, "reason": None, "at": None}}  # fmt: skip
    console.print(status_view.page([stack], None))
    assert re.search(r"ref_server\s+-\s+none alive", console.export_text())


def test_monitor_may_look_and_nothing_else():
    assert all(grant.access == "R" for grant in acl.GRANTS["monitor"])


def test_watch_ends_at_ctrl_c_with_0(stack):
    command = [sys.executable, "-m", "experiments", "status", "--stack", "--json", "--watch", "0.2", "--runs",
               str(stack.root.parents[1])]  # fmt: skip
    said, code = in_terminal(command, r"\[.*\r?\n.*\[")
    assert code == 0 and "Traceback" not in said, said


# ---- completion ----

PROBE = """
source <({python} -m experiments completion bash)
COMP_LINE={line}; COMP_POINT=${{#COMP_LINE}}; COMP_TYPE=9
read -ra COMP_WORDS <<<"$COMP_LINE"; [[ $COMP_LINE == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); compopt() {{ :; }}
_rankspace_complete; IFS=$'\\n'; echo "${{COMPREPLY[*]}}"
"""


def bash(line):
    script = PROBE.format(python=sys.executable, line=repr(line))
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120).stdout.split()


@pytest.mark.parametrize(("line", "offered"), [
    ("-m experiments st", {"status"}),
    ("-m experiments run --arm projected_up", {"projected_update"}),
    ("-m experiments sweep --arms vanilla,rebound_z", {"vanilla,rebound_z"}),
    ("-m experiments run --preset smok", {"smoke"}),
    ("-m experiments run --set kl_", {"kl_beta="}),
    ("-m services.sandbox orac", {"oracle"}),
    ("-m services.sandbox grade --inp", {"--input"}),
    ("-m services.trainer --conf", {"--config"}),
    ("-m rankspace extract --control s", {"shuffled", "subspace"}),
    ("-m deploy d", {"down"}),
    ("-m http.server --b", set()),
])  # fmt: skip
def test_bash_completes(line, offered):
    assert set(bash(f"{sys.executable} {line}")) == offered


def test_a_real_bash_completes_at_tab(tmp_path):
    """Typed into an interactive bash: TAB finishes the word."""
    startup = tmp_path / "rc"
    startup.write_text(f"source <({sys.executable} -m experiments completion bash)\nPS1='> '\n")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execvpe("bash", ["bash", "--noprofile", "--rcfile", str(startup), "-i"], {**os.environ, "TERM": "dumb"})
    said, deadline, step = "", time.monotonic() + 90, 0
    keystrokes = [
        ("> ", f"echo {sys.executable} && "),
        ("&& ", f"{sys.executable} -m experiments next"),
        ("s next", "\t"),
    ]
    while time.monotonic() < deadline and "next-preset" not in said:
        if step < len(keystrokes) and keystrokes[step][0] in said:
            os.write(terminal, keystrokes[step][1].encode())
            step += 1
        if select.select([terminal], [], [], 0.2)[0]:
            said += os.read(terminal, 65536).decode(errors="replace").replace("\r", "")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert "experiments next-preset" in said, said


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_takes_the_function():
    done = subprocess.run(["zsh", "-f", "-c", f"{completion.script('zsh')}\necho ${{_comps[python3]}}"],
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.stdout.strip() == "_rankspace_complete", done.stderr
