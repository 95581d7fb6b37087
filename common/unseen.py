"""Characters that a screen obeys instead of showing: they turn the order of what follows, hide, or end a line. A policy could
show a reviewer other code than ran, so wherever people read what a model wrote they are spelt out.

The same class as UNSEEN of experiments/viewer/static/text.js; a test compares the two.
"""

from __future__ import annotations

import re

UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff]"
)


def spelt(text: object) -> str:
    """The text with every such character as its number: "[U+202E]". Line feeds and tabs stay."""
    return UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", str(text))
