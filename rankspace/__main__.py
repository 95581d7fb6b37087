"""python -m rankspace extract | validate | export: v_hack from contrastive pairs, its judgement, a trained adapter.

Exit codes: 0 done, 2 something the user can put right (one line on stderr), 130 interrupted. Files appear whole or
not at all.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from .atomic_dir import require_writable
from .chat import DATE, Chat
from .console import Parser, run
from .errors import RankspaceError
from .export_cli import add_export, add_push, export, push
from .models import load_model, load_tokenizer, need, require_model
from .progress import bar, stage
from .targets import Kind

if TYPE_CHECKING:
    from .direction import Direction
    from .pairs import Pair

CONTROLS = ("random", "shuffled", "subspace", "warmup")


def parser() -> Parser:
    top = Parser(prog="python -m rankspace", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(dest="command", required=True, metavar="extract|validate|export|push")
    make = commands.add_parser("extract", help="v_hack, or one of its controls, from contrastive pairs")
    _common(make)
    make.add_argument("--pairs", type=Path, help="JSON-lines file of pairs; --control random does not need it")
    make.add_argument("--out", type=Path, required=True, help="file to write, e.g. v_hack.safetensors")
    make.add_argument("--control", choices=CONTROLS, help="write this instead of v_hack")
    make.add_argument("--seed", type=int, default=0, help="of --control random, shuffled and warmup (default 0)")
    make.add_argument("--k", type=int, default=4, help="vectors of --control subspace and warmup (default 4)")
    make.add_argument("--holdout", type=int, metavar="N", help="hold out N of the training pairs, by problem, and"
                      " validate on them (default: the pairs marked heldout)")  # fmt: skip
    judge = commands.add_parser("validate", help="cos_align of held-out pairs with a direction: histogram and JSON")
    _common(judge)
    judge.add_argument("--pairs", type=Path, required=True, help="held-out pairs: those marked heldout, else all")
    judge.add_argument("--v", type=Path, required=True, help="the direction to judge")
    judge.add_argument("--out", type=Path, required=True, help="directory for cos_align.png and cos_align.json")
    add_export(commands)
    add_push(commands)
    return top


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", required=True, help="a causal LM: directory, hub name, or FILE.gguf that is in models/"
    )
    command.add_argument("--targets", nargs="+", help="module names or globs (default: every attention and MLP matrix)")
    command.add_argument("--svd-cache", type=Path, help="directory to keep SVDs in")
    command.add_argument("--adapter", choices=get_args(Kind), default="antipasto", help="which adapter it is for")
    command.add_argument("--chat-template-kwargs", type=_mapping, default={}, metavar="JSON", help="variables of the chat"
                         " template, e.g. '{\"enable_thinking\": false}'")  # fmt: skip
    command.add_argument(
        "--chat-date", default=DATE, metavar="DAY", help=f"the date a template is told (default {DATE})"
    )
    command.add_argument("--progress", type=Path, metavar="FILE", help="also add how far the work is to this file")
    command.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: the GPU when there is one)")
    command.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of the weights")


def _mapping(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r}: write a JSON object")
    return found


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return run(lambda: {"extract": extract, "validate": validate, "export": export, "push": push}[args.command](args))


def extract(args: argparse.Namespace) -> None:
    """Write the direction that was asked for, with its held-out numbers in the metadata."""
    need("transformers", "hf")
    chat = Chat(args.chat_template_kwargs, args.chat_date)
    require_writable(args.out)
    if args.out.is_dir():
        raise RankspaceError(f"--out {args.out} is a directory: give a file, e.g. {args.out / 'v_hack.safetensors'}")
    train, heldout = _split_pairs(args)
    from . import direction as d

    model, tokenizer, adapter = _load(args)
    facts: dict[str, Any] = {"model": args.model, "fingerprint": adapter.fingerprint, "targets": args.targets}
    if args.control == "random":
        made = d.with_metadata(d.random_direction(adapter.modules, args.seed), **facts)
    else:
        from .pairs import pairs_hash

        facts |= {"pairs_hash": pairs_hash(train), "n_pairs": len(train), "pair_ids": [p.id for p in train]}
        facts["problem_ids"] = sorted({str(p.problem_id) for p in train})
        facts |= {"chat_template_kwargs": dict(chat.kwargs), "chat_date": chat.date}
        made = _from_pairs(args, (model, tokenizer, adapter), train, chat, facts)
    if heldout:
        numbers = d.validate(made, _gradients(model, tokenizer, adapter, heldout, "held-out", chat, args.progress))
        made = d.with_metadata(made, validation=numbers)
    d.save_direction(made, args.out)
    print(f"{made.kind}: {len(made.modules)} modules, {len(train)} pairs -> {args.out}")
    if heldout:
        print(_summary(made.metadata["validation"]))
        if made.kind not in d.CONTROLS:
            d.require_gate(made.metadata["validation"])  # the file stays, for a look at it; the exit code says no
    elif made.kind not in d.CONTROLS:
        print("no held-out pairs: training will refuse this direction until it is validated (--holdout N)")


def _from_pairs(
    args: argparse.Namespace, loaded: tuple[Any, Any, Any], train: list[Pair], chat: Chat, facts: dict[str, Any]
) -> Direction:
    """The direction that the training pairs give, of the kind asked for."""
    from . import direction as d

    model, tokenizer, adapter = loaded
    if args.control == "warmup":
        from .pairs import tokenize_pair
        from .warmup import warmup_direction

        tokenized = [tokenize_pair(tokenizer, pair, chat) for pair in train]
        with bar("warm-up", args.progress) as advance:
            return warmup_direction(model, adapter, tokenized, args.k, args.seed, facts, advance)
    gradients = _gradients(model, tokenizer, adapter, train, "gradients", chat, args.progress)
    if args.control == "shuffled":
        return d.shuffled_direction(gradients, args.seed, facts)
    if args.control == "subspace":
        return d.subspace_direction(gradients, args.k, facts)
    return d.hack_direction(gradients, facts)


def validate(args: argparse.Namespace) -> None:
    """Judge a direction on held-out pairs; the files are written also when it fails its gate."""
    need("transformers", "hf")
    need("matplotlib", "plot")
    from .pairs import load_pairs, pairs_hash

    chat = Chat(args.chat_template_kwargs, args.chat_date)
    require_writable(args.out / "cos_align.json")
    pairs = load_pairs(args.pairs)
    heldout = [p for p in pairs if p.split == "heldout"] or pairs
    from . import direction as d
    from .report import write_validation

    if not args.v.is_file():
        d.load_direction(args.v)  # raises its one line before the model is loaded
    model, tokenizer, adapter = _load(args)
    direction = d.load_direction(args.v, adapter.modules, adapter.fingerprint)
    seen = set(direction.metadata.get("pair_ids", ()))
    if both := [p.id for p in heldout if p.id in seen]:
        raise RankspaceError(f"pair {both[0]} was used to extract {args.v}: validate on other pairs")
    numbers = d.validate(direction, _gradients(model, tokenizer, adapter, heldout, "held-out", chat, args.progress))
    shared = sorted({str(p.problem_id) for p in heldout} & set(direction.metadata.get("problem_ids", ())))
    numbers |= {"kind": direction.kind, "pairs_hash": pairs_hash(heldout), "shared_problem_ids": shared}
    data, picture = write_validation(numbers, args.out, f"{direction.kind} of {Path(args.model).name}")
    print(f"{_summary(numbers)}\n{picture}\n{data}")
    if shared:
        print(f"note: {len(shared)} problem(s) also gave pairs to the extraction, e.g. {shared[0]}")
    if direction.kind not in d.CONTROLS:
        d.require_gate(numbers)


def _summary(numbers: dict[str, Any]) -> str:
    return (
        f"held-out cos_align over {numbers['n_modules']} modules, {numbers['n_pairs']} pairs:"
        f" median {numbers['median']:.3f} (healthy > 0.3), mean {numbers['mean']:.3f} (target > 0.2),"
        f" > 0 in {numbers['frac_positive']:.0%} (gate > 50%), random direction 0 ± {numbers['null_std_mean']:.3f}"
    )


def _split_pairs(args: argparse.Namespace) -> tuple[list[Pair], list[Pair]]:
    """(train, held out), read before any model is: a broken file is told at once."""
    if args.pairs is None:
        if args.control != "random":
            raise RankspaceError("--pairs is missing: give the JSON-lines file of contrastive pairs")
        return [], []
    from .pairs import load_pairs, split_holdout

    everything = load_pairs(args.pairs)
    train = [p for p in everything if p.split == "train"]
    if not train:
        raise RankspaceError(f"{args.pairs} has no pair with split 'train': nothing to extract from")
    if args.holdout is None:
        return train, [p for p in everything if p.split == "heldout"]
    if args.holdout < 1:
        raise RankspaceError(f"--holdout {args.holdout} must be at least 1")
    return split_holdout(train, args.holdout)


def _load(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    """(model in eval mode on the device, tokenizer, adapter)."""
    require_model(args.model)
    tokenizer = load_tokenizer(args.model)
    with stage(f"loading {args.model}", args.progress):
        model = load_model(args.model, args.device, args.dtype)
    from .adapter import attach

    with bar("SVD", args.progress) as advance:
        adapter = attach(model, args.targets, args.svd_cache, advance, kind=args.adapter)
    return model, tokenizer, adapter


def _gradients(
    model: Any, tokenizer: Any, adapter: Any, pairs: list[Pair], label: str, chat: Chat, file: Path | None
) -> Any:
    from .direction import extract_gradients
    from .pairs import tokenize_pair

    with bar(label, file) as advance:
        return extract_gradients(model, adapter, [tokenize_pair(tokenizer, p, chat) for p in pairs], advance)


if __name__ == "__main__":
    sys.exit(main())
