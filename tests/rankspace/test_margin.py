"""The NLL margin of pairs against numbers worked by hand, and its sign against v_hack."""

import math

import pytest
import torch
from torch import nn

from rankspace import RankspaceError, TokenizedPair, attach
from rankspace.direction import extract_gradients, hack_direction
from rankspace.margin import nll_margin

# P(next | previous); ids: 0 prompt, 1 hack token, 2 clean token, 3 end
BIGRAM = torch.tensor([[0.1, 0.5, 0.25, 0.15], [0.1, 0.2, 0.2, 0.5], [0.25, 0.25, 0.25, 0.25], [0.25] * 4])


class Bigram(nn.Module):
    """A causal LM whose next token depends on the one before only: hidden state one-hot, head log P."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight.data = BIGRAM.log().T.contiguous()
        self.head.weight.requires_grad_(False)
        self.seen_training = []

    def get_output_embeddings(self):
        return self.head

    def get_decoder(self):
        def decode(input_ids, use_cache):
            self.seen_training.append(self.training)
            return (nn.functional.one_hot(input_ids, 4).float(),)

        return decode


def test_hand_worked_margins():
    """hack 1 3: NLL = (ln 2 + ln 2) / 2; clean 2 2 3: NLL = 3 ln 4 / 3. Margin = ln 4 - ln 2 = ln 2: the hack is likelier."""
    pair = TokenizedPair("a", [0, 1, 3], [0, 2, 2, 3], 1)
    swapped = TokenizedPair("b", [0, 2, 2, 3], [0, 1, 3], 1)
    assert nll_margin(Bigram(), [pair]) == pytest.approx(math.log(2), abs=1e-6)
    assert nll_margin(Bigram(), [swapped]) == pytest.approx(-math.log(2), abs=1e-6)
    # mean over pairs, not over tokens: a longer prompt and unequal lengths do not weigh
    even = TokenizedPair("c", [2, 0, 1], [2, 0, 1, 3], 2)  # hack: ln 2; clean: (ln 2 + ln 2) / 2
    assert nll_margin(Bigram(), [pair, even]) == pytest.approx(math.log(2) / 2, abs=1e-6)


def test_the_mode_is_put_back_and_the_measurement_is_in_eval_mode():
    model = Bigram().train()
    nll_margin(model, [TokenizedPair("a", [0, 1, 3], [0, 2, 3], 1)])
    assert model.training and model.seen_training == [False]


def test_no_pairs_and_damaged_weights_are_refused():
    with pytest.raises(RankspaceError, match="no pairs"):
        nll_margin(Bigram(), [])
    model = Bigram()
    model.head.weight.data[:] = float("nan")
    with pytest.raises(RankspaceError, match="not finite"):
        nll_margin(model, [TokenizedPair("a", [0, 1, 3], [0, 2, 3], 1)])


def test_along_v_hack_the_hack_gets_less_likely(make, tiny_pairs, tmp_path):
    """v_hack is the gradient of NLL(hack) - NLL(clean): delta_S = +e v lowers the margin, -e v raises it."""
    model = make("qwen3")
    adapter = attach(model, svd_cache_dir=tmp_path)
    v = hack_direction(extract_gradients(model, adapter, tiny_pairs)).vectors
    at = {}
    for scale in (-0.05, 0.0, 0.05):
        adapter.set_flat(scale * v)
        adapter.refresh()
        at[scale] = nll_margin(model, tiny_pairs)
    assert at[-0.05] > at[0.0] > at[0.05]
