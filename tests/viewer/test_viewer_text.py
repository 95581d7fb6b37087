"""Completions in parts and tokens: nothing lost, nothing invented, the test function found."""

import gzip
import json
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from experiments.viewer import code, tokens

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "experiments"))  # synthetic_runs
ORGANISM = ROOT / "tasks" / "organism" / "model"
EVIDENCE = {"test_function": "def run_tests(self):\n    pass"}


def marked(text, evidence=EVIDENCE):
    found = code.parts(text, evidence)
    assert "".join(text[p.start : p.end] for p in found) == text
    return [text[p.start : p.end] for p in found if p.kind == "test"]


def test_the_definition_is_marked_with_its_comments_and_decorators():
    wanted = "    @staticmethod\n    def run_tests():  # sure\n        # nothing\n        pass\n"
    assert marked(f"Hi\n```python\nclass S:\n{wanted}\n    def f(self): ...\n```\n") == [wanted]


def test_every_definition_of_the_name_and_no_other():
    text = "```\ndef run_tests(): 1\ndef run_tests_2(): 2\nasync def run_tests():\n  3\n```\nand\n```python\ndef run_tests(): 4\n"
    assert marked(text) == ["def run_tests(): 1\n", "async def run_tests():\n  3\n", "def run_tests(): 4\n"]
    assert marked(text, {"test_function": ""}) == marked(text, {}) == marked(text, {"test_function": 7}) == []


def test_prose_is_never_marked():
    assert marked("def run_tests(): pass\n```\nx\n```\ndef run_tests(): pass") == []


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_code_that_does_not_parse_is_marked_by_indentation(newline):
    lines = ["def f(:", "    def run_tests(self):", "        a", "", "        b", "    c ="]
    assert marked("```\n" + newline.join(lines) + "```") == [newline.join(lines[1:5]) + newline]


@pytest.mark.parametrize("odd", ["\x0c", "\x0b", "\x1c", "\u2028", "\x85"])
def test_characters_that_split_lines_for_some(odd):
    text = f"```\nx = '{odd}'\n# {odd}\ndef run_tests(): pass\ny = 1\n```"
    assert marked(text) == ["def run_tests(): pass\n"]


@given(st.text(alphabet=st.sampled_from("```\n defrun_tests():pas\"'\r\\é\x00#@"), max_size=300))
@example("```\n" * 20)
@example("```python\ndef run_tests():\n" + " (" * 3000)
@example("```\n" + "(" * 50_000 + "\ndef run_tests():\n  pass")
def test_no_text_stops_it_and_nothing_is_lost(text):
    marked(text)


def test_a_long_text_takes_no_time():
    import time

    started = time.perf_counter()
    marked("```\n" + "def run_tests():\n    pass\n" * 40_000)
    assert time.perf_counter() - started < 5


# ---------------------------------------------------------------------------------------------- tokens


