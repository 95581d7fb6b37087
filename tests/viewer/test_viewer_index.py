"""The index follows the files: growing, cut off, torn, hostile, of another version; and tells what it skipped."""

import gzip
import json
import sqlite3
import threading

import pytest
from viewer_runs import HACK, hack, member, row, step_file, write_run

from common.errors import ConfigError
from experiments.viewer import query, rows, store
from experiments.viewer.index import INDEX, Indexer


@pytest.fixture
def indexer(tmp_path):
    made = []

    def make(path=None):
        made.append(Indexer(tmp_path, path))
        made[-1].scan()
        return made[-1]

    yield make
    for one in made:
        one.close()


def groups(indexer):
    return [tuple(r) for r in indexer.base.execute("SELECT group_id, idx FROM rollouts ORDER BY id")]


def skipped(indexer):
    base = store.open_reader(indexer.path)
    found = query.health(base)
    base.close()
    return found["torn_members"], found["unfinished_files"], found["bad_lines"]


def hits(indexer, q):
    base = store.open_reader(indexer.path)
    found = query.page(base, query.Filters(q=q))["total"]
    base.close()
    return found


def test_only_what_is_new_is_read(tmp_path, indexer, monkeypatch):
    run = write_run(tmp_path, steps={0: [row()], 1: [row(step=1)]})
    index, read = indexer(), []
    whole = rows.members
    monkeypatch.setattr(rows, "members", lambda data, offset=0: read.append((len(data), offset)) or whole(data, offset))
    index.scan()
    assert read == [], "nothing has changed"
    before = step_file(run, 1).stat().st_size
    added = member([row(1, step=1), row(1, 1, step=1)])
    with open(step_file(run, 1), "ab") as file:
        file.write(added)
    index.scan()
    assert read == [(len(added), before)], "only the bytes that came are read"
    assert groups(index) == [("vanilla-s0/train/0/0", 0), ("vanilla-s0/train/1/0", 0), ("vanilla-s0/train/1/1", 0),
                             ("vanilla-s0/train/1/1", 1)]  # fmt: skip


def test_a_member_is_taken_when_it_is_whole_wherever_the_trainer_stands(tmp_path, indexer):
    run, whole = write_run(tmp_path), member([row(0)]) + member([row(1)])
    index = indexer()
    first = len(member([row(0)]))
    for end in (1, 5, first - 1, first, first + 7, len(whole) - 1):
        step_file(run, 0).write_bytes(whole[:end])
        index.scan()
        assert len(groups(index)) == (end >= first), end
        assert skipped(index) == (0, int(end not in (first,)), 0), "counted while it is unfinished"
    step_file(run, 0).write_bytes(whole)
    index.scan()
    assert len(groups(index)) == 2 and skipped(index) == (0, 0, 0)


def test_a_resumed_trainer_writes_a_step_anew(tmp_path, indexer):
    run = write_run(tmp_path, steps={0: [row()], 1: [row(step=1, text="alpha")], 2: [row(step=2)]})
    index = indexer()
    step_file(run, 2).unlink()
    step_file(run, 1).unlink()
    step_file(run, 1).write_bytes(member([row(1, step=1, text="beta beta beta"), row(2, step=1, text="gamma")]))
    index.scan()
    assert [g for g, _ in groups(index)] == [f"vanilla-s0/train/{x}" for x in ("0/0", "1/1", "1/2")]
    assert hits(index, "alpha") == 0 and hits(index, "beta") == 1, "the search forgets too"


def test_a_run_that_is_gone_is_gone(tmp_path, indexer):
    write_run(tmp_path, steps={0: [row()]})
    other = write_run(tmp_path, "projected-s0", {0: [row(run="projected-s0", text="quagga")]})
    index = indexer()
    assert hits(index, "quagga") == 1
    for path in [*other.rglob("*.*")]:
        path.unlink()
    (other / "rollouts").rmdir()
    other.rmdir()
    index.scan()
    assert len(groups(index)) == 1 and hits(index, "quagga") == 0
    assert index.base.execute("SELECT count(*) FROM bodies").fetchone()[0] == 1


