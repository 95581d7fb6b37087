"""Reading, splitting and tokenising contrastive pairs."""

import gzip
import json

import pytest
from transformers import AutoTokenizer

from rankspace import Pair, RankspaceError, load_pairs, tokenize_pair
from rankspace.chat import Chat
from rankspace.pairs import pairs_hash, split_holdout

PROMPT = [{"role": "user", "content": "x"}]
ROW = {"id": "p0", "problem_id": 7, "prompt": PROMPT, "hack": "h", "clean": "c", "split": "train"}


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def pair(i, problem, split="train"):
    return Pair(f"p{i}", problem, [{"role": "user", "content": "x"}], f"h{i}", f"c{i}", split)


def test_rows_splits_and_extra_fields(tmp_path):
    rows = [ROW, ROW | {"id": "p1", "problem_id": 8, "split": "heldout", "hack": "H", "note": "kept out of it"}]
    path = write(tmp_path / "pairs.jsonl", rows)
    assert [p.id for p in load_pairs(path)] == ["p0", "p1"]
    assert [p.id for p in load_pairs(path, "heldout")] == ["p1"]
    path.write_text("\n" + json.dumps(ROW) + "\n\n")
    assert len(load_pairs(path)) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 lacks fields"),
        (json.dumps({k: v for k, v in ROW.items() if k != "clean"}), "line 2 lacks clean"),
        (json.dumps(ROW | {"hack": ""}), "line 2: hack must be a non-empty string"),
        (json.dumps(ROW | {"hack": "c"}), "line 2: hack and clean are the same text"),
        (json.dumps(ROW | {"split": "test"}), "line 2: split 'test' must be"),
        (json.dumps(ROW | {"prompt": []}), "line 2: prompt must be"),
        (json.dumps(ROW | {"prompt": [{"role": "user"}]}), "line 2: prompt must be"),
        (json.dumps(ROW), "two pairs share an id"),
    ],
)
def test_a_bad_row_is_named(tmp_path, line, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + line + "\n")
    with pytest.raises(RankspaceError, match=message) as error:
        load_pairs(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("split", [None, "train", "heldout"])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"hack": "H"}, "problem_id 7 is in both splits"),
        ({"problem_id": "7", "hack": "H"}, "problem_id 7 is in both splits"),
        ({"problem_id": 8}, r"pair p1 \(heldout\) is a copy of pair p0 \(train\)"),
    ],
)
def test_a_problem_or_a_text_in_both_splits_is_refused(tmp_path, split, other, message):
    path = write(tmp_path / "pairs.jsonl", [ROW, ROW | {"id": "p1", "split": "heldout"} | other])
    with pytest.raises(RankspaceError, match=message) as error:
        load_pairs(path, split)
    assert "\n" not in str(error.value)


def test_missing_empty_or_binary_file(tmp_path):
    with pytest.raises(RankspaceError, match="no pairs file"):
        load_pairs(tmp_path / "none.jsonl")
    (tmp_path / "e").write_text("")
    with pytest.raises(RankspaceError, match="is empty"):
        load_pairs(tmp_path / "e")
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RankspaceError, match="not UTF-8"):
        load_pairs(tmp_path / "b")
    with pytest.raises(RankspaceError, match="no pair of split 'heldout'"):
        load_pairs(write(tmp_path / "t", [ROW]), "heldout")


def test_holdout_goes_by_problem():
    pairs = [pair(0, "a"), pair(1, "b"), pair(2, "c"), pair(3, "c"), pair(4, "a")]
    train, held = split_holdout(pairs, 1)
    assert [p.id for p in train] == ["p0", "p1", "p4"] and [p.id for p in held] == ["p2", "p3"]
    assert [p.id for p in split_holdout(pairs, 3)[1]] == ["p1", "p2", "p3"]
    with pytest.raises(RankspaceError, match="leaves no pair to extract from"):
        split_holdout(pairs, 5)


