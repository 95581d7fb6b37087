"""A control direction without what it shares with v_hack."""

import pytest
import torch

import rankspace
from rankspace import Layout, RankspaceError
from rankspace.direction import Direction, orthogonalised

MODULES = [("a", 2), ("b", 3)]


def direction(values, kind="shuffled"):
    return Direction(kind, torch.tensor(values), MODULES)


def test_by_hand():
    v = direction([1.0, 0.0, 0.0, 0.0, 1.0], "v_hack")
    out = orthogonalised(direction([0.6, -0.8, 2 / 3, 1 / 3, -2 / 3]), v)
    assert out.vectors.tolist() == pytest.approx([0, -1, 2 / 5**0.5, 1 / 5**0.5, 0], abs=1e-7)
    assert out.kind == "shuffled" and out.metadata["orthogonal"] is True


def test_nothing_of_v_is_left_in_any_module():
    modules = [(f"m{i}", 2 + i) for i in range(40)]
    v, u = (rankspace.random_direction(modules, seed) for seed in (0, 1))
    out, layout = orthogonalised(u, v), Layout.of(modules)
    assert (layout.pad(out.vectors) * layout.pad(v.vectors)).sum(-1).abs().max() < 1e-6
    assert torch.allclose(layout.pad(out.vectors).norm(dim=-1), torch.ones(40, dtype=torch.float64))


def test_what_cannot_be_done_is_one_line():
    v = direction([1.0, 0.0, 0.0, 0.0, 1.0])
    with pytest.raises(RankspaceError, match="direction of a lies wholly along v_hack"):
        orthogonalised(direction([-1.0, 0.0, 0.0, 1.0, 0.0]), v)
    with pytest.raises(RankspaceError, match="one vector per module"):
        orthogonalised(Direction("subspace", v.vectors.repeat(2, 1), MODULES), v)
    with pytest.raises(RankspaceError, match="was made for another model"):
        orthogonalised(v, rankspace.random_direction([("x", 2), ("b", 3)], 0))
