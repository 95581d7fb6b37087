"""A place that cannot be written is one line, told before any work, whatever the command."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_runs import Plan, write

from common import cli
from common.errors import ConfigError
from common.writable import require_directory, require_file
from experiments.__main__ import main
from experiments.launch import samples
from rankspace import __main__ as rankspace_main
from rankspace import console

ROOT = Path(__file__).resolve().parents[2]
PAIRS = str(ROOT / "tasks/pairs/pairs.jsonl")
ORGANISM = str(ROOT / "tasks/organism/model")


@pytest.fixture(params=["file/inside", "/proc/nowhere/inside"])
def bad(request, tmp_path, monkeypatch):
    """Beneath a file, and where the kernel makes nothing."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "file").write_text("")
    write(tmp_path / "runs", Plan())
    return str(tmp_path / request.param), str(tmp_path / "runs")


COMMANDS = [
    "run --arm vanilla --preset smoke --runs BAD",
    "run --arm vanilla --preset smoke --runs BAD --dry-run",
    "sweep --arms vanilla --preset smoke --runs BAD",
    "demo --runs BAD",
    "demo --out BAD",
    "prepare --preset smoke --runs BAD --out BAD",
    "prepare --preset smoke --out BAD",
    "samples --preset smoke --out BAD",
    "report --runs RUNS --out BAD",
    "drift --runs RUNS --out BAD",
    "alarm --runs RUNS --out BAD",
    "watch RUNS/demo-vanilla-s0 --calibrate BAD",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_writes_says_so_first(bad, command, capsys):
    path, runs = bad
    assert main(command.replace("BAD", path).replace("RUNS", runs).split()) == cli.EXIT_USER_ERROR
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and path in said[0] and "that can be written" in said[0], said


@pytest.mark.parametrize("command", ["extract", "validate", "export"])
def test_rankspace_says_so_before_it_loads_a_model(bad, command, capsys, monkeypatch):
    monkeypatch.setattr(rankspace_main, "load_model", lambda *_: pytest.fail("a model was loaded"))
    direction = Path(bad[1]) / "v.safetensors"
    direction.write_text("")
    more = {"extract": ["--pairs", PAIRS], "validate": ["--pairs", PAIRS, "--v", str(direction)],
            "export": ["--run", f"{bad[1]}/demo-vanilla-s0"]}[command]  # fmt: skip
    assert rankspace_main.main([command, "--model", ORGANISM, "--out", bad[0], *more]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("error: --out") and "can be written" in said[0], said


def test_a_folder_where_a_file_belongs(tmp_path):
    require_directory(tmp_path / "new" / "deep", "--out")
    require_file(tmp_path / "new" / "file.jsonl", "--out")
    assert not list(tmp_path.iterdir()), "trying leaves nothing"
    with pytest.raises(ConfigError, match="Is a directory"):
        require_file(tmp_path, "--out")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("run", [cli.run, console.run])
def test_a_disk_that_fills_up_meanwhile_is_one_line(run, number, capsys):
    def work():
        raise OSError(number, "as the kernel calls it", "models/x")

    assert run(work) == 2
    assert "models/x: as the kernel calls it" in capsys.readouterr().err


@pytest.mark.parametrize(("said", "number"), [("I/O error: No room (os error 28)", errno.ENOSPC), ("odd", errno.EIO)])
def test_what_safetensors_cannot_write_is_an_error_of_the_disk(tmp_path, monkeypatch, said, number):
    """It raises a class of its own, which no `except OSError` sees."""
    from safetensors import SafetensorError

    from rankspace import RankspaceError, atomic_dir, svd_cache

    def full(*_):
        raise SafetensorError(said)

    monkeypatch.setattr(svd_cache, "serialize_file", full)
    with pytest.raises(OSError) as caught:
        svd_cache.atomic_save({}, tmp_path / "v.safetensors", {})
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / "v.safetensors"))
    refused = pytest.raises(RankspaceError, match=f"cannot write {tmp_path / 'out'}: {caught.value.strerror}")
    with refused, atomic_dir.new_directory(tmp_path / "out"):
        full()
    assert not list(tmp_path.iterdir()), "nothing half-written is left"


def test_rankspace_without_its_packages_says_what_to_install():
    """Also --help answers there: nothing that is not Python's own is imported on the way."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'safetensors', 'numpy']))\n"
    program = f"{blocked}from importlib import util\nutil.find_spec = lambda name: None\n"
    program += "from rankspace.__main__ import main, parser\nparser().format_help()\nsys.exit(main(sys.argv[1:]))"
    argv = ["extract", "--model", ORGANISM, "--pairs", PAIRS, "--out", "v.safetensors"]
    done = subprocess.run([sys.executable, "-c", program, *argv], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "transformers is not installed" in done.stderr, (
        done.stderr
    )


@pytest.mark.parametrize("run", [cli.run, console.run])
def test_a_file_of_ours_that_is_missing_stays_a_traceback(run):
    def work():
        raise FileNotFoundError(errno.ENOENT, "No such file", "ours")

    with pytest.raises(FileNotFoundError):
        run(work)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--n 0", "at least 1"), ("--limit 0", "at least 1"), ("--max-tokens 0", "at least 1"),
        ("--temperature 0", "above 0"), ("--temperature nan", "above 0"), ("--loophole nope", "unknown"),
        ("--set nope=1", "unknown field 'nope'"), ("--set generator.port=1", "the command that starts the service"),
        ("--set max_model_len=abc", "max_model_len"), ("--max-tokens 4096", "beyond the"), ("--model /nowhere", "config.json"),
    ],
)  # fmt: skip
def test_samples_refuses_what_cannot_be_before_it_starts_anything(tmp_path, capsys, monkeypatch, options, words):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(samples.Stack, "start", lambda *a, **k: pytest.fail("services were started"))
    with pytest.raises(SystemExit) if "at least" in words or "above" in words else nothing():
        assert main(["samples", "--preset", "smoke", "--out", str(tmp_path / "s"), *options.split()]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and words in said[0], said


def nothing():
    import contextlib

    return contextlib.nullcontext()


def test_the_generator_of_samples_has_room_for_what_was_asked(monkeypatch):
    monkeypatch.chdir(ROOT)
    from experiments.options import samples as parser

    args = parser().parse_args(["--preset", "smoke", "--max-tokens", "100", "--set", "max_num_seqs=4", "--out", "x"])
    server = samples.planned(args, ORGANISM).server
    assert (server["max_model_len"], server["max_num_seqs"]) == (256 - 64 + 100, 4)
