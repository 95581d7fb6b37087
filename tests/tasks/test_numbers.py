"""Numbers in text: each row of the table, exactness, and that no text takes long."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import numbers

TABLE = [
    ("1,234", 1234), ("1{,}234", 1234), (r"1\,234", 1234), ("12,345,678.5", Fraction("12345678.5")),
    ("10,00", None), ("1.234,56", None), ("1,2,3", None), ("1 234", None),
    ("-5", -5), ("−5", -5), ("–5", -5), ("-$5", -5), ("$-5", -5), ("+5", 5), ("--5", None), ("-$-5", None), ("- 5", 5),
    ("10-5", None), ("5–10", None), ("10 - 5", None),
    ("3/4", Fraction(3, 4)), (r"\frac{3}{4}", Fraction(3, 4)), (r"\dfrac{ 3 }{4}", Fraction(3, 4)), (r"\frac34", Fraction(3, 4)),
    (r"-\frac{1}{2}", Fraction(-1, 2)), ("3/0", None), ("0/3", 0), ("3/4/2024", None),
    ("1 1/2", Fraction(3, 2)), (r"1\frac{1}{2}", Fraction(3, 2)), ("-1 1/2", Fraction(-3, 2)), ("2 5/4", None),
    ("0.50", Fraction(1, 2)), (".5", Fraction(1, 2)), ("42.", 42), ("007", 7), ("0", 0), ("-0", 0),
    ("25%", 25), (r"25\%", 25), ("42kg", 42), ("$12/hour", 12), ("42°C", 42), ("2-inch", 2), ("€7.50", Fraction("7.5")),
    ("5k", None), ("3M", None), ("2 million", None), ("4 dozen", None), ("1e3", None), ("1e999999999", None), ("2h30", None),
    ("1_000", None), ("0x1F", None), ("４２", None), ("٤٢", None), ("4٢", None), ("²", None), ("9" * 65, None),
    ("**42**", 42), ("_42_", 42), ("$42$", 42), (r"\(42\)", 42), ("`42`", 42), ("x = 42", 42), ("“42”", 42), ("(42)", 42),
    ("x2", None), ("H2O and CO2", None), ("", None), ("nan", None), ("inf", None), ("one", None), (".", None), ("$", None),
    ("-", None), ("5+3=8", None),
    ("42 m^2", 42), (r"42 \text{ m}^2", 42), (r"42\,\mathrm{cm}^{3}", 42), ("64cm^2", 64), ("9.8 m/s^2", Fraction("9.8")),
    ("3 square meters^2", 3), (r"5 \text{ ft}^{ 2 }", 5), ("7 m$^2$", 7), ("2 s^{-1}", 2), ("42 m²", 42),
    ("10^2", None), ("3x^2", None), ("x^2", 2), ("m^22", 22), (r"\text{5}^2", None), ("42 m^2.5", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), TABLE)
def test_the_table(text, value):
    assert numbers.only(text) == value


def values(text):
    return [found.value for found in numbers.numbers(numbers.plain(text))]


def test_in_a_sentence_each_number_in_order():
    assert values("In 3 weeks, $1,250.50 (or 12% more) of H2O; 7-8 times, 1 1/2 hours.") == [
        3, Fraction("1250.5"), 12, None, Fraction(3, 2),
    ]  # fmt: skip
    assert values("2 million people") == [None] and values("about 2, million of them") == [2]


@given(st.fractions(min_value=-(10**12), max_value=10**12, max_denominator=10**6))
def test_every_fraction_written_plainly_is_read_back_exactly(value):
    assert numbers.only(f"{value.numerator}/{value.denominator}") == value


@given(st.integers(-(10**15), 10**15), st.integers(0, 6))
def test_every_decimal_with_commas_is_read_back_exactly(mantissa, places):
    value = Fraction(mantissa, 10**places)
    sign, whole, rest = "-" if value < 0 else "", abs(mantissa) // 10**places, abs(mantissa) % 10**places
    text = f"{sign}{whole:,}" + (f".{rest:0{places}d}" if places else "")
    assert numbers.only(text) == value
    assert numbers.only(text.replace(",", "")) == value


@given(st.text(alphabet=st.sampled_from("0123456789.,-/%$ \n\\{}#abfrcekM_²٤−–+=()"), max_size=200))
def test_any_text_is_answered_with_fractions_or_nothing(text):
    for found in numbers.numbers(numbers.plain(text)):
        assert found.value is None or type(found.value) is Fraction
        assert 0 <= found.start < found.end <= len(numbers.plain(text))


@pytest.mark.parametrize(
    "unit",
    [
        "1",
        "1,",
        "1,234,",
        "1.",
        "-",
        "$",
        "1/",
        "1 ",
        "1 1/2 ",
        "\\frac{",
        "\\frac{1}{",
        "{,}",
        "\\frac" + " " * 50,
        "1e",
        "'",
    ],
)
def test_time_is_linear_in_hostile_texts(unit):
    """Ten times the text takes about ten times as long; 100 times would be backtracking."""

    def seconds(length):
        text = (unit * length)[:length] + "x"
        best = 1e9
        for _ in range(3):
            started = time.process_time()
            numbers.numbers(numbers.plain(text))
            best = min(best, time.process_time() - started)
        return best

    assert seconds(30_000) < 40 * max(seconds(3_000), 2e-4)
