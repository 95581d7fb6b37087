"""The reference forward is cut by rows and by tokens, so that its memory does not grow with the model's length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ref_server.reference import parts


def test_by_hand():
    # in order of length 1, 2, 4, 5: the first two fit 2 x 2 = 4 tokens, a third would make 3 x 4
    assert list(parts([5, 1, 4, 2], rows=3, tokens=8)) == [[1, 3], [2], [0]]
    assert list(parts([1, 1, 1], rows=2, tokens=100)) == [[0, 1], [2]]
    assert list(parts([50, 60], rows=8, tokens=10)) == [[0], [1]], "a row too long for the budget goes alone"
    assert list(parts([])) == []


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 6), st.integers(1, 120))
def test_everyone_once_and_within_the_budget(lengths, rows, tokens):
    found = list(parts(lengths, rows, tokens))
    assert sorted(i for part in found for i in part) == list(range(len(lengths)))
    for part in found:
        longest = max(lengths[i] for i in part)
        assert len(part) <= rows and (len(part) == 1 or len(part) * longest <= tokens)


@pytest.mark.parametrize("budget", [1, 40, 10**6])
def test_how_it_is_cut_does_not_change_a_log_prob(budget, monkeypatch):
    from common.settings import RefServerSettings
    from experiments.design import presets
    from services.ref_server import reference

    made = reference.Reference(RefServerSettings(model=presets.ORGANISM_MODEL, device="cpu"))
    prompts, completions = [[2, 3, 4], [5] * 9, [7, 8]], [[10, 11], [12], [13, 14, 15, 16]]
    whole = made.logprobs(prompts, completions, 1.0)
    monkeypatch.setattr(reference.parts, "__defaults__", (128, budget))
    for a, b in zip(made.logprobs(prompts, completions, 1.0), whole, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