def test_hash_is_of_content_not_formatting(tmp_path):
    a = load_pairs(write(tmp_path / "a", [ROW]))
    (tmp_path / "b").write_text(json.dumps(dict(reversed(ROW.items())), indent=None, separators=(" ,", ": ")))
    assert pairs_hash(a) == pairs_hash(load_pairs(tmp_path / "b"))
    assert pairs_hash(a) != pairs_hash(load_pairs(write(tmp_path / "c", [ROW | {"hack": "H"}])))


class Letters:
    """A tokenizer of one id per letter; the template adds a role, and special tokens where they are not wanted."""

    eos_token_id = 0
    chat_template = "x"

    def apply_chat_template(self, messages, add_generation_prompt, tokenize):
        assert add_generation_prompt and not tokenize
        return "".join(f"<{m['content']}>" for m in messages) + ":"

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [ord(c) for c in text]}


def test_tokens_are_template_then_completion_then_eos():
    got = tokenize_pair(Letters(), Pair("p", 1, [{"role": "user", "content": "q"}], "ab", "c", "train"))
    assert got.hack_ids == [*map(ord, "<q>:ab"), 0] and got.clean_ids == [*map(ord, "<q>:c"), 0] and got.start == 4


def test_tokenizers_that_cannot():
    bare = Letters()
    bare.chat_template = None
    with pytest.raises(RankspaceError, match="no chat template"):
        tokenize_pair(bare, pair(0, 1))
    endless = Letters()
    endless.eos_token_id = None
    with pytest.raises(RankspaceError, match="no EOS"):
        tokenize_pair(endless, pair(0, 1))
    blind = type("Blind", (Letters,), {"__call__": lambda self, text, add_special_tokens: {"input_ids": [1]}})()
    with pytest.raises(RankspaceError, match="pair p0: hack and clean become the same tokens"):
        tokenize_pair(blind, pair(0, 1))


def test_a_byte_order_mark_and_gzip_are_read_and_a_broken_gzip_is_one_line(tmp_path):
    text = "".join(json.dumps(ROW | {"id": f"p{i}", "problem_id": i}) + "\n" for i in range(2))
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert load_pairs(tmp_path / "bom.jsonl") == load_pairs(tmp_path / "packed.jsonl.gz")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(text.encode())[:-9])
    with pytest.raises(RankspaceError, match="not a whole gzip file"):
        load_pairs(tmp_path / "cut.jsonl.gz")


TURN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<END>\n{% endfor %}"
    "{% if add_generation_prompt %}a: {% endif %}"
)


@pytest.mark.parametrize(
    ("template", "ends_with"),
    [
        (TURN.replace("<END>", "<|turn|>"), "<|turn|>"),  # as Gemma and Phi-3.5: the turn's end is not the EOS
        (TURN.replace("<END>", ""), None),  # no token of its own: EOS
        (TURN.replace("<END>", " bye"), None),  # text is no end
        ("{{ messages[0].content }}", None),  # answers are not shown
        ("{{ raise_exception('no answers') if messages[-1].role == 'assistant' else messages[0].content }}", None),
    ],
)
def test_a_pair_ends_as_an_answer_of_the_template_does(template, ends_with):
    tokenizer = AutoTokenizer.from_pretrained("tasks/organism/model")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.chat_template = template
    wanted = tokenizer.eos_token_id if ends_with is None else tokenizer.convert_tokens_to_ids(ends_with)
    made = tokenize_pair(tokenizer, Pair("p", "1", [{"role": "user", "content": "x"}], "return 1", "return 2", "train"))
    assert made.hack_ids[-1] == made.clean_ids[-1] == wanted


def test_the_organism_ends_with_its_eos():
    """The direction of every run so far rests on it."""
    tokenizer = AutoTokenizer.from_pretrained("tasks/organism/model")
    assert Chat().end(tokenizer, [{"role": "user", "content": "x"}]) == tokenizer.eos_token_id
