"""One rank of test_verl.py: the block of docs/interop.md inside verl, on a CPU. Prints what it saw as JSON.

Arguments: where the ranks meet, the model, the mixed precision's param_dtype. verl has no CPU platform of its own, so one
is given to it here; its engine, FSDP2 wrapping, optimizer and clipping are its own.
"""

import json
import os
import sys

import torch
import trl

if not hasattr(trl, "AutoModelForCausalLMWithValueHead"):  # TRL 1.x has dropped it; verl asks for it by name
    trl.AutoModelForCausalLMWithValueHead = type("AutoModelForCausalLMWithValueHead", (), {})
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import set_platform

torch.set_num_threads(1)


class Cpu(PlatformBase):
    device_name, vendor_name, device_module, communication_backend_name = "cpu", "none", torch.cpu, "gloo"

    def current_device(self):
        return "cpu"

    def is_available(self):
        return True

    def empty_cache(self, *_):
        return None

    synchronize = set_device = empty_cache


Cpu.__abstractmethods__ = frozenset()  # the rest is of GPUs
set_platform(Cpu())

import rankspace_verl  # noqa: E402  # the page's block
from tensordict import TensorDict  # noqa: E402
from verl.trainer.config import CheckpointConfig  # noqa: E402
from verl.utils import tensordict_utils as tu  # noqa: E402
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig  # noqa: E402
from verl.workers.engine.fsdp import transformer_impl  # noqa: E402

meet, model_path, dtype = sys.argv[1:]
rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
torch.distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=ranks)


def batch(step):
    """Four rows of twelve tokens for all ranks together, this rank's share of them, as verl hands them to its engine."""
    ids = torch.randint(5, 50, (4, 12), generator=torch.Generator().manual_seed(step)).chunk(ranks)[rank]
    nested = {"input_ids": ids, "position_ids": torch.arange(12).expand_as(ids), "loss_mask": torch.ones_like(ids)}
    rows = {name: torch.nested.as_nested_tensor(list(t), layout=torch.jagged) for name, t in nested.items()}
    data = TensorDict(rows, batch_size=len(ids))
    tu.assign_non_tensor(
        data,
        use_remove_padding=False,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=1,
        temperature=1.0,
    )
    return data


def loss_function(model_output, data, dp_group=None):
    tokens = tu.get_non_tensor_data(data, "batch_num_tokens", None)
    log_probs = model_output["log_probs"].values()
    return -log_probs.sum() / tokens * ranks, {}  # FSDP averages over the ranks


clipped = []  # the gradient that verl is about to clip


def seen(parameters, max_norm, **kwargs):
    parameters = [p for p in parameters if p.requires_grad]
    clipped.append(torch.cat([p.grad.full_tensor() for p in parameters]).tolist())
    return clip(parameters, max_norm, **kwargs)


clip, transformer_impl.fsdp2_clip_grad_norm_ = transformer_impl.fsdp2_clip_grad_norm_, seen
engine = rankspace_verl.RankspaceEngine(
    HFModelConfig(
        path=model_path,
        use_remove_padding=False,
        enable_gradient_checkpointing=False,
        override_config={"attn_implementation": "eager"},
    ),
    FSDPEngineConfig(
        strategy="fsdp2", use_torch_compile=False, mixed_precision={"param_dtype": dtype, "reduce_dtype": "fp32"}
    ),
    FSDPOptimizerConfig(lr=0.02, weight_decay=0.0, clip_grad=1e-3, total_training_steps=3),
    CheckpointConfig(),
)
engine.initialize()
before = {name: tensor.clone() for name, tensor in engine.get_per_tensor_param()[0]}
outputs = []
with engine.train_mode():
    for step in range(3):
        outputs.append(engine.train_batch(batch(step), loss_function)["metrics"])
after = dict(engine.get_per_tensor_param()[0])
changed = sorted(name for name, tensor in after.items() if not torch.equal(tensor, before[name]))
json.dump(
    {
        "delta": engine.adapter.get_flat().tolist(),
        "modules": engine.adapter.modules,
        "dtypes": sorted({str(p.dtype) for p in engine.adapter.parameters()}),
        "clipped": clipped,
        "metrics": [{k: v for k, v in row.items() if isinstance(v, float)} for row in outputs],
        "sent": sorted(after),
        "changed": changed,
        "norms": {name: float(after[name].float().norm()) for name in changed},
    },
    sys.stdout,
)
