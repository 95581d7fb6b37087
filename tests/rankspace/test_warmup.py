"""The subspace of a clean warm-up, and the gradient map that keeps nothing else."""

from __future__ import annotations

import pytest
import torch

import rankspace
from rankspace.errors import RankspaceError
from rankspace.pairs import TokenizedPair
from rankspace.projection import Layout, project
from rankspace.warmup import STEPS, top_directions, warmup_direction

PAIRS = [TokenizedPair(i, [5 + i, 9, 2, 7, 1], [5 + i, 9, 3, (3 * i) % 50, 4], 2) for i in range(20)]
LAYOUT = Layout(("one", "two"), (3, 3))


def test_span_keeps_the_subspace_by_hand():
    w = torch.tensor([[1.0, 0.0, 0.0, 0.6, 0.8, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0, 1.0]])
    g = torch.tensor([3.0, 4.0, 12.0, 5.0, 0.0, 2.0])
    # one: (3, 4, 0) of norm 5, back to 13. two: 3·(.6, .8, 0) + 2·(0, 0, 1), norm √13, back to √29
    plain, told = project(g, w, LAYOUT, "span", rescale=False)
    assert plain.tolist() == pytest.approx([3.0, 4.0, 0.0, 1.8, 2.4, 2.0]) and told["n_annihilated"] == 0
    found, _ = project(g, w, LAYOUT, "span")
    assert found[:3].tolist() == pytest.approx([3 * 13 / 5, 4 * 13 / 5, 0.0])
    assert float(found[3:].norm()) == pytest.approx(29**0.5)
    again, _ = project(found, w, LAYOUT, "span")
    assert torch.allclose(again, found, atol=1e-5), "what lies in the subspace stays"


def test_a_gradient_outside_the_subspace_becomes_zero():
    w = torch.tensor([[1.0, 0.0, 0.0] * 2, [0.0, 1.0, 0.0] * 2])
    found, told = project(torch.tensor([0.0, 0.0, 2.0, 1.0, 0.0, 0.0]), w, LAYOUT, "span")
    assert found.tolist() == [0.0, 0.0, 0.0, 1.0, 0.0, 0.0] and told["n_annihilated"] == 1


def test_one_vector_a_module_is_no_subspace():
    with pytest.raises(RankspaceError, match="needs a subspace to keep"):
        project(torch.ones(6), torch.ones(6), LAYOUT, "span")


def test_the_top_directions_by_hand():
    """Changes along two axes, 3 and −2 strong: the stronger first, each turned towards the whole change."""
    u = torch.tensor([[3.0, 0.0, 0.0, 0.0, 0.0, 1.0], [0.0, -2.0, 0.0, 0.0, 4.0, 0.0]])
    w = top_directions(u, [("one", 3), ("two", 3)], 2)
    assert torch.allclose(w, torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0, 0.0], [0.0, -1.0, 0.0, 0.0, 0.0, 1.0]]), atol=1e-6)
    for k in (1, 3):
        with pytest.raises(RankspaceError, match="must be between 2 and 2"):
            top_directions(u, [("one", 3), ("two", 3)], k)
    with pytest.raises(RankspaceError, match="moved one in fewer than 2"):
        top_directions(torch.tensor([[3.0, 0.0, 0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0, 4.0, 0.0]]),
                       [("one", 3), ("two", 3)], 2)  # fmt: skip


def test_a_warm_up_learns_the_clean_completions_and_leaves_the_model_as_it_was(tiny_qwen3):
    model = tiny_qwen3()
    adapter = rankspace.attach(model)
    said = []
    found = warmup_direction(model, adapter, PAIRS, 3, seed=1, progress=lambda done, total, what: said.append(what))
    assert not torch.any(adapter.get_flat()) and found.kind == "warmup" and found.vectors.shape[0] == 3
    layout = Layout.of(adapter.modules)
    rows = layout.pad(found.vectors)
    gram = torch.einsum("kmr,jmr->mkj", rows, rows)
    assert torch.allclose(gram, torch.eye(3, dtype=gram.dtype).expand_as(gram), atol=1e-5)
    losses = [float(one.removeprefix("loss ")) for one in said]
    assert len(losses) == STEPS and sum(losses[-5:]) < sum(losses[:5]), "SFT went down"
    same = warmup_direction(model, adapter, PAIRS, 3, seed=1)
    assert torch.equal(same.vectors, found.vectors)
    assert not torch.allclose(warmup_direction(model, adapter, PAIRS, 3, seed=2).vectors, found.vectors, atol=1e-3)
    rankspace.direction.require_validated(found)


def test_a_used_adapter_is_refused(tiny_qwen3):
    model = tiny_qwen3()
    adapter = rankspace.attach(model)
    adapter.set_flat(torch.ones_like(adapter.get_flat()))
    with pytest.raises(RankspaceError, match="starts at delta_S = 0"):
        warmup_direction(model, adapter, PAIRS, 2)
