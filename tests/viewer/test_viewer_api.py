"""What the page is told: filters, order, search, one completion; and what a stranger is not told."""

import contextlib
import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from viewer_runs import GOOD, HACK, HOSTILE, hack, member, row, step_file, write_run

from common.ports import free_port
from experiments.viewer import query, store
from experiments.viewer.app import build_app
from experiments.viewer.index import Indexer

ROOT = Path(__file__).resolve().parents[2]
FORGED = hack(group=2, label="Correct", published_correct=True, oracle_correct=False, reward=3.5, advantage=2.0)


@pytest.fixture
def client(tmp_path):
    root = tmp_path / "runs"
    write_run(root, steps={
        0: [row(0), row(0, 1, advantage=-0.5, reward=0.5, label="Incorrect", oracle_correct=False, published_correct=False)],
        1: [hack(group=1, step=1), row(3, step=1, purpose="eval", mode="no_hint", reward=None, advantage=None, label=None,
                                       oracle_correct=None, published_correct=None, status="infra_error", reason="Redis: away")],
        2: [FORGED | {"step": 2}],
    })  # fmt: skip
    write_run(
        root, "projected-s0", {0: [row(run="projected-s0", text=HOSTILE, token_ids=[1] * 5, logprobs=[-0.5] * 5)]}
    )
    (tmp_path / "secret.txt").write_text("SECRET")
    indexer = Indexer(root)
    indexer.scan()
    with TestClient(build_app(indexer), base_url="http://127.0.0.1:8800") as made:
        made.indexer, made.root = indexer, root
        yield made
    indexer.close()


def page(client, **more):
    answer = client.get("/api/rollouts", params=more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def names(client, **more):
    return [f"{r['run'][0]}{r['step']}.{r['group'][-1]}.{r['index']}" for r in page(client, **more)["rows"]]


def test_the_order_of_the_run(client):
    assert names(client) == ["p0.0.0", "v0.0.0", "v0.0.1", "v1.1.0", "v1.3.0", "v2.2.0"]
    assert names(client, desc=True) == names(client)[::-1]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"run": "projected-s0"}, ["p0.0.0"]), ({"arm": ["vanilla", "projected"], "step_max": 0}, ["p0.0.0", "v0.0.0", "v0.0.1"]),
        ({"label": ["Reward Hack", "Incorrect"]}, ["v0.0.1", "v1.1.0"]), ({"step_min": 1, "step_max": 1}, ["v1.1.0", "v1.3.0"]),
        ({"mode": "no_hint"}, ["v1.3.0"]), ({"purpose": "eval"}, ["v1.3.0"]), ({"status": "infra_error"}, ["v1.3.0"]),
        ({"verdict": "forged"}, ["v2.2.0"]), ({"verdict": "neither"}, ["v0.0.1", "v1.1.0"]), ({"verdict": "unasked"}, ["v1.3.0"]),
        ({"problem": "p-2"}, ["v2.2.0"]), ({"group": "vanilla-s0/train/0/0"}, ["v0.0.0", "v0.0.1"]),
        ({"modification": "Harmful - Arbitrary"}, ["v1.1.0", "v2.2.0"]), ({"measured": True}, []),
        ({"label": "' OR 1=1 --"}, []), ({"run": "../secret.txt"}, []), ({"step_min": 5}, []),
    ],
)  # fmt: skip
def test_filters(client, asked, found):
    assert names(client, **asked) == found
    assert page(client, **asked)["total"] == len(found)


def test_without_the_oracle_nothing_is_forged(client):
    step_file(client.root / "vanilla-s0", 4).write_bytes(member([row(4, step=4, oracle_correct=None)]))
    client.indexer.scan()
    assert names(client, verdict="forged") == ["v2.2.0"] and names(client, step_min=4) == ["v4.4.0"]


def test_sorting_puts_what_has_no_value_last_both_ways(client):
    up, down = (names(client, sort="advantage", desc=d) for d in (False, True))
    assert up[0] == "v0.0.1" and down[0] == "v2.2.0" and up[-1] == down[-1] == "v1.3.0"
    assert names(client, sort="tokens", desc=True)[0] == "p0.0.0"


