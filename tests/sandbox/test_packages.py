"""Third-party packages: none by default, only those of the allow-list, and no more of site-packages than they are."""

from __future__ import annotations

import pytest

from common.errors import ConfigError
from common.settings import SandboxSettings
from services.sandbox.jail.executor import Executor, landlock_present
from services.sandbox.verdicts.oracle import Oracle

needs_landlock = pytest.mark.skipif(not landlock_present(), reason="this kernel has no Landlock ABI 6: no full jail")
SORTED = "from sortedcontainers import SortedList\ndef f(a):\n    return list(SortedList(a))\n"
NUMPY = "import numpy as np\ndef f(a):\n    return np.sort(np.linalg.inv(np.eye(2)) @ a).astype(int).tolist()\n"
TESTS = ["assert f([3, 1]) == [1, 3]"]


@needs_landlock
def test_without_the_setting_there_is_none():
    assert SandboxSettings().packages == ()
    with Oracle() as oracle:
        for program in (SORTED, NUMPY):
            verdict = oracle.grade(program, TESTS, "", "f")
            assert not verdict.correct and "ModuleNotFoundError" in verdict.reason


@needs_landlock
def test_an_allowed_package_is_there_for_programs_setup_code_and_judge():
    with Oracle(packages=("sortedcontainers", "numpy")) as oracle:
        assert oracle.grade(SORTED, TESTS, "", "f").correct
        assert oracle.grade(NUMPY, TESTS, "", "f").correct
        setup = "from sortedcontainers import SortedList\n"
        assert oracle.grade("def f(a): return SortedList(a)[0]\n", ["assert f([3, 1]) == 1"], setup, "f").correct
        kept = "import sortedcontainers\nwant = sortedcontainers.SortedList([2, 1])\nassert f([2, 1]) == list(want)"
        assert oracle.grade("def f(a): return sorted(a)\n", [kept], "", "f").correct


@needs_landlock
def test_no_other_package_comes_with_it():
    look = (
        "for name in ('pydantic', 'redis', 'pytest', 'numpy'):\n"
        "    try: __import__(name); print(name)\n    except ImportError: pass\n"
    )
    read = "import sortedcontainers, os\nhere = os.path.dirname(sortedcontainers.__file__)\n" + (
        "try: print(os.listdir(os.path.dirname(here)))\nexcept OSError: print('refused')\n"
        "try: open(here + '/x', 'w'); print('written')\nexcept OSError: print('refused')\n"
    )
    with Executor(packages=("sortedcontainers",)) as executor:
        assert executor.run_script(look).stdout == b""
        assert executor.run_script(read).stdout == b"refused\nrefused\n"


@pytest.mark.parametrize(("name", "words"), [("pandas", "allow-list"), ("os", "allow-list"), ("../x", "allow-list")])
def test_what_is_not_on_the_list_is_refused_in_one_line(name, words):
    with pytest.raises(ConfigError, match=words):
        Executor(packages=(name,))


def test_one_that_is_not_installed_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed"):
        Executor(packages=("numpy",))