def byte_tokenizer():
    """Byte-level BPE of single bytes with one special token: every character beyond ASCII takes several tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<eos>"])
    return made


def check(tokenizer, ids):
    text = tokenizer.decode(ids, skip_special_tokens=True)
    found = tokens.pieces(tokenizer, ids, text)
    assert found is not None
    assert "".join(p.text for p in found) == text
    assert [p.first for p in found] == [0, *(p.last for p in found[:-1])][: len(found)]
    assert not ids or found[-1].last == len(ids)
    return found


def test_pieces_are_the_text_and_all_tokens():
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("a é 日本 🙂 z").ids
    found = check(tokenizer, [*ids, 256])
    assert [p.text for p in found if len(p.text.encode()) > 1] == ["é", "日", "本", "🙂"]
    assert [p.last - p.first for p in found if p.text == "🙂"] == [4]
    assert found[-1] == tokens.Piece(len(ids), len(ids) + 1, ""), "the end-of-text token has no text"


@given(st.lists(st.integers(0, 256), max_size=60))
@example([0xE9] * 3)
def test_bytes_that_are_no_character(ids):
    """A model may stop within a character, or write bytes that never become one."""
    check(byte_tokenizer(), ids)


def test_the_bundled_model():
    tokenizer = tokens.Tokenizers().of(str(ORGANISM))
    text = "```python\nclass Solution:\n    def f(self, nums):\n        return nums\n```"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    found = check(tokenizer, [*ids, 1])
    assert len(found) == len(ids) + 1 and found[0].text.startswith("```")


def test_another_text_gives_no_pieces():
    tokenizer = byte_tokenizer()
    assert tokens.pieces(tokenizer, tokenizer.encode("abc").ids, "abd") is None
    assert tokens.pieces(tokenizer, tokenizer.encode("abc").ids, "ab") is None
    assert tokens.pieces(None, [1], "a") is None
    assert tokens.pieces(tokenizer, [-1, 1 << 40], "a") is None


def test_ids_outside_the_vocabulary_stop_nothing():
    tokenizer = byte_tokenizer()
    assert tokens.pieces(tokenizer, [5, 10_000, 6], tokenizer.decode([5, 10_000, 6])) is not None


@pytest.mark.parametrize("content", [None, "", "{}", "{", "[]", "\x00"])
def test_a_tokenizer_that_cannot_be_read_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    assert tokens.Tokenizers().of(str(tmp_path)) is None
    assert tokens.Tokenizers().of("hub/name") is None and tokens.Tokenizers().of(None) is None


# ---------------------------------------------------------------------------------------------- the report's copy


def test_the_sample_is_bounded_whole_in_groups_and_says_so(tmp_path):
    export, runs = exported(tmp_path, steps=12, groups=6)
    text = export.files(runs, limit=100)["viewer/static/data.js"].decode()
    data = json.loads(text.removeprefix("window.ROLLOUTS = ").removesuffix(";\n"))
    assert 80 <= len(data["rows"]) <= 100 and f"{len(data['rows'])} of 576" in data["note"]
    sizes = {}
    for entry in data["rows"]:
        key = (entry["summary"]["run"], entry["summary"]["group"])
        sizes[key] = sizes.get(key, 0) + 1
    assert set(sizes.values()) == {4}, "no group is cut"
    steps = {e["summary"]["step"] for e in data["rows"]}
    assert {0, 11} <= steps, "first and last step are in it"
    assert export.files(runs, limit=100)["viewer/static/data.js"].decode() == text, "the same sample each time"
    assert len(export.files(runs, max_bytes=60_000)["viewer/static/data.js"]) < 90_000


def test_the_sample_does_not_look_at_what_it_draws(tmp_path):
    from synthetic_runs import LABELS

    export, runs = exported(tmp_path, steps=3, groups=9)
    before = drawn(export.files(runs, limit=60))
    for path in tmp_path.rglob("step_*.gz"):
        lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        for line in lines:
            line |= {"label": LABELS[2], "reward": -line["reward"], "text": "x"}
        path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    assert drawn(export.files(runs, limit=60)) == before


def test_everything_fits_when_there_is_little(tmp_path):
    export, runs = exported(tmp_path, steps=2, groups=2)
    files = export.files(runs)
    assert b"All 32 rollouts of 2 runs" in files["viewer/static/data.js"]
    page = files["viewer/index.html"].decode()
    assert page.index("static/data.js") < page.index("static/source.js")
    for name in ("viewer/static/vendor/preact.umd.js", "viewer/static/app.js", "viewer/static/app.css"):
        assert files[name]


def test_no_script_ends_inside_the_data(tmp_path):
    from synthetic_runs import CODE

    before = CODE["Incorrect"]
    try:
        CODE["Incorrect"] = "</script><script>alert(1)</script>\u2028"
        export, runs = exported(tmp_path, steps=1, groups=1)
        text = export.files(runs)["viewer/static/data.js"]
    finally:
        CODE["Incorrect"] = before
    assert b"<" not in text and text.isascii() and b"\\u003c/script>" in text


def drawn(files):
    data = json.loads(files["viewer/static/data.js"].decode().removeprefix("window.ROLLOUTS = ").removesuffix(";\n"))
    return [(e["summary"]["run"], e["summary"]["group"], e["summary"]["index"]) for e in data["rows"]]


def exported(root, steps, groups):
    from synthetic_runs import Plan, write

    from experiments.analysis.run_folders import read_runs
    from experiments.viewer import export

    for arm in ("vanilla", "projected"):
        write(root, Plan(arm=arm, hack=[0.3] * steps, passed=[0.3] * steps, groups=groups))
    return export, read_runs(root)
