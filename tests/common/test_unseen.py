"""Characters that a screen obeys: one class in Python and in the viewer, spelt out wherever a model's words are shown."""

import re
import unicodedata
from pathlib import Path

from common.unseen import UNSEEN, spelt
from services.trainer import completions_table

ROOT = Path(__file__).resolve().parents[2]
BAD = "a\u202e]0[derm\u202c\u200b\x1b[31m\u2066\U000e0041\r\u2028z\tb\nc"


def test_the_page_and_python_know_the_same_characters():
    page = (ROOT / "experiments/viewer/static/text.js").read_text()
    (theirs,) = re.findall(r"const UNSEEN = /(\[.*?\])/gu;", page)
    theirs = re.sub(r"\\u\{(\w+)\}", lambda m: f"\\U{int(m[1], 16):08x}", theirs)
    javascript = re.compile(theirs)
    different = [hex(c) for c in range(0x110000) if bool(UNSEEN.match(chr(c))) != bool(javascript.match(chr(c)))]
    assert different == []


def test_all_that_turn_hide_or_control_are_among_them():
    for code in range(0x110000):
        letter = chr(code)
        turns = unicodedata.bidirectional(letter) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        controls = unicodedata.category(letter) == "Cc" and letter not in "\n\t"
        if turns or controls:
            assert UNSEEN.match(letter), hex(code)


def test_spelt():
    assert spelt(BAD) == ("a[U+202E]]0[derm[U+202C][U+200B][U+001B][31m[U+2066][U+E0041][U+000D][U+2028]z\tb\nc")
    assert (
        spelt(7) == "7" and spelt("plain é 🙂 \u05d0") == "plain é 🙂 \u05d0"
    )  # letters of a right-to-left script stay


def test_tables_of_loggers_and_the_report_obey_none():
    from experiments.report import tables

    row = {"problem_id": BAD, "text": BAD, "evidence": {BAD: [BAD], "n": 3}, "index": 0, "label": "Correct", "reward": 1.0,
           "advantage": 0.0, "oracle_correct": True}  # fmt: skip
    assert not UNSEEN.search(completions_table.markdown([row]))
    shown = tables.readable(row | {"label": BAD, "test_modification": BAD})
    assert not UNSEEN.search(
        f"{shown['text']}{shown['problem_id']}{shown['evidence']}{shown['label']}{shown['test_modification']}"
    )
    assert tables.readable(row | {"evidence": None})["evidence"] == {}