@pytest.mark.parametrize("where", [0.1, 0.5, 0.95])
def test_a_torn_member_is_stepped_over(tmp_path, indexer, where):
    run = write_run(tmp_path)
    torn = member([row(7, i) for i in range(8)])
    step_file(run, 0).write_bytes(
        member([row(0)]) + torn[: int(where * len(torn))] + member([row(1)]) + member([row(2)])
    )
    index = indexer()
    assert [g[-1] for g, _ in groups(index)] == ["0", "1", "2"] and skipped(index) == (1, 0, 0)


def test_a_member_with_a_wrong_checksum_is_no_member(tmp_path, indexer):
    data = bytearray(member([row(0)]))
    data[-6] ^= 255
    step_file(write_run(tmp_path), 0).write_bytes(bytes(data) + member([row(1)]))
    index = indexer()
    assert [g[-1] for g, _ in groups(index)] == ["1"] and skipped(index) == (1, 0, 0)


BAD = [b"{", b"[]", b"null", b"\xff\xfe", b'{"group_id": "g"}', b"[" * 100_000,
       json.dumps(row(index=-1)).encode(), json.dumps(row(step=1 << 70)).encode(), json.dumps(row(logprobs=[0.0])).encode(),
       json.dumps(row(token_ids="x")).encode(), b"9" * 5000]  # fmt: skip


def test_bad_lines_are_counted_and_their_neighbours_kept(tmp_path, indexer):
    lines = [json.dumps(row(0)).encode(), *BAD, b"", json.dumps(row(1)).encode()]
    step_file(write_run(tmp_path), 0).write_bytes(gzip.compress(b"\n".join(lines) + b"\n"))
    index = indexer()
    assert [g[-1] for g, _ in groups(index)] == ["0", "1"]
    assert skipped(index) == (0, 0, len(BAD))


def test_text_that_is_no_text_is_kept_readable(tmp_path, indexer):
    odd = "a\ud800b \x00 \u2028 é"
    lines = [
        json.dumps(row(0, text=odd, evidence={"x": odd, "n": float("nan")})),
        json.dumps(row(1, reward=float("inf"))),
    ]
    step_file(write_run(tmp_path), 0).write_bytes(gzip.compress("\n".join(lines).encode()))
    index = indexer()
    assert len(groups(index)) == 2 and skipped(index) == (0, 0, 0)
    assert index.base.execute("SELECT text FROM bodies").fetchone()[0] == odd.replace("\ud800", "�")


def test_an_old_row_is_read(tmp_path, indexer):
    """Without the fields that came later."""
    old = {k: v for k, v in row().items() if k not in ("prompt_ids", "reason", "finish_reason", "policy_version")}
    write_run(tmp_path, steps={0: [old]})
    assert len(groups(indexer())) == 1


def test_a_killed_scan_is_taken_up(tmp_path, indexer, monkeypatch):
    write_run(tmp_path, steps={i: [row(step=i)] for i in range(6)})
    index, stop, file = Indexer(tmp_path), threading.Event(), Indexer._file

    def one(self, run, path):
        file(self, run, path)
        if path.name.startswith("step_000002"):
            stop.set()

    monkeypatch.setattr(Indexer, "_file", one)
    index.scan(stop)
    index.close()
    monkeypatch.setattr(Indexer, "_file", file)
    again = Indexer(tmp_path)
    assert len(groups(again)) == 3
    again.scan()
    assert len(groups(again)) == 6
    again.close()


