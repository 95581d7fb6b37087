"""PiSSA with A frozen, the fallback adapter: what trains, what it adds, and that every form agrees."""

import copy

import pytest
import torch
from torch import nn

from rankspace import RankspaceError, attach, merged_weight
from rankspace.direction import extract_gradients, hack_direction
from rankspace.merge import MergeSource
from rankspace.pairs import TokenizedPair
from rankspace.pissa import factors
from rankspace.svd_cache import svd
from rankspace.targets import PISSA_RANK, delta_size

IDS = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(3))
KIND = "pissa_freeze_a"


def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


def noise(adapter, scale=0.02):
    return scale * torch.randn(sum(n for _, n in adapter.modules), generator=torch.Generator().manual_seed(7))


def test_by_hand():
    W0 = torch.diag(torch.tensor([9.0, 4.0]))  # U = Vh = I, S = (9, 4): A = diag(3, 2)
    U, A = factors(svd(W0), KIND)
    assert U is None and torch.allclose(A.abs(), torch.diag(torch.tensor([3.0, 2.0])))
    delta = torch.tensor([1.0, 0.0, 0.0, 10.0])  # rows of B: (1, 0) and (0, 10)
    assert torch.allclose(merged_weight(W0, None, delta, A.abs()), torch.diag(torch.tensor([12.0, 24.0])))


def test_sizes():
    assert delta_size((128, 384)) == 128 and delta_size((128, 384), KIND) == 128 * PISSA_RANK
    assert delta_size((6, 3), KIND) == 18  # rank is at most that of the weight


@pytest.mark.parametrize("form", ["factored", "merged"])
def test_identity_at_zero_and_round_trip(make, form):
    model = make("qwen3")
    twin, base = copy.deepcopy(model), logits(model)
    adapter = attach(model, form=form, kind=KIND)
    assert torch.equal(logits(model), base)
    flat = noise(adapter)
    adapter.set_flat(flat)
    source = MergeSource.load(twin.state_dict().items(), adapter.modules, kind=KIND)
    twin.load_state_dict(dict(source.merged(flat)), strict=False)
    assert not torch.allclose(logits(model), base, atol=1e-4)
    torch.testing.assert_close(logits(model), logits(twin), atol=2e-5, rtol=1e-4)


def test_every_form_has_the_gradient_of_autograd_in_float64(make):
    wanted = None
    for form in ("factored", "merged", "summed"):
        model = make("qwen3", torch.float64)
        adapter = attach(model, form=form, kind=KIND)
        adapter.set_flat(noise(adapter))
        logits(model).square().mean().backward()
        got = adapter.fold() if form == "summed" else torch.cat([p.grad for p in adapter.parameters()])
        wanted = got.double() if wanted is None else wanted
        assert got.norm() > 0
        torch.testing.assert_close(got.double(), wanted, atol=1e-9, rtol=1e-5)


def test_gradient_by_finite_differences(make):
    model = make("qwen3", torch.float64)
    adapter = attach(model, form="merged", kind=KIND)
    flat = noise(adapter)
    adapter.set_flat(flat)
    logits(model).square().mean().backward()
    gradient = torch.cat([p.grad for p in adapter.parameters()]).double()
    along = torch.randn(len(flat), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = []
    for sign in (1, -1):
        adapter.set_flat((flat.double() + sign * 1e-4 * along).float())
        with torch.no_grad():
            values.append(logits(model).square().mean().item())
    assert (values[0] - values[1]) / 2e-4 == pytest.approx(float(gradient @ along), rel=1e-2)


def test_a_direction_is_extracted_in_its_space(make):
    model = make("qwen3")
    adapter = attach(model, kind=KIND)
    pairs = [TokenizedPair(str(i), [1, 2, 3, 4 + i], [1, 2, 9, 8 + i], 2) for i in range(4)]
    direction = hack_direction(extract_gradients(model, adapter, pairs))
    direction.require(adapter.modules)
    assert direction.vectors.shape == (sum(n for _, n in adapter.modules),)


def test_the_two_kinds_do_not_mix(make):
    plain, fallback = attach(make("qwen3")), attach(make("qwen3"), kind=KIND)
    assert plain.fingerprint != fallback.fingerprint
    weights = make("qwen3").state_dict().items()
    with pytest.raises(RankspaceError, match="another kind"):
        MergeSource.load(weights, fallback.modules)
    with pytest.raises(RankspaceError, match="cannot merge"):
        merged_weight(torch.ones(4, 3), None, torch.ones(9), torch.ones(2, 3))
    assert isinstance(plain.model, nn.Module)
