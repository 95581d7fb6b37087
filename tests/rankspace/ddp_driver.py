"""One rank of test_hook_ddp.py: DDP or FSDP2 over gloo, its own data, three steps of GradientHook; prints delta_S and the
cosines. Arguments: where the ranks meet, ddp or fsdp2, the variant."""

import json
import os
import sys

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import rankspace

torch.set_num_threads(1)
rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(12, 20), nn.Linear(20, 5)

    def forward(self, x):
        return self.down_proj(torch.tanh(self.up_proj(x)))


torch.manual_seed(0)
model = Two()
adapter = rankspace.attach(model)
data = torch.randn(4, 12, generator=torch.Generator().manual_seed(3))
wanted = torch.randn(4, 5, generator=torch.Generator().manual_seed(4))
if ranks > 1:
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=ranks)
    if sys.argv[2] == "ddp":
        model = DistributedDataParallel(model)
    else:
        for part in (model.up_proj, model.down_proj, model):  # 12 and 5 numbers over two ranks: also an uneven cut
            fully_shard(part)
    data, wanted = data.chunk(ranks)[rank], wanted.chunk(ranks)[rank]

optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.05, weight_decay=0.0)
hook = rankspace.GradientHook(optimizer, adapter, rankspace.random_direction(adapter.modules, 5), sys.argv[3])
hook.start()
fired = []
for _ in range(3):
    ((model(data) - wanted) ** 2).mean().backward()
    metrics = hook.before_step()
    optimizer.step()
    hook.after_step()
    optimizer.zero_grad()
    fired.append(metrics["cos"].tolist())
json.dump({"delta": adapter.get_flat().tolist(), "cos": fired}, sys.stdout)