def test_pages_hold_every_rollout_once(client):
    for sort in ("run", "reward", "advantage", "tokens", "cos", "logprob"):
        found = [n for offset in range(0, 6, 2) for n in names(client, sort=sort, offset=offset, limit=2)]
        assert sorted(found) == sorted(names(client)), sort
    assert page(client, offset=10**9)["rows"] == []


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ("unique_zebra", 3), ("UNIQUE_ZEBRA", 3), ("unique", 0), ("unique*", 3), ("nums[i]", 3), ('"return 0"', 2), ("zebra", 0),
        ("solution zebra OR n", 2), ("unique_zebra OR owned", 4), ("class NOT unique_zebra", 2), ("away", 1), ("wrong", 2),
        ("p-2", 1), ("'", None), ('"', None), ("(", None), ("OR", None), ("NOT x", None), ("x AND OR y", None), ("* * *", None),
        ("text:class", 0), ("NEAR(class)", 0), ("^class", 5), ("class -unique_zebra", 3), ("{text} : x", 0), 
        ("a\x00b", 0), ("\x00", None),
        ("x" * 1000, 0), ("é ü 日本", 0), ("%", None), ('class "', None),
    ],
)  # fmt: skip
def test_search(client, q, found):
    answer = client.get("/api/rollouts", params={"q": q})
    if found is None:
        assert answer.status_code == 400 and len(answer.json()["detail"]) > 20
    else:
        assert answer.status_code == 200 and answer.json()["total"] == found, answer.text


def test_any_search_is_answered(client):
    """Every short string of the characters that mean something to FTS5 or SQL: an answer or a reason, never a fault."""
    base, answered = store.open_reader(client.indexer.path), 0
    letters = map("".join, itertools.product("a\"*()^:-'; ", repeat=3))
    words = map(" ".join, itertools.product(("a", "AND", "OR", "NOT", "NEAR", '"b c"', "d*"), repeat=3))
    for text in (*letters, *words):
        with contextlib.suppress(query.QueryError):
            query.page(base, query.Filters(q=text, limit=1))
            answered += 1
    base.close()
    assert answered > 300


def test_hits_are_marked_outside_of_markup(client):
    (found,) = page(client, q="onerror")["rows"]
    assert "\x02onerror\x03" in found["snippet"] and "<img" in found["snippet"]


def one(client, **more):
    return client.get("/api/rollout", params={"run": "vanilla-s0", "group": "vanilla-s0/train/1/1", "index": 0} | more)


def test_one_completion_has_everything(client):
    found = one(client).json()
    assert "".join(text for _, text in found["parts"]) == HACK
    assert [text for kind, text in found["parts"] if kind == "test"] == ["    def run_tests(self):\n        pass\n"]
    assert (found["test_name"], found["published"], found["oracle"], found["forged"]) == ("run_tests", 0, 0, 0)
    assert found["token_ids"] == [1, 2, 3] and found["logprobs"] == [-0.01, -1.0, -5.0]
    assert found["pieces"] is None and "tokenizer" in found["no_pieces"], "its model is not here"
    assert found["evidence"]["oracle_reason"] == "test 1: wrong" and found["prompt_tokens"] == 2
    assert [s["index"] for s in one(client, group="vanilla-s0/train/0/0").json()["siblings"]] == [0, 1]


@pytest.mark.parametrize(
    "asked",
    [{"index": 9}, {"group": "x"}, {"run": "nobody"}, {"run": "../runs/vanilla-s0"}, {"run": ".."}, {"run": "/etc"},
     {"run": "a\x00b"}],
)  # fmt: skip
def test_what_is_not_there_is_not_found(client, asked):
    answer = one(client, **asked)
    assert answer.status_code == 404 and "no completion" in answer.json()["detail"]


@pytest.mark.parametrize("asked", [{"index": -1}, {"index": 1 << 70}, {"index": "x"}, {"run": "x" * 9999}])
def test_bad_requests_are_one_line(client, asked):
    answer = one(client, **asked)
    assert answer.status_code == 422 and "\n" not in answer.json()["detail"] and len(answer.json()["detail"]) < 300


@pytest.mark.parametrize(
    "asked", ["sort=reward;DROP TABLE runs", "sort=id", "offset=-1", "limit=0", "limit=1000000", "step_min=x", "verdict=1",
              "unknown=1", "offset=99999999999999999999"],
)  # fmt: skip
def test_bad_filters_are_refused(client, asked):
    answer = client.get(f"/api/rollouts?{asked}")
    assert answer.status_code == 422 and "\n" not in answer.json()["detail"]
    assert page(client)["total"] == 6


def test_a_file_written_anew_since_is_said_to_be(client):
    run = client.root / "vanilla-s0"
    step_file(run, 1).write_bytes(member([row(9, step=1)]))
    assert one(client).status_code == 404
    step_file(run, 1).write_bytes(member([hack(1, step=1, token_ids=[7, 7, 7])]))
    assert one(client).status_code == 404, "the same name, another completion"
    step_file(run, 1).write_bytes(b"")
    assert one(client).status_code == 404
    step_file(run, 1).unlink()
    assert one(client).status_code == 404
    client.indexer.scan()
    assert page(client)["total"] == 4


