"""python -m rankspace export and push: their arguments, and what they say. Torch is loaded only once they are read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .errors import RankspaceError

EXAMPLES = """examples:
  python -m rankspace export --delta out/delta_S.safetensors --model Qwen/Qwen3-4B --out merged
  python -m rankspace export --run runs/projected-0 --step 80 --out merged
  vllm serve ./merged
"""


def add_export(commands: Any) -> None:
    """Add the command to what `ArgumentParser.add_subparsers` returned."""
    command = commands.add_parser(
        "export",
        help="a trained adapter as a merged Hugging Face checkpoint, or as delta_S with a card",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--delta", type=Path, help="delta_S.safetensors as save_adapter or an export wrote it")
    source.add_argument("--run", type=Path, help="directory of a training run, e.g. runs/<id>: its newest checkpoint")
    command.add_argument("--step", type=int, help="of --run: the checkpoint after this many updates")
    command.add_argument("--model", help="base model, as extract takes it (default: as the source names it)")
    command.add_argument("--out", type=Path, required=True, help="directory to make")
    command.add_argument("--adapter-only", action="store_true", help="write delta_S and its card, no merged weights")
    command.add_argument("--svd-cache", type=Path, help="directory that SVDs are kept in, e.g. that of the training")
    command.add_argument("--force", action="store_true", help="replace an earlier export in --out")


def add_push(commands: Any) -> None:
    """Add the command to what `ArgumentParser.add_subparsers` returned."""
    command = commands.add_parser("push", help="an export, with its card, to the Hugging Face Hub")
    command.add_argument("--dir", type=Path, required=True, help="directory that export or save_adapter wrote")
    command.add_argument(
        "--repo", required=True, metavar="OWNER/NAME", help="model repository; made where it is absent"
    )
    command.add_argument("--public", action="store_true", help="where it is made: for everybody (default: private)")


def push(args: argparse.Namespace) -> None:
    """Upload it; every refusal that needs no network comes first."""
    from .hub import push_to_hub

    print(f"{args.dir} -> {push_to_hub(args.dir, args.repo, private=not args.public)}")


def export(args: argparse.Namespace) -> None:
    """Do it; every refusal comes before anything is written."""
    if args.step is not None and args.run is None:
        raise RankspaceError("--step belongs to --run: a --delta file holds one step only")
    from .adapter_io import read_delta
    from .atomic_dir import require_writable
    from .run_checkpoint import of_run

    require_writable(args.out)
    saved = of_run(args.run, args.step) if args.run is not None else read_delta(args.delta)
    model = args.model or saved.base_model
    from .export import export_model
    from .progress import bar

    with bar("SVD") as advance:
        out = export_model(saved, args.out, model, args.adapter_only, args.force, args.svd_cache, advance)
    what = "delta_S" if args.adapter_only else "merged checkpoint"
    print(f"{what}: {len(saved.modules)} modules of {model}, delta_S sha256 {saved.sha256[:12]} -> {out}")
    if saved.fingerprint is None:
        print(
            "note: the source does not record its base's fingerprint; only the modules' names and sizes were compared"
        )
