"""python -m bench.gpu step|push|loop|ranks: what training step, push, whole loop and a second rank cost on this device.

Each part adds its numbers to --out (JSON, one key per part and shape), so parts may run one by one; `table` prints them
as Markdown, ratios first.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.gpu.shapes import SHAPES
from common import cli


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.gpu", description=__doc__)
    p.add_argument("part", choices=("step", "prepare", "push", "loop", "ranks", "table"))
    p.add_argument("--shape", choices=tuple(SHAPES), default="1.7b")
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    p.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    p.add_argument("--out", type=Path, required=True, help="JSON file that results are added to")
    p.add_argument("--work", type=Path, help="where models and SVD caches go (default: a temporary directory)")
    p.add_argument("--batch", type=int, default=8, help="sequences a step (step), or a micro-batch (loop)")
    p.add_argument("--tokens", type=int, default=1024, help="tokens a sequence (step), or sampled at most (push, loop)")
    p.add_argument("--repeats", type=int, default=6, help="timed steps or pushes")
    p.add_argument("--no-checkpointing", action="store_true", help="keep activations instead of computing them twice")
    p.add_argument("--no-compile", action="store_true", help="leave out the compiled forms (step)")
    p.add_argument("--compile", action="store_true", help="compile the trainer's layers (loop)")
    p.add_argument("--limit", type=float, default=600.0, help="seconds after which no further form is begun (step)")
    p.add_argument("--kv-cache", type=float, default=20.0, help="GiB for vLLM's cache (push, loop)")
    p.add_argument(
        "--bases-on", choices=("gpu", "host"), default="gpu", help="where the generator keeps U, Vh (push, loop)"
    )
    p.add_argument("--gpus", nargs=2, metavar=("TRAINER", "GENERATOR"), help="like 0 1: each on its own (loop)")
    p.add_argument("--preset", default="smollm", help="whose problems and tokenizer (loop)")
    p.add_argument("--groups", type=int, default=16, help="prompts a step, 8 rollouts each (push, loop)")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.part == "table":
        print(table(json.loads(args.out.read_text())))
        return 0
    if args.work is not None:
        _add(args, _measure(args, args.work))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        _add(args, _measure(args, Path(scratch)))
    return 0


def _measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    checkpointing = not args.no_checkpointing
    if args.part == "step":
        from bench.gpu import shapes, step

        shape = SHAPES[args.shape]
        with shapes.random_bases(args.device):
            error = step.gradient_error(
                shape["intermediate_size"], shape["hidden_size"], args.batch * args.tokens, args.device, args.dtype
            )
        return step.measure(
            args.shape, args.device, args.batch, args.tokens, args.repeats, dtype=args.dtype,
            checkpointing=checkpointing, compiled=not args.no_compile, limit_s=args.limit,
            keep=lambda found: _add(args, found | {"gradient_error": error}, quiet=True),
        ) | {"gradient_error": error}  # fmt: skip
    from bench.gpu import shapes

    folder = shapes.save(args.shape, work / f"model-{args.shape}", args.device, args.dtype)
    if args.part == "prepare":
        return {"bases": shapes.fill_cache(folder, work / "svd", args.device)}
    if args.part == "push":
        from bench.gpu import push

        return push.measure(
            folder, args.device, args.dtype, args.repeats, work / "svd", args.kv_cache, args.groups,
            new_tokens=args.tokens, bases_on=args.bases_on,
        )  # fmt: skip
    shapes.fill_cache(folder, work / "svd", args.device)
    if args.part == "ranks":
        from bench.gpu import ranks

        return ranks.measure(
            folder, work / "ranks", work / "svd", args.device, args.dtype, args.repeats, args.tokens, args.batch
        )
    from bench.gpu import loop

    return loop.measure(
        folder, work / f"loop-{args.shape}", work / "svd", args.device, args.dtype, args.repeats, args.tokens, args.groups,
        micro_batch=args.batch, checkpointing=checkpointing, compiled=args.compile, kv_cache_gib=args.kv_cache,
        bases_on=args.bases_on, gpus=args.gpus, preset=args.preset,
    )  # fmt: skip


def _add(args: argparse.Namespace, found: dict[str, Any], quiet: bool = False) -> None:
    everything = json.loads(args.out.read_text()) if args.out.is_file() else {}
    name = f"{args.part} {args.shape}" + (" keep activations" if args.no_checkpointing else "")
    name += " compiled" if args.compile else ""
    name += " bases on host" if args.bases_on == "host" else ""
    name += " two GPUs" if args.gpus else ""
    everything[name] = found | {"machine": machine(args.device)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(everything, indent=1))
    if not quiet:
        print(json.dumps({name: found}, indent=1))


def machine(device: str) -> dict[str, str]:
    """Device, versions, date."""
    import torch

    from experiments.launch.provenance import package_versions

    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})"
    return {"device": name, "date": datetime.now(UTC).date().isoformat()} | package_versions()


def table(everything: dict[str, Any]) -> str:
    """The numbers as Markdown, ratios first."""
    lines: list[str] = []
    for name, found in everything.items():
        part = name.split()[0]
        lines += [
            f"### {name}",
            "",
            *{"step": _step, "push": _push, "loop": _loop, "ranks": _ranks, "prepare": _prepare}[part](found),
            "",
        ]
        lines += [", ".join(f"{key} {value}" for key, value in found["machine"].items()), ""]
    return "\n".join(lines)


def _step(found: dict[str, Any]) -> list[str]:
    speed, peak = found["tokens_per_s"], found["peak_gib"]
    against = [name for name in ("lora", "frozen", "frozen compiled") if name in speed]
    rows = [f"| {form} | " + " | ".join(f"{speed[form] / speed[name]:.2f}" for name in against)
            + f" | {speed[form]:,.0f} | {peak[form]:.1f} |" for form in speed]  # fmt: skip
    ours = max((form for form in speed if form.startswith("merged") and "x4" not in form), key=speed.get, default=None)
    share = "" if ours is None else f" ({0.1 * found['projection_ms'] * speed[ours] / found['tokens']:.2f}% of a step)"
    errors = ", ".join(f"{form} {error:.1e}" for form, error in found["gradient_error"].items())
    failed = [f"{form} did not run: {why}" for form, why in found["failed"].items()]
    return [
        "| form | " + " | ".join(f"x {name}" for name in against) + " | tokens/s | peak GiB |",
        "|---|" + "---|" * (len(against) + 2), *rows, "",
        f"{found['tokens']:,} tokens a micro-batch, activations {'checkpointed' if found['checkpointing'] else 'kept'};"
        f" projection of {found['modules']} modules {found['projection_ms']:.2f} ms{share};"
        f" relative error of d_delta against float64: {errors}", *failed,
    ]  # fmt: skip


def _prepare(found: dict[str, Any]) -> list[str]:
    return [f"random bases for {found['bases']} modules"]


def _push(found: dict[str, Any]) -> list[str]:
    ours, full = found["ours"], found["full"]
    rows = [
        f"| {name} | {full['to_first_token_ms'] / x['to_first_token_ms']:.1f} | {x['to_first_token_ms']:.0f}"
        f" | {x['ready_ms']:.0f} | {x['payload_bytes'] / 1e6:,.2f} |"
        for name, x in (("delta_S, with queue, probe and proof", ours), ("full weights, load_weights alone", full))
    ]
    return [
        "| push | x full | to first token ms | until ready ms | payload MB |", "|---|---|---|---|---|", *rows, "",
        f"with requests in work and kept: {found['kept']['to_next_tokens_ms']:.0f} ms to everybody's next tokens;"
        f" merged {'in place' if found['in_place'] else 'through load_weights'}; first push (reads weights and bases)"
        f" {found['first_push_s']:.1f} s; engine start {found['start_s']:.0f} s;"
        f" sampling {found['sampled_tokens'] / found['sample_s']:,.0f} tokens/s",
    ]  # fmt: skip


def _loop(found: dict[str, Any]) -> list[str]:
    phases = found["seconds"]
    idle = "".join(
        f"; GPU {gpu} idle in {use['idle_share']:.0%} of samples, {use['memory_gib']:.0f} GiB in use at most"
        for gpu, use in found["gpus"].items()
    )
    return [
        "| " + " | ".join(phases) + " | 200 steps, min |", "|" + "---|" * (len(phases) + 1),
        "| " + " | ".join(f"{s:.1f}" for s in phases.values()) + f" | {found['minutes_200_steps']:.0f} |", "",
        f"median seconds a step; {found['rollouts']} rollouts, {found['tokens_per_step']:,.0f} sampled tokens a step,"
        f" {found['trained_groups']} of {found['groups']} groups trained on{idle}",
    ]  # fmt: skip


def _ranks(found: dict[str, Any]) -> list[str]:
    one, two = found["seconds"]["1"], found["seconds"]["2"]
    return [
        f"{found['rows']} rows of {found['tokens'] // 2} to {found['tokens']} tokens in {found['dtype']}, ZeRO-2, projected:"
        f" two ranks {one / two:.2f} times as fast as one ({two:.2f} s a step);"
        f" after {found['steps']} steps delta_S differs by {found['delta_gap']:.1e} of its largest entry, the cosines of"
        f" {found['modules']} modules by {found['cos_gap']:.1e} at most (largest {found['cos_largest']:.3f})",
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli.run(main))
