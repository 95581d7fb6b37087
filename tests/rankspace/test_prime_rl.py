"""The block for prime-rl of docs/interop.md, against stand-ins with the names, signatures and order of calls that the page
cites. prime-rl itself needs GPUs and is on no package index."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

import rankspace
from rankspace.direction import with_metadata
from rankspace.merge import merged_weight

PAGE = (Path(__file__).resolve().parents[2] / "docs/interop.md").read_text()
BLOCK = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))["rankspace_prime"]
MODEL, BROADCAST = "prime_rl.trainer.model", "prime_rl.trainer.rl.broadcast.filesystem"
TRAIN = "prime_rl.trainer.rl.train"
LIMIT = 0.5


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("up_proj", nn.Linear(6, 8))
    model.add_module("down_proj", nn.Linear(8, 4))
    return model


@pytest.fixture
def prime(monkeypatch):
    """The three modules, and `done`: what was called with what, in order."""
    done: list[tuple[str, object]] = []
    modules = {name: ModuleType(name) for name in (MODEL, BROADCAST, TRAIN)}
    parents = {name.rsplit(".", n)[0] for name in modules for n in range(1, name.count(".") + 1)}
    for name, module in ({p: ModuleType(p) for p in parents} | modules).items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in sorted(parents | set(modules)):
        above, _, last = name.rpartition(".")
        if above:
            setattr(sys.modules[above], last, sys.modules[name])
    model, train, broadcast = modules[MODEL], modules[TRAIN], modules[BROADCAST]

    def setup_fsdp(built, config, parallel_dims):
        done.append(("shard", [n for n, p in built.named_parameters() if p.requires_grad]))

    def setup_model(config, parallel_dims, loading_from_checkpoint_later=False):
        assert not model.can_reinit_empty_buffers(None)  # else the weights would not be there
        built = network()
        model.setup_fsdp(built, config, parallel_dims)
        return built

    def setup_optimizer(config, named_params, parallel_dims, lora=False, cpu_offload=False):
        return torch.optim.AdamW([p for _, p in named_params if p.requires_grad], lr=0.01, weight_decay=0.0)

    def clip_grad_norm_(parameters, max_norm, ep_enabled=False):
        kept = [p for p in parameters if p.grad is not None]
        done.append(("clip", torch.cat([p.grad.clone().flatten() for p in kept])))
        return torch.nn.utils.clip_grad_norm_(kept, max_norm)

    def gather_weights_on_master(built, is_master, dtype=torch.bfloat16):
        return {name: t.to(dtype) for name, t in built.state_dict().items()} if is_master else {}

    def step(built, optimizer, scheduler, seed):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
        (built(x) ** 2).sum().backward()
        norm = train.clip_grad_norm_(built.parameters(), max_norm=LIMIT, ep_enabled=False)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        return norm

    model.setup_model, model.setup_fsdp = setup_model, setup_fsdp
    model.can_reinit_empty_buffers = lambda built: True
    train.setup_optimizer, train.clip_grad_norm_, train.step = setup_optimizer, clip_grad_norm_, step
    broadcast.gather_weights_on_master = gather_weights_on_master
    return SimpleNamespace(model=model, train=train, broadcast=broadcast, done=done)


@pytest.fixture
def names(prime, tmp_path, monkeypatch):
    """The block, executed beside the stand-ins; its direction is a random one."""
    adapter = rankspace.attach(network())
    direction = with_metadata(rankspace.random_direction(adapter.modules, 3), fingerprint=adapter.fingerprint)
    rankspace.save_direction(direction, tmp_path / "v.safetensors")
    monkeypatch.setenv("RANKSPACE_DIRECTION", str(tmp_path / "v.safetensors"))
    monkeypatch.setenv("RANKSPACE_SVD", str(tmp_path / "svd"))
    names: dict[str, object] = {"__name__": "rankspace_prime"}
    exec(compile(BLOCK, "docs/interop.md:rankspace_prime.py", "exec"), names)
    return names


def test_what_is_clipped_is_projected_and_what_is_sent_is_merged(prime, names, capsys):
    built = prime.model.setup_model(None, None)
    optimizer = prime.train.setup_optimizer(None, list(built.named_parameters()), None, lora=False, cpu_offload=False)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    (adapter,) = names["adapters"]
    assert prime.done == [("shard", ["up_proj.delta_S", "down_proj.delta_S"])]
    v, layout = rankspace.random_direction(adapter.modules, 3).vectors, rankspace.Layout.of(adapter.modules)
    for seed in range(4):
        prime.train.step(built, optimizer, scheduler, seed)
        called, clipped = prime.done[-1]
        assert called == "clip"
        assert ((layout.pad(clipped) * layout.pad(v)).sum(-1) <= 1e-5 * clipped.norm()).all()
    assert capsys.readouterr().out.count("update_cos_mean") == 4
    assert adapter.get_flat().abs().max() > 0

    sent = prime.broadcast.gather_weights_on_master(built, is_master=True)
    assert set(sent) == {"up_proj.weight", "up_proj.bias", "down_proj.weight", "down_proj.bias"}
    U, Vh = adapter.basis("up_proj")
    base = built.up_proj.weight.to(torch.bfloat16)
    assert torch.equal(sent["up_proj.weight"], merged_weight(base, U, adapter.named_delta()["up_proj"], Vh))
    assert not torch.equal(sent["up_proj.weight"], base)
    assert prime.broadcast.gather_weights_on_master(built, is_master=False) == {}  # the other ranks hold nothing


def test_the_vanilla_loop_would_have_clipped_something_else(prime):
    """The contract can fail: without the block the stand-in clips the raw gradient of all weights."""
    prime.model.can_reinit_empty_buffers = lambda built: False
    built = prime.model.setup_model(None, None)
    optimizer = prime.train.setup_optimizer(None, list(built.named_parameters()), None)
    prime.train.step(built, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0), 0)
    assert len(prime.done[0][1]) == 4 and prime.done[-1][1].numel() == 6 * 8 + 8 + 8 * 4 + 4
