"""Run by test_wheel.py in a venv with torch and safetensors only: attach, extract, project, train, merge, save, load."""

import importlib.util
import tempfile
from collections import namedtuple
from pathlib import Path

import torch
from torch import nn

import rankspace

torch.set_num_threads(1)
ABSENT = (
    "numpy",
    "transformers",
    "deepspeed",
    "pydantic",
    "redis",
    "msgpack",
    "rich",
    "matplotlib",
    "vllm",
    "tasks",
    "common",
)
for name in ABSENT:
    assert importlib.util.find_spec(name) is None, f"{name} is visible here: the test would prove nothing"

Output = namedtuple("Output", "logits")


class Block(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.q_proj, self.up_proj = nn.Linear(d, d, bias=False), nn.Linear(d, 2 * d)
        self.down_proj = nn.Linear(2 * d, d)

    def forward(self, x):
        x = x + torch.cumsum(self.q_proj(x), dim=1) / 8
        return x + self.down_proj(torch.relu(self.up_proj(x)))


class Model(nn.Module):
    def __init__(self, d: int = 16, vocabulary: int = 40):
        super().__init__()
        self.embed, self.layers = nn.Embedding(vocabulary, d), nn.ModuleList(Block(d) for _ in range(2))
        self.lm_head = nn.Linear(d, vocabulary, bias=False)

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, use_cache=False):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return Output(self.lm_head(x))


def model():
    torch.manual_seed(0)
    return Model()


here = Path(tempfile.mkdtemp())
base = model()
adapter = rankspace.attach(base, svd_cache_dir=here / "svd")
assert len(adapter.modules) == 6
draw = torch.Generator().manual_seed(1)


def ids(low, high, n):
    return torch.randint(low, high, (n,), generator=draw).tolist()


pairs = [rankspace.TokenizedPair(i, (p := ids(0, 10, 4)) + ids(20, 30, 5), p + ids(30, 40, 5), 4) for i in range(12)]
gradients = rankspace.extract_gradients(base, adapter, pairs[:8])
v = rankspace.hack_direction(gradients, {"fingerprint": adapter.fingerprint})
numbers = rankspace.validate(v, rankspace.extract_gradients(base, adapter, pairs[8:]))
assert numbers["frac_positive"] > 0.5, numbers
rankspace.save_direction(rankspace.direction.with_metadata(v, validation=numbers), here / "v.safetensors")
v = rankspace.load_direction(here / "v.safetensors", adapter.modules, adapter.fingerprint)
rankspace.require_validated(v)
rankspace.subspace_direction(gradients, 2), rankspace.shuffled_direction(gradients, 0)

optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2, weight_decay=0.0)
hook = rankspace.GradientHook(optimizer, adapter, v)
for _ in range(3):
    batch = rankspace.batch.pad_batch([p.hack_ids[:4] for p in pairs], [p.hack_ids[4:] for p in pairs])
    logits = base(batch.input_ids).logits[:, 3:-1]
    logp, _ = rankspace.completion_logprobs(logits, batch.token_ids)
    advantages, _ = rankspace.group_advantages(torch.arange(12.0))
    loss, _ = rankspace.policy_loss(logp, logp.detach(), None, advantages, batch.mask)
    loss.backward()
    before = hook.before_step()
    grads = torch.cat([p.grad for p in adapter.parameters()])
    layout = rankspace.Layout.of(adapter.modules)
    assert ((layout.pad(grads) * layout.pad(v.vectors)).sum(-1) <= 1e-7).all()
    optimizer.step()
    hook.after_step()
    optimizer.zero_grad()
assert before["n_modules"] == 6 and adapter.get_flat().norm() > 0

rankspace.save_adapter(adapter, here / "saved", "mine", v, step=3)
fresh = model()
again = rankspace.load_adapter(here / "saved", fresh, svd_cache_dir=here / "svd")
assert torch.equal(again.get_flat(), adapter.get_flat())

plain = model()
rankspace.export.fold(plain, rankspace.read_delta(here / "saved"))
x = torch.arange(12)[None]
with torch.no_grad():
    assert torch.allclose(plain(x).logits, base(x).logits, atol=1e-5)
    with adapter.disabled():
        assert torch.equal(base(x).logits, model()(x).logits)
source = rankspace.MergeSource.load(model().named_parameters(), adapter.modules)
merged = dict(source.merged(adapter.get_flat()))
assert torch.allclose(merged["layers.0.q_proj.weight"], plain.layers[0].q_proj.weight, atol=1e-6)
print("all of it works")
