"""Problems set aside: no problem on both sides, none lost, the same for one seed, and a number that makes no sense refused."""

import json

from tasks.__main__ import main

TRAIN = "tasks/practice/practice_train.jsonl"


def split(folder, n, seed=0):
    out, rest = folder / "heldout.jsonl", folder / "train.jsonl"
    code = main(
        ["split", "--problems", TRAIN, "--n", str(n), "--seed", str(seed), "--out", str(out), "--rest", str(rest)]
    )
    return code, out, rest


def ids(path):
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_every_problem_stands_on_one_side(tmp_path):
    code, out, rest = split(tmp_path, 7)
    everything = ids_of_source()
    assert code == 0 and len(ids(out)) == 7
    assert sorted(map(str, ids(out) + ids(rest))) == sorted(map(str, everything))
    assert [i for i in everything if i in set(ids(out))] == ids(out), "the file's order"
    assert main(["check", str(out), str(rest)]) == 0


def ids_of_source():
    with open(TRAIN) as file:
        return [json.loads(line)["id"] for line in file]


def test_a_seed_gives_one_split(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    first, same, other = (split(f, 20, seed)[1].read_bytes() for f, seed in zip(folders, (0, 0, 1), strict=True))
    assert first == same != other


def test_a_number_that_leaves_nothing_is_refused(tmp_path, capsys):
    for n in (0, len(ids_of_source())):
        code, out, _ = split(tmp_path, n)
        assert code == 2 and not out.exists()
        assert "--n is" in capsys.readouterr().err