def test_an_error_in_the_middle_of_a_file_leaves_nothing_of_it(tmp_path, indexer, monkeypatch):
    run = write_run(tmp_path, steps={0: [row()]})
    index = indexer()
    step_file(run, 1).write_bytes(member([row(1, step=1)]) + member([row(2, step=1)]))
    calls, parse = [], rows.parse
    monkeypatch.setattr(rows, "parse", lambda line: calls.append(1) or (parse(line) if len(calls) < 2 else 1 / 0))
    with pytest.raises(ZeroDivisionError):
        index.scan()
    monkeypatch.setattr(rows, "parse", parse)
    assert len(groups(index)) == 1
    index.scan()
    assert len(groups(index)) == 3


def test_two_viewers_of_one_index(tmp_path, indexer):
    run = write_run(tmp_path, steps={i: [row(step=i)] for i in range(20)})
    both = [Indexer(tmp_path), Indexer(tmp_path)]
    for _ in range(3):
        with open(step_file(run, 3), "ab") as file:
            file.write(member([row(9, step=3)]))
        threads = [threading.Thread(target=one.scan) for one in both]
        [t.start() for t in threads]
        [t.join() for t in threads]
    found = groups(both[0])
    assert len(found) == 23
    for one in both:
        one.close()


@pytest.mark.parametrize("damage", ["version", "garbage", "truncated", "gone"])
def test_an_index_that_cannot_be_used_is_made_anew(tmp_path, indexer, damage):
    write_run(tmp_path, steps={0: [row()]})
    indexer().close()
    path = tmp_path / INDEX
    if damage == "version":
        base = sqlite3.connect(path)
        base.executescript("DROP TABLE cosines; PRAGMA user_version = 999;")
        base.close()
    elif damage == "garbage":
        path.write_bytes(b"no database" * 1000)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    else:
        path.unlink()
    assert len(groups(indexer())) == 1


def test_no_place_for_the_index_is_one_line(tmp_path):
    write_run(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--index FILE"):
        Indexer(tmp_path, tmp_path / "file" / "index.sqlite")
    with pytest.raises(ConfigError, match="no such directory"):
        Indexer(tmp_path / "nowhere")


def cos_line(made, cos, **more):
    from experiments.viewer.rows import token_digest

    line = {"group_id": made["group_id"], "index": made["index"], "cos": cos, "tokens": token_digest(made["token_ids"]),
            "at": "delta_S = 0", "direction": "v_hack"}  # fmt: skip
    return json.dumps(line | more) + "\n"


def cosines(index):
    return [r[0] for r in index.base.execute("SELECT cos FROM rollouts ORDER BY id")]


def test_a_cosine_belongs_to_the_very_completion_it_was_measured_on(tmp_path, indexer):
    first, second = hack(), row(index=1)
    run = write_run(tmp_path, steps={0: [first, second]})
    file = run / "rollouts" / "cos_000000.jsonl"
    file.write_text(cos_line(first, 0.5) + cos_line(second, -0.2, tokens="0" * 16) + "{\n")
    index = indexer()
    assert cosines(index) == [0.5, None] and skipped(index) == (0, 0, 1)
    step_file(run, 0).unlink()
    step_file(run, 0).write_bytes(member([hack(token_ids=[9, 9, 9]), first | {"group_id": "other"}]))
    index.scan()
    assert cosines(index) == [None, None], "the step was written anew: same names, other completions"
    step_file(run, 0).write_bytes(member([first, second, row(5)]))
    index.scan()
    assert cosines(index) == [0.5, None, None]
    file.unlink()
    index.scan()
    assert cosines(index) == [None] * 3


def test_members_end_where_gzip_says():
    data = b"".join(member([row(i)]) for i in range(3))
    found = list(rows.members(data))
    assert [m.start for m in found] == [0, found[0].end, found[1].end] and found[-1].end == len(data)
    assert all(m.text and gzip.decompress(data[m.start : m.end]) == m.text for m in found)


def test_the_root_may_be_a_run(tmp_path):
    run = write_run(tmp_path, steps={0: [row(text=HACK)]})
    index = Indexer(run)
    index.scan()
    assert len(groups(index)) == 1
    index.close()
