"""How a command line ends: exit codes, one line for the user, what Ctrl-C says, which words a shell may offer."""

import ast
import os
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from common import cli
from common.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", cli.STARTED_BY, cli.COMPLETING):
        monkeypatch.delenv(name, raising=False)


def raises(error):
    def main():
        raise error

    return main


def test_a_user_error_is_one_line_and_2(capsys):
    assert cli.run(raises(ConfigError("field 'lr':\n  is -1;   give more"))) == 2
    assert capsys.readouterr().err == "error: field 'lr': is -1; give more\n"


def test_other_errors_are_ours_unless_named(capsys):
    with pytest.raises(OSError, match="disk"):
        cli.run(raises(OSError("disk")))
    assert cli.run(raises(OSError("disk")), also=(OSError,)) == 2
    assert "error: disk" in capsys.readouterr().err


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1), (130, 130)])
def test_what_main_returns_is_the_exit_code(returned, code):
    assert cli.run(lambda: returned) == code


def test_ctrl_c_is_130_and_says_how_to_go_on(capsys):
    assert cli.run(raises(KeyboardInterrupt())) == 130
    assert cli.run(raises(KeyboardInterrupt("to resume: make demo"))) == 130
    assert capsys.readouterr().err == "interrupted\ninterrupted; to resume: make demo\n"


def test_a_command_that_another_started_leaves_the_last_line_to_it(capsys, monkeypatch):
    monkeypatch.setenv(cli.STARTED_BY, "1")
    assert cli.run(raises(KeyboardInterrupt("to resume: make demo"))) == 130
    assert capsys.readouterr().err == ""


def test_resumable_names_this_very_command_once(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "experiments", "run", "--set", "a=b c"])
    said = r"^to resume: python -m experiments run --set 'a=b c'$"
    with pytest.raises(KeyboardInterrupt, match=said), cli.Resumable("never said"), cli.Resumable():
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt, match=r"^to go on: python"), cli.Resumable("to go on"):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match=r"^untouched$"), cli.Resumable():
        raise ValueError("untouched")


@pytest.mark.parametrize(
    ("environment", "tty", "coloured"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "0"}, False, False),
    ],
)
def test_colour_is_for_terminals_and_can_be_refused_or_forced(monkeypatch, environment, tty, coloured):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cli.coloured(SimpleNamespace(isatty=lambda: tty)) is coloured


def test_a_forced_colour_wraps_the_word_error_only(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    cli.fail("no such run")
    assert capsys.readouterr().err == "\033[1;31merror:\033[0m no such run\n"


@pytest.fixture
def program(monkeypatch):
    """`prog one ...`: a command whose module is made up and remembers what it was given."""
    module = ModuleType("made_up_command")
    module.given = []
    module.main = lambda argv: module.given.append(argv)
    monkeypatch.setitem(sys.modules, "made_up_command", module)
    return module


def dispatch(argv, parsers=None):
    return cli.dispatch("usage: prog COMMAND\n", "prog", {"one": "made_up_command"}, argv, parsers)


def test_dispatch_hands_the_rest_to_the_command(program):
    assert dispatch(["one", "--x", "1"]) == 0
    assert program.given == [["--x", "1"]]


def test_dispatch_without_a_command_shows_the_usage_and_is_an_error(capsys):
    assert dispatch([]) == 2
    assert dispatch(["--help"]) == 0
    assert capsys.readouterr().out == "usage: prog COMMAND\n" * 2


def test_dispatch_names_the_commands_when_it_knows_none_such(capsys):
    assert dispatch(["two"]) == 2
    assert "unknown command 'two'; commands: one" in capsys.readouterr().err


def test_help_of_a_slow_command_comes_from_its_parser_alone(program, capsys):
    with pytest.raises(SystemExit) as end:
        dispatch(["one", "--help"], {"one": lambda: cli.Parser(prog="prog one", description="what it does")})
    assert end.value.code == 0 and program.given == []
    assert "what it does" in capsys.readouterr().out


def test_a_wrong_option_is_one_line_that_points_to_help(capsys):
    with pytest.raises(SystemExit) as end:
        cli.Parser(prog="prog one").parse_args(["--nonsense"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --nonsense; `prog one --help` explains\n"


def test_a_shell_is_offered_values_also_behind_a_comma():
    parser = cli.Parser(prog="prog one")
    action = parser.add_argument("--arms")
    cli.completes(action, lambda: ["vanilla", "projected"])
    assert action.completer("va") == ["vanilla", "projected"]
    assert action.completer("vanilla,pro") == ["vanilla,vanilla", "vanilla,projected"]


def test_only_the_command_in_the_line_gets_its_options(monkeypatch):
    monkeypatch.setenv("COMP_LINE", "prog two --l")
    made = []

    def makes(name):
        def make():
            made.append(name)
            parser = cli.Parser(prog=name)
            parser.add_argument(f"--long-{name}")
            return parser

        return make

    top = cli.tree("prog", {"one": "", "two": ""}, {"one": makes("one"), "two": makes("two")})
    assert made == ["two"]
    assert top.parse_args(["two", "--long-two", "x"]).long_two == "x"


def test_sigterm_ends_resumable_work_like_ctrl_c(capsys):
    before = signal.getsignal(signal.SIGTERM)

    def work():
        with cli.Resumable():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                signal.pause()
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # again, while the first is being obeyed

    assert cli.run(work) == cli.EXIT_STOPPED
    assert capsys.readouterr().err.startswith("interrupted; to resume: ")
    assert signal.getsignal(signal.SIGTERM) is before is signal.SIG_DFL


def test_resumable_work_leaves_sigterm_to_who_listens_already(stop):
    with cli.Resumable():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)


@pytest.fixture
def stop():
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    yield cli.Stop.on_signals("stopping when the step is done")
    for number, handler in before.items():
        signal.signal(number, handler)


def test_sigterm_asks_to_stop_and_is_no_failure(stop):
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.wait(5) and stop.exit_code(0) == 0


def test_the_first_ctrl_c_asks_and_the_second_ends_at_once(stop, capfd):
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.wait(5) and stop.exit_code(0) == 130
    assert capfd.readouterr().err == "\nstopping when the step is done\n"
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        stop.wait(0.1)


def test_the_end_after_ctrl_c_says_how_to_go_on_and_otherwise_nothing(stop, capsys):
    assert stop.end("start it again") == 0
    assert capsys.readouterr().err == ""
    stop._asked(signal.SIGTERM, None)
    stop._asked(signal.SIGINT, None)  # a later Ctrl-C does not turn SIGTERM into an interruption
    assert stop.end("start it again") == 0


def test_the_docstring_of_a_module_is_read_without_importing_it():
    before = set(sys.modules)
    assert cli.docstring("bench.loop") == ast.get_docstring(ast.parse((ROOT / "bench" / "loop.py").read_text()))
    assert set(sys.modules) - before <= {"bench"}  # the folder, to find the file


def test_without_the_environment_the_line_says_how_to_activate_it(capsys):
    def missing():
        raise ModuleNotFoundError("No module named 'redis'", name="redis.client")

    assert cli.run(missing) == 2
    said = capsys.readouterr().err
    assert "'redis' is not installed" in said and "source .venv/bin/activate" in said and said.count("\n") == 1

    def ours():
        raise ModuleNotFoundError("No module named 'experiments.nothing'", name="experiments.nothing")

    with pytest.raises(ModuleNotFoundError):
        cli.run(ours)
