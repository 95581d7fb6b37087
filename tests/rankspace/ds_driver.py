"""Runs the DeepSpeed matrix inside one process per rank; test_ds_hook.py starts it and judges what it prints.

    RANK, WORLD_SIZE in the environment; argv: JSON list of cases, output path of rank 0, a file where the ranks meet (a
    port that was free when it was chosen may be taken by the time deepspeed is imported).

Each case trains the same tiny Qwen3 for two steps on the same data, once under DeepSpeed with the hook, once in this
process alone with plain torch: all ranks' micro-batches, mean gradient, project, clip, torch.optim.AdamW.
"""

from __future__ import annotations

import json
import os
import sys

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])

import deepspeed
import torch
from deepspeed.utils import logger
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

import rankspace
from rankspace.ds_hook import ProjectionHook, gather_delta, gather_grad, gather_moment, scatter_delta
from rankspace.hook_base import Intervention
from rankspace.position import placed, shifted, without_component

logger.setLevel("ERROR")
torch.set_num_threads(1)
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo does; the op would be compiled at the first run
CLIP = 0.05
DOSE = 0.01
# 17 is odd on purpose: ranks do not divide it, so ZeRO partitions end inside a module and ZeRO-3 pads
SHAPE = {"hidden_size": 17, "intermediate_size": 30, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
ADAM = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.01}
# Adam's first step is lr·sign(g): a last-bit difference flips an entry near zero. In bf16 an eps near the typical |g|
# (3e-3 after clipping) keeps the map continuous, so that the comparison measures the gradient and not luck
ADAM_BF16 = ADAM | {"eps": 1e-3}
# The arms inside AdamW divide what the projection moved by a |g| that may be near zero: the same remedy
ADAM_INSIDE = ADAM_BF16
# eps far above every |g| turns AdamW into plain descent: the applied update then shows the gradient itself
LINEAR = {"lr": 1e2, "betas": (0.0, 0.0), "eps": 1e3, "weight_decay": 0.0}


def make(case: dict) -> tuple[torch.nn.Module, rankspace.Adapter]:
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=40, num_hidden_layers=2, **SHAPE)
    model = Qwen3ForCausalLM(config).to(torch.float32 if case["precision"] == "fp32" else torch.bfloat16)
    adapter = rankspace.attach(model, form=case.get("form", "factored"))
    adapter.set_flat(0.05 * torch.randn(sum(r for _, r in adapter.modules), generator=torch.Generator().manual_seed(1)))
    return model, adapter


def batch(step: int, micro: int, rank: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1000 * step + 10 * micro + rank)
    return torch.randint(0, 40, (2, 7), generator=g), torch.randn(2, generator=g)