PATHS = """/static/../app.py /static/%2e%2e/app.py /static/..%2fapp.py /static/%2e%2e%2f%2e%2e%2f%2e%2e%2fREADME.md
/static//etc/passwd /static/..\\app.py /../secret.txt /secret.txt /runs/vanilla-s0/config.json /docs /openapi.json /static/"""


@pytest.mark.parametrize("path", PATHS.split())
def test_no_path_leads_out(client, path):
    answer = client.get(path)
    assert answer.status_code in (404, 405) and "SECRET" not in answer.text and "import" not in answer.text


def test_every_answer_forbids_what_the_page_does_not_need(client):
    for path in ("/", "/static/app.js", "/api/state", "/api/rollouts?q=(", "/api/rollout", "/nowhere"):
        headers = client.get(path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert (
            policy["default-src"] == "'none'" and policy["script-src"] == "'self'" and policy["base-uri"] == "'none'"
        ), path
        assert "unsafe" not in headers["content-security-policy"] and "http" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert client.get("/api/rollout").headers["content-type"] == "application/json"


def test_another_name_for_this_machine_is_refused(client):
    """A page of evil.example whose name now points here."""
    assert client.get("/api/rollouts", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/api/rollouts", headers={"host": "localhost:8800"}).status_code == 200


def test_nothing_can_be_changed(client):
    for method in ("post", "put", "patch", "delete"):
        assert getattr(client, method)("/api/rollouts").status_code == 405
    for path in ("/", "/api/rollouts"):
        assert "access-control-allow-origin" not in client.get(path, headers={"origin": "http://evil.example"}).headers


def test_state_counts_what_was_skipped_and_where(client):
    run = client.root / "vanilla-s0"
    step_file(run, 1).write_bytes(member([row(1, step=1)])[:-9] + member([row(1, step=1)]) + b"\x1f\x8b\x08rest")
    client.indexer.scan()
    state = client.get("/api/state").json()
    assert (state["torn_members"], state["unfinished_files"], state["bad_lines"]) == (1, 1, 0)
    assert state["where"] == [{"file": "vanilla-s0/rollouts/step_000001.jsonl.gz", "torn": 1, "open": 1, "bad": 0}]


def test_facets_follow_the_index(client):
    facets = client.get("/api/facets").json()
    assert facets["total"] == 6 and facets["forged"] == 1 and facets["steps"] == [0, 2]
    assert [(r["name"], r["arm"], r["count"]) for r in facets["runs"]] == [
        ("projected-s0", "projected", 1), ("vanilla-s0", "vanilla", 5)]  # fmt: skip
    step_file(client.root / "vanilla-s0", 7).write_bytes(member([row(step=7, label="Attempted Reward Hack")]))
    client.indexer.scan()
    facets = client.get("/api/facets").json()
    assert facets["total"] == 7 and {"value": "Attempted Reward Hack", "count": 1} in facets["label"]


def test_answers_are_ascii_json_whatever_was_written(client):
    odd = "a\ud800\x00\x7f</script>\u2028"
    line = row(8, step=8, text=odd, evidence={"x\ud800": [odd, float("inf")]}, problem_id=odd)
    step_file(client.root / "vanilla-s0", 8).write_bytes(member([line]))
    client.indexer.scan()
    raw = one(client, group="vanilla-s0/train/8/8").content
    assert raw.isascii() and json.loads(raw)["parts"] == [["prose", odd.replace("\ud800", "�")]]
    assert page(client, step_min=8)["total"] == 1


def test_the_text_of_the_samples_is_what_the_tests_think():
    assert "unique_zebra" in GOOD and "unique_zebra" not in HACK


def test_the_command_serves_ends_and_says_what_is_wrong(tmp_path):
    root = write_run(tmp_path / "runs", steps={0: [row()]}).parent
    port = free_port()
    command = [sys.executable, "-m", "experiments", "view", "--runs", str(root), "--port", str(port)]
    served = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert f"http://127.0.0.1:{port}/" in served.stdout.readline()
        deadline = time.monotonic() + 60
        while httpx.get(f"http://127.0.0.1:{port}/api/facets").json()["total"] != 1:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").json()["ok"] is True
        taken = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert taken.returncode == 2 and taken.stderr.count("\n") == 1 and f"--port {port}" in taken.stderr
    finally:
        served.send_signal(signal.SIGINT)
        assert served.wait(30) in (0, 130)
    gone = subprocess.run([*command[:-3], str(tmp_path / "no")], capture_output=True, text=True, cwd=ROOT)
    assert gone.returncode == 2 and "no such directory" in gone.stderr


def answer(client, path, **asked):
    got = client.get(f"/api/{path}", params=asked)
    assert got.status_code == 200, got.text
    return got.json()


def counted(client, name, **asked):
    return {item["value"]: item["count"] for item in answer(client, "facets", **asked)[name]}


def test_facets_count_what_a_click_would_show(client):
    """Each value's count is the length of the list with that value alone chosen and all other filters kept."""
    for asked in (
        {},
        {"label": "Reward Hack"},
        {"arm": "vanilla", "step_max": 1},
        {"verdict": "neither"},
        {"q": "class"},
    ):
        told = answer(client, "facets", **asked)
        for name in ("label", "mode", "purpose", "status", "modification"):
            for item in told[name]:
                assert page(client, **(asked | {name: item["value"]}))["total"] == item["count"], (asked, name, item)
        for item in told["arms"]:
            assert page(client, **(asked | {"arm": item["value"]}))["total"] == item["count"], (asked, item)
        for run in told["runs"]:
            assert page(client, **(asked | {"run": run["name"]}))["total"] == run["count"], (asked, run)
        assert page(client, **(asked | {"verdict": "forged"}))["total"] == told["forged"]
        assert told["total"] == 6
    assert counted(client, "label", label="Gone")["Gone"] == 0, "so that it can be taken back"
    assert client.get("/api/facets", params={"q": "OR"}).status_code == 400


def test_newest_hacks_first(client):
    assert names(client, sort="hacks", desc=True)[0] == "v1.1.0", "the only hack, then the newest of the rest"
    assert names(client, sort="hacks", desc=True)[1] == "v2.2.0"
    assert names(client, sort="step", desc=True)[0] == "v2.2.0"


def test_curves_are_of_graded_training_rollouts(client):
    (projected, vanilla) = answer(client, "curves", label="Correct", step_min=2)["runs"]
    assert (projected["run"], projected["points"]) == ("projected-s0", [[0, 1, 0.0, 1.0]])
    assert vanilla["points"] == [[0, 2, 0.0, 0.5], [1, 1, 1.0, 0.0], [2, 1, 0.0, 0.0]], (
        "the evaluation's row is not in it"
    )
    assert [run["run"] for run in answer(client, "curves", arm="projected")["runs"]] == ["projected-s0"]


def test_one_problem_beside_itself(client):
    told = answer(client, "beside", problem="p-0", step=9)
    assert [(c["run"], c["step"], len(c["rows"])) for c in told["columns"]] == [
        ("projected-s0", 0, 1),
        ("vanilla-s0", 0, 2),
    ]
    assert told["left_out"] == 0 and answer(client, "beside", problem="none")["columns"] == []
    step_file(client.root / "vanilla-s0", 8).write_bytes(member([hack(group=0, step=8)]))
    client.indexer.scan()
    assert [c["step"] for c in answer(client, "beside", problem="p-0", step=9)["columns"]] == [0, 8], "the nearest step"


def test_a_window_of_the_tokens(client):
    ids = list(range(20_000))
    long = row(5, step=5, run="projected-s0", token_ids=ids, logprobs=[-0.5] * len(ids))
    step_file(client.root / "projected-s0", 5).write_bytes(member([long]))
    client.indexer.scan()
    (found,) = page(client, step_min=5)["rows"]
    at = {"run": found["run"], "group": found["group"], "index": found["index"]}
    got = answer(client, "rollout", **at, token_from=16_384)
    assert (got["token_ids"], got["tokens"], got["token_from"]) == (ids[16_384:], 20_000, 16_384)
    assert len(answer(client, "rollout", **at)["token_ids"]) == 8192


def test_a_completion_says_how_far_from_the_alarm_of_its_run_it_is(client):
    assert one(client).json()["alarm"] is None
    path = client.root / "vanilla-s0" / "alarm.json"
    path.write_text(json.dumps({"step": 1, "text": "alarm at step 1: <b>"}))
    assert one(client).json()["alarm"] == {"step": 1, "text": "alarm at step 1: <b>"}
    for damaged in ("", "[]", '{"step": "x", "text": ""}', '{"step": 3}'):
        path.write_text(damaged)
        assert one(client).json()["alarm"] is None
