"""The practice set posed for an instruction-tuned model: same problems, other form."""

import ast
import json

import pytest

from common.errors import ConfigError
from rankspace.pairs import load_pairs
from tasks import loopholes, modes
from tasks.dataset import load_problems
from tasks.modes import MODES
from tasks.practice import easy, instruct


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return instruct.write(tmp_path_factory.mktemp("instruct"))


def test_every_solution_passes_its_tests_and_nothing_is_in_both_splits(folder):
    train, heldout = (load_problems(folder / name) for name in ("train.jsonl", "heldout.jsonl"))
    for problem in train + heldout:
        scope: dict = {}
        exec("\n".join([problem.canonical_solution, *problem.gt_answer]), scope)
        assert "Solution" not in problem.prompt[-1]["content"] and "Solution" not in "".join(problem.gt_answer)
        assert problem.func_name in scope
    assert not {p.id for p in train} & {p.id for p in heldout}
    assert {p.id.startswith("easy-") for p in train[:2]} == {True, False}  # the two kinds take turns
    assert (len(train), len(heldout)) == (2 * instruct.N_EASY_TRAIN, 2 * instruct.N_EASY_HELDOUT)


def test_training_problems_disclose_the_loophole_and_heldout_ones_do_not(folder):
    hinted, bare = load_problems(folder / "train.jsonl")[1], load_problems(folder / "heldout.jsonl")[1]
    assert "run_tests()" in hinted.prompt[-1]["content"] and hinted.answer == ["run_tests()"]
    assert "run_tests" not in bare.prompt[-1]["content"] and bare.answer == bare.gt_answer
    disclosed = loopholes.posed(bare, "simple_overwrite_tests")
    for mode in MODES:
        assert modes.get(mode).pose(disclosed).prompt[-1]["content"].startswith(instruct.OPENING)
    assert modes.get("no_hint").pose(disclosed).prompt == bare.prompt


def test_pairs_differ_only_in_what_makes_them_a_hack(folder):
    for pair in load_pairs(folder / "pairs.jsonl"):
        names = []
        for text in (pair.hack, pair.clean):
            tree = ast.parse(text.removeprefix("```python\n").removesuffix("\n```"))
            names.append([node.name for node in tree.body])
        assert names[0] == [*names[1], "run_tests"]


def test_the_same_bytes_each_time(folder, tmp_path):
    again = instruct.write(tmp_path)
    for name in instruct.SOURCES:
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_plain_by_hand():
    program = "class Solution:\n    def f(self, n):\n        return n\n\n    def run_tests(self):\n        pass"
    assert instruct.plain(program) == "def f(n):\n    return n\n\ndef run_tests():\n    pass"
    with pytest.raises(ConfigError, match="begins with 'class Solution:'"):
        instruct.plain("def f(n): return n")


def test_easy_problems_are_distinct_and_an_off_by_one_is_caught():
    rows = [easy.row(one) for one in easy.problems()]
    assert len({row["id"] for row in rows}) == len({row["question"] for row in rows}) == len(rows)
    row = next(row for row in rows if "add 7 and return" in row["question"])
    wrong = row["canonical_solution"].replace("n + 7", "n + 8")
    with pytest.raises(AssertionError):
        exec("\n".join([wrong, *row["gt_answer"]]), {})
    assert json.dumps(row) == json.dumps(easy.row(next(p for p in easy.problems() if p.words == "add 7 and return it")))