def loss_of(model, ids: Tensor, weight: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    logprobs, _ = rankspace.completion_logprobs(logits, ids[:, 1:])
    return (weight[:, None] * logprobs).mean()


def reference_gradient(model, adapter, case: dict, step: int) -> Tensor:
    """Mean over ranks and micro-batches, summed in the dtype that the case names for accumulation."""
    dtype = torch.bfloat16 if case["precision"] == "ds_bf16" else torch.float32
    ranks = []
    for rank in range(case["world"]):
        total = torch.zeros(sum(r for _, r in adapter.modules), dtype=dtype)
        for micro in range(case["accumulation"]):
            loss = loss_of(model, *batch(step, micro, rank)) / case["accumulation"]
            total += torch.cat([g.to(dtype) for g in torch.autograd.grad(loss, adapter.parameters())])
        ranks.append(total)
    return torch.stack(ranks).float().mean(dim=0)


def aimed_direction(case: dict) -> rankspace.Direction:
    """Leans towards the first gradient in two modules of three (they fire), away from it in the third (untouched)."""
    model, adapter = make(case)
    layout = rankspace.Layout.of(adapter.modules)
    unit = rankspace.projection.unit_rows
    g = unit(layout.pad(reference_gradient(model, adapter, case, 0)), layout.names)
    noise = layout.pad(rankspace.random_direction(adapter.modules, 3).vectors)
    sign = torch.tensor([-1.0 if i % 3 == 2 else 1.0 for i in range(len(layout.names))])[:, None]
    return rankspace.Direction("v_hack", layout.unpad(sign * unit(g + noise, layout.names)).float(), adapter.modules)


def run_reference(case: dict, direction, hyper: dict, steps: int, project: bool = True) -> list[Tensor]:
    """delta_S after each step, by plain torch. In bf16 mode: bf16 parameter, fp32 master, as DeepSpeed states it."""
    model, adapter = make(case)
    if case["precision"].startswith("ds_bf16"):
        for p in adapter.parameters():
            p.data = p.data.bfloat16()
    layout = rankspace.Layout.of(adapter.modules)
    if project and case["variant"] in ("m_only", "moments", "fisher"):
        return written_out(case, model, adapter, direction, hyper, steps)
    if project and case["variant"] == "shift":
        adapter.set_flat(shifted(direction.vectors, layout, DOSE))
    master = torch.nn.Parameter(adapter.get_flat())
    optimizer = torch.optim.AdamW([master], **hyper)
    history = []
    for step in range(steps):
        g = reference_gradient(model, adapter, case, step)
        if project and case["variant"] not in ("update", "leash", "setpoint", "shift"):
            g, _ = rankspace.project(g, direction.vectors, layout, case["variant"])
        master.grad = g
        torch.nn.utils.clip_grad_norm_([master], CLIP)
        before = master.detach().clone()
        optimizer.step()
        if project and case["variant"] == "update":
            change, _ = rankspace.project_update(master.detach() - before, direction.vectors, layout)
            master.data = before + change
        if project and case["variant"] in ("leash", "setpoint"):
            v = direction.vectors
            master.data, moved = placed(master.detach(), v, layout, case["variant"], DOSE, 4, step)
            state = optimizer.state[master]
            state["exp_avg"] = without_component(state["exp_avg"], v, layout, moved)
        adapter.set_flat(master.detach())
        history.append(master.detach().clone())
    return history


def written_out(case: dict, model, adapter, direction, hyper: dict, steps: int) -> list[Tensor]:
    """AdamW with its arms inside, line by line, beside neither torch's optimizer nor rankspace.adam."""
    layout = rankspace.Layout.of(adapter.modules)
    v = layout.unpad(rankspace.projection.unit_rows(layout.pad(direction.vectors), layout.names))
    module = torch.cat([torch.full((r,), i) for i, r in enumerate(layout.ranks)])
    (b1, b2), lr, eps, decay = hyper["betas"], hyper["lr"], hyper["eps"], hyper["weight_decay"]
    delta = adapter.get_flat().double()
    m, w, history = torch.zeros_like(delta), torch.zeros_like(delta), []

    def dots(x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros(len(layout.ranks)).double().index_add(0, module, x * y)[module]

    for step in range(steps):
        g = reference_gradient(model, adapter, case, step)
        handed = rankspace.project(g, v, layout, "one_sided")[0] if case["variant"] == "m_only" else g
        clip = min(1.0, CLIP / (float(handed.norm()) + 1e-6))
        m, w = b1 * m + (1 - b1) * clip * handed, b2 * w + (1 - b2) * (clip * g.double()).square()
        if case["variant"] == "moments":
            m = m - dots(m, v).clamp_min(0) * v
        p = 1 / ((w / (1 - b2 ** (step + 1))).sqrt() + eps)
        u = -lr * decay * delta - lr * m / (1 - b1 ** (step + 1)) * p
        if case["variant"] == "fisher":
            u = u - dots(u, v).clamp_max(0) / dots(p * v, v) * p * v
        delta = delta + u
        adapter.set_flat(delta.float())
        history.append(delta.float())
    return history


def engine_for(case: dict, model, adapter, hyper: dict, parameters=None):
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": case["accumulation"],
        "gradient_clipping": CLIP,
        "zero_optimization": {"stage": case["stage"]},
        "zero_allow_untested_optimizer": True,
    }
    if case["precision"].startswith("ds_bf16"):
        config["bf16"] = {"enabled": True}
    if case["precision"] == "ds_bf16_acc32":
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    optimizer = torch.optim.AdamW(parameters or adapter.parameters(), **hyper)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def run_engine(case: dict, direction, hyper: dict, steps: int) -> tuple[list[Tensor], list[dict], list[dict]]:
    model, adapter = make(case)
    engine = engine_for(case, model, adapter, hyper)
    does = Intervention(case["variant"], dose=DOSE, ramp=4)
    hook = ProjectionHook(engine, adapter, direction, does, verify="always")
    hook.start()
    started = along(adapter, direction, gather_delta(engine, adapter))
    rank, history, before, after = int(os.environ["RANK"]), [], [], []
    for step in range(steps):
        for micro in range(case["accumulation"]):
            engine.backward(loss_of(engine, *batch(step, micro, rank)))
            if engine.is_gradient_accumulation_boundary():
                before.append(hook.before_step())
            engine.step()
        after.append(hook.after_step())
        history.append(gather_delta(engine, adapter))
    if case["variant"] in ("leash", "setpoint"):
        after[-1]["along"] = along(adapter, direction, history[-1])
        after[-1]["moment_along"] = along(adapter, direction, gather_moment(engine, adapter)).abs().max().item()
    after[-1]["started_along"] = started
    target = torch.linspace(-1, 1, history[-1].numel())
    scatter_delta(engine, adapter, target)
    error = (gather_delta(engine, adapter) - target).abs().max().item()
    after[-1]["scatter_error"] = error
    engine.destroy()
    return history, before, after


def along(adapter, direction, flat: Tensor) -> Tensor:
    layout = rankspace.Layout.of(adapter.modules)
    return (layout.pad(flat) * layout.pad(direction.vectors)).sum(dim=-1)


def scalars(metrics: dict) -> dict:
    return {k: v for k, v in metrics.items() if isinstance(v, (int, float))} | {
        k: v.tolist() for k, v in metrics.items() if isinstance(v, Tensor)
    }


def compare(case: dict) -> dict:
    direction = aimed_direction(case)
    start = make(case)[1].get_flat()
    result = {"case": case}
    adam = ADAM if case["precision"] == "fp32" else ADAM_BF16
    if case["variant"] in ("m_only", "moments", "fisher"):
        adam = ADAM_INSIDE
    for name, hyper, steps in (("adam", adam, 2), ("linear", LINEAR, 1)):
        want = run_reference(case, direction, hyper, steps)
        plain = run_reference(case, direction, hyper, steps, project=False)
        got, before, after = run_engine(case, direction, hyper, steps)
        update, wanted, unprojected = got[-1] - start, want[-1] - start, plain[-1] - start
        result[name] = {
            "error": ((update - wanted).norm() / wanted.norm()).item(),
            "distance_without_hook": ((unprojected - wanted).norm() / wanted.norm()).item(),
            "before": [scalars(m) for m in before],
            "after": [scalars(m) for m in after],
        }
    return result


def message_of(call) -> str:
    try:
        call()
    except rankspace.RankspaceError as error:
        return str(error)
    return "nothing was raised"


def guards(case: dict) -> dict:
    """Each promise of the hook's guard, attacked; the message of what was raised."""
    model, adapter = make(case)
    engine = engine_for(case, model, adapter, ADAM)
    hook = ProjectionHook(engine, adapter, rankspace.random_direction(adapter.modules, 0))
    rank, said = int(os.environ["RANK"]), {}
    said["no_gradient_yet"] = message_of(hook.before_step)
    said["after_first"] = message_of(hook.after_step)
    other = [("elsewhere", 5), *adapter.modules[1:]]
    wrong = rankspace.random_direction(other, 0)
    said["wrong_direction"] = message_of(lambda: ProjectionHook(engine, adapter, wrong))
    said["wrong_variant"] = message_of(lambda: ProjectionHook(engine, adapter, hook.direction, "subspace"))
    said["unknown_variant"] = message_of(lambda: ProjectionHook(engine, adapter, hook.direction, "sideways"))
    engine.backward(loss_of(engine, *batch(0, 0, rank)))
    said["wrong_refresh"] = message_of(lambda: hook.set_direction(wrong))
    said["before_boundary"] = message_of(hook.before_step)
    engine.step()
    for micro in range(1, case["accumulation"]):
        engine.backward(loss_of(engine, *batch(0, micro, rank)))
        if micro < case["accumulation"] - 1:
            engine.step()
    real = deepspeed.utils.safe_set_full_grad
    deepspeed.utils.safe_set_full_grad = lambda *_: None
    said["write_lost"] = message_of(hook.before_step)
    written = []
    deepspeed.utils.safe_set_full_grad = lambda p, value: (written.append(p), real(p, value))
    for variant in ("measure_only", "off", "leash"):
        written.clear()
        raw = gather_grad(engine, adapter)
        ProjectionHook(engine, adapter, hook.direction, variant).before_step()
        same = torch.equal(gather_grad(engine, adapter), raw)
        said[f"{variant}_writes"] = f"{len(written)} gradients, {'unchanged' if same else 'changed'}"
    deepspeed.utils.safe_set_full_grad = real
    said["sound"] = message_of(hook.before_step)
    engine.destroy()
    return said


def fewer_modules(case: dict) -> dict:
    """One module left out of the optimizer: the hook must raise."""
    model, adapter = make(case)
    if case["fewer"] == "frozen":
        adapter.parameters()[3].requires_grad_(False)
    kept = [p for i, p in enumerate(adapter.parameters()) if i != 3]
    engine = engine_for(case, model, adapter, ADAM, kept)
    hook = ProjectionHook(engine, adapter, rankspace.random_direction(adapter.modules, 0))
    engine.backward(loss_of(engine, *batch(0, 0, int(os.environ["RANK"]))))
    return {"fewer": message_of(hook.before_step)}


def main() -> None:
    cases, out = json.loads(sys.argv[1]), sys.argv[2]
    rank, world = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=world)
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    results = []
    for case in cases:
        run = guards if "guards" in case else fewer_modules if "fewer" in case else compare
        results.append({"case": case} | run(case))
    if os.environ["RANK"] == "0":
        with open(out, "w", encoding="utf-8") as file:
            json.dump(results, file)


if __name__ == "__main__":
    main()
