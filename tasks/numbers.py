r"""Numbers as people and models write them, read exactly (as fractions). Pure; linear in the text; nothing is evaluated.

A text is cut at white space and at = + * ( ) < > : ; [ ] { } | # and the like. A piece that begins like a number either
is one by this table or cannot be read (None); every other piece (x2, H2O, CO2) is a word.

    written                          read     because
    1,234   1{,}234   1\,234         1234     thousands in threes; GSM8K writes its own answers with commas
    10,00   1.234,56   1 234         None, None, two numbers: which mark means what is not guessed
    -5   −5   –5   -$5   $-5         -5       a sign stands directly before the number or its currency
    10-5   5–10   10 - 5             None, None, two numbers (10 and 5): a difference or a range is no number
    3/4   \frac{3}{4}   \frac34      3/4      exact; 3/0 is None
    1 1/2   1\frac{1}{2}             3/2      a whole number, one space, a fraction
    0.50   .5   1/2                  1/2      equal as rationals, however written
    25%   25\%                       25       a per cent sign is a unit, as in GSM8K; 25% is not 0.25
    42kg   $12/hour   42°C   2-inch  42, 12, 42, 2   a unit of letters, without digits
    5k   3M   2 million   4 dozen    None     a multiplier would have to be applied
    1e3   2h30   1_000   3/4/2024    None     no plain decimal
    ４２   ٤٢                         None     digits other than 0 to 9
    more than 64 characters          None     no answer is that long, and arithmetic on it is work

Source of the conventions: the answer line of GSM8K (Cobbe et al. 2021), "#### 72", whose numbers are plain, with commas
for thousands and no unit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

NUMBER_CHARS = 64
MULTIPLIERS = frozenset({"k", "K", "M", "B", "bn", "mn"})
MULTIPLIER_WORDS = frozenset({"hundred", "thousand", "million", "billion", "trillion", "dozen"})

_CURRENCY = "$€£¥"
_NUMERAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>-?)(?P<currency>[{_CURRENCY}]?)(?P<inner>-?)(?P<top>{_NUMERAL})(?:/(?P<bottom>{_NUMERAL}))?"
    rf"(?P<unit>[-/%°²³'’.{_CURRENCY}A-Za-zµ]*)"
)
_PIECE = re.compile(r"[^\s=+*()<>:;\[\]{}|#&!?~^\\\"`“”≈≤≥×·÷→]+")
_FRACTION = re.compile(r"\\[dt]?frac *\{ *(-?[0-9.,]{1,40}) *\} *\{ *([0-9.,]{1,40}) *\}|\\[dt]?frac([0-9])([0-9])")
_SPELLINGS = (("−", "-"), ("–", "-"), ("{,}", ","), ("\\,", ""), ("\\!", ""), ("\\%", "%"), ("\\$", "$"))
_UNITS = (
    r"(?:square |cubic )?(?:[kcdm]?m|in|ft|yd|mi|s|sec|h|hr|g|kg|inch(?:es)?|foot|feet|yards?|miles?|units?|seconds?|hours?"
    r"|(?:kilo|centi|deci|milli)?met(?:er|re)s?)"
)
_SET_UNIT = r"\\(?:text|textrm|mathrm|operatorname)\{[^{}0-9]{1,40}\}"
_POWER = r" *\$? *\^ *(?:\{ *-?[1-4] *\}|-?[1-4](?![0-9.]))"
# \text{ m}^2, cm^{3}, m/s^2: the power is no number of its own; x^2 and 10^2 have one
_UNIT_POWER = re.compile(rf"({_SET_UNIT}|(?<![A-Za-z\\]){_UNITS}){_POWER}")


@dataclass(frozen=True)
class Found:
    """One number-like piece of a text: its value (None: cannot be read), and where it begins and ends in `plain(text)`."""

    value: Fraction | None
    start: int
    end: int
    whole: bool = False  # written as digits only, so that a fraction may follow


def plain(text: str) -> str:
    """The text with LaTeX's and typographers' spellings of sign, thousands mark and fraction replaced by plain ones, and
    without the powers of units."""
    for written, meant in _SPELLINGS:
        text = text.replace(written, meant)
    text = _UNIT_POWER.sub(r"\1", text)
    return _FRACTION.sub(_slash, text)


def numbers(text: str) -> list[Found]:
    """Every number-like piece of a text made plain (see `plain`), in order."""
    found: list[Found] = []
    for piece in _PIECE.finditer(text):
        word = piece[0].strip("'’_,.")
        if word in MULTIPLIER_WORDS and found and text[found[-1].end : piece.start()].isspace():
            found[-1] = Found(None, found[-1].start, piece.end())
        one = _read(piece)
        if one is None:
            continue
        if found and found[-1].whole and "/" in piece[0] and text[found[-1].end : one.start] == " ":
            one = _mixed(found.pop(), one)
        found.append(one)
    return found


def only(text: str) -> Fraction | None:
    """The one number of a text; None when there is none, several, or one that cannot be read."""
    found = numbers(plain(text))
    return found[0].value if len(found) == 1 else None


def _slash(match: re.Match[str]) -> str:
    top, bottom = (match[1], match[2]) if match[1] else (match[3], match[4])
    before = match.string[match.start() - 1 : match.start()]
    return f"{' ' if before.isdecimal() else ''}{top}/{bottom}"


def _read(piece: re.Match[str]) -> Found | None:
    """The piece as a number-like thing, None when it is a word."""
    start, end = piece.span()
    text = piece[0]
    start += len(text) - len(text.lstrip("'’_,"))
    text = text.lstrip("'’_,").rstrip("'’_,.")
    end = start + len(text)
    digits = text.lstrip(f"-{_CURRENCY}").removeprefix(".")
    if not digits[:1].isdecimal():
        return None
    match = _NUMBER.fullmatch(text) if len(text) <= NUMBER_CHARS else None
    if match is None or match["unit"] in MULTIPLIERS or (match["inner"] and (match["sign"] or not match["currency"])):
        return Found(None, start, end)
    top, bottom = _fraction(match["top"]), _fraction(match["bottom"] or "1")
    if bottom == 0:
        return Found(None, start, end)
    value = top / bottom
    return Found(
        -value if match["sign"] or match["inner"] else value, start, end, whole=text.removeprefix("-").isdecimal()
    )


def _mixed(whole: Found, part: Found) -> Found:
    """1 1/2. What follows a whole number must be a proper fraction without sign."""
    if whole.value is None or part.value is None or not 0 <= part.value < 1:
        return Found(None, whole.start, part.end)
    value = whole.value - part.value if whole.value < 0 else whole.value + part.value
    return Found(value, whole.start, part.end)


def _fraction(numeral: str) -> Fraction:
    return Fraction(numeral.replace(",", ""))
