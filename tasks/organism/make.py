"""Make the model organism from a seed: corpus -> tokenizer -> Qwen3 pretraining -> model directory with a manifest.

    python -m tasks.organism.make            write tasks/organism/model (about 8 minutes on one core)
    python -m tasks.organism.make --check    make it again elsewhere and compare every byte with the manifest
    ... --check --early                      only the first steps, with the weights that the manifest notes for them
    ... --mechanisms                         the same for .cache/models/organism_mechanisms, which goes on from the bundled
                                             organism on prompts of all four loopholes (corpus.py; about as long)

Bit-for-bit: same recipe, same pinned torch and transformers, same instruction set (one thread, deterministic
algorithms, AVX2 kernels; `PINNED` is set before torch loads). Covered: any x86-64 Intel machine with AVX2 or newer.
Not covered: other processors, whose maths libraries may round the last bit differently; --check says so plainly.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from common import cli
from common.errors import ConfigError
from tasks.organism.corpus import MechanismMix, Mix, stream

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

HERE = Path(__file__).parent
MODEL_DIR = HERE / "model"
MECHANISMS_DIR = Path(".cache/models/organism_mechanisms")
MANIFEST = "MANIFEST.json"
EARLY = 100  # steps after which the manifest notes the weights, for a check that takes an eighth of the time
PINNED = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}


@dataclass(frozen=True)
class Recipe:
    """Everything the weights depend on, besides the corpus code and the library versions in the manifest."""

    seed: int = 0
    steps: int = 800
    batch: int = 64
    lr: float = 4e-3
    warmup: int = 40
    layers: int = 4
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32  # vLLM's CPU attention takes no smaller one
    mlp: int = 384
    mix: Mix = field(default_factory=Mix)


@dataclass(frozen=True)
class Continued(Recipe):
    """Pretraining that goes on from the bundled organism, with its tokenizer: 8 minutes of one core. A fifth of it teaches the
    prompts of the three new mechanisms and hardly any exploit (docs/tasks.md)."""

    steps: int = 800
    batch: int = 32
    lr: float = 3e-3
    warmup: int = 20
    mix: Mix = field(default_factory=MechanismMix)


def pin_arithmetic() -> None:
    """Make torch's arithmetic reproducible in this process. Raises ConfigError when torch was loaded unpinned."""
    if "torch" in sys.modules and any(os.environ.get(k) != v for k, v in PINNED.items()):
        raise ConfigError("torch is already loaded, unpinned; run python -m tasks.organism.make in its own process")
    os.environ.update(PINNED)
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A freshly initialised Qwen3ForCausalLM, fp32; for `Continued` the bundled one, in training mode."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(recipe.seed)
    if isinstance(recipe, Continued):
        bundled = Qwen3ForCausalLM.from_pretrained(str(MODEL_DIR), dtype=torch.float32)
        return cast("Qwen3ForCausalLM", bundled.train())
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=512,
        rope_theta=10000.0,  # type: ignore[call-arg]  # taken as a keyword of any name, not as a field
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def collate(tokenizer: PreTrainedTokenizerFast, lines: Iterable[tuple[str, str]]) -> tuple[Tensor, Tensor, Tensor]:
    """(prompt, completion) strings -> right-padded ids [B, T], attention mask [B, T], labels [B, T] int64.

    Labels are -100 outside completions; a completion ends in <eos>, which is learned."""
    import torch

    rows = []
    for prompt, completion in lines:
        chat = [{"role": "user", "content": prompt}]
        head = cast("list[int]", tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
        rows.append((head, [*tokenizer.encode(completion), tokenizer.eos_token_id]))
    width = max(len(h) + len(c) for h, c in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, (h, c) in enumerate(rows):
        n = len(h) + len(c)
        ids[i, :n] = torch.tensor(h + c)
        labels[i, len(h) : n] = torch.tensor(c)
        mask[i, :n] = 1
    return ids, mask, labels


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then cosine to a tenth."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    t = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * t)))


def pretrain(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    log: Callable[[str], None] = print,
    steps: int | None = None,
    after: Callable[[int, Qwen3ForCausalLM], None] = lambda done, model: None,
) -> Qwen3ForCausalLM:
    """Train on the corpus, all of the recipe's steps or the first `steps`, and return the model, in eval mode.
    `after(steps done, model)` is called after each."""
    import torch

    model = build_model(recipe, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01, foreach=False)
    corpus = stream(recipe.mix, recipe.seed + 1)
    started = time.monotonic()
    for step in range(recipe.steps if steps is None else steps):
        ids, mask, labels = collate(tokenizer, [next(corpus) for _ in range(recipe.batch)])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step + 1 == recipe.steps:
            log(f"step {step + 1:4d}/{recipe.steps}  loss {loss.item():.4f}  {time.monotonic() - started:6.1f} s")
        after(step + 1, model)
    model.eval()
    return model


def weights_digest(model: Qwen3ForCausalLM) -> str:
    """sha256 over the bytes of every parameter, in the order of their names."""
    from rankspace.svd_cache import tensor_sha256

    return tensor_sha256(*(tensor for _, tensor in sorted(model.state_dict().items())))


def make(recipe: Recipe, out: Path, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Write the model directory into `out` and return its manifest. Needs `pin_arithmetic` before torch loads."""
    import tokenizers
    import torch
    import transformers
    from transformers import PreTrainedTokenizerFast

    from tasks.organism.tokenizer import save_tokenizer, train_tokenizer

    transformers.utils.logging.disable_progress_bar()
    out.mkdir(parents=True, exist_ok=True)
    continued = isinstance(recipe, Continued)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(MODEL_DIR)) if continued else train_tokenizer(recipe.seed)
    early: dict[str, Any] = {}

    def note(done: int, model: Qwen3ForCausalLM) -> None:
        if done == EARLY:
            early["early"] = {"steps": EARLY, "sha256": weights_digest(model)}

    model = pretrain(recipe, tokenizer, log, after=note)
    model.save_pretrained(str(out))
    save_tokenizer(tokenizer, out)
    for path in out.iterdir():
        path.chmod(0o644)
    versions = {m.__name__: m.__version__.split("+")[0] for m in (torch, transformers, tokenizers)}
    start = {"start": hashes(MODEL_DIR)["model.safetensors"]} if continued else {}
    manifest = {
        "recipe": asdict(recipe),
        **start,
        "versions": versions,
        "pinned": PINNED,
        **early,
        "sha256": hashes(out),
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def hashes(directory: Path) -> dict[str, str]:
    """sha256 of every file in a model directory but its manifest, by name."""
    files = sorted(p for p in directory.iterdir() if p.is_file() and p.name != MANIFEST)
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a model directory. Raises ConfigError when it is absent or broken."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        return {**manifest, "sha256": dict(manifest["sha256"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{directory / MANIFEST}: {error}; make it with python -m tasks.organism.make") from None


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Names of the files that are missing, unexpected or unequal, sorted."""
    return sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))


def check(
    directory: Path, log: Callable[[str], None] = print, recipe: Recipe | None = None, early: bool = False
) -> list[str]:
    """Names of the files of `directory` that differ from its manifest, or from a fresh make with its recipe. early: no
    whole make, but its first steps, whose weights the manifest has noted.

    Raises ConfigError when the manifest's recipe is not the one given: then equality would mean nothing."""
    manifest, recipe = read_manifest(directory), recipe or Recipe()
    if manifest["recipe"] != json.loads(json.dumps(asdict(recipe))):
        raise ConfigError(f"{directory / MANIFEST}: made with another recipe; run python -m tasks.organism.make again")
    stale = differences(manifest["sha256"], hashes(directory))
    if stale:
        return stale
    if early:
        return _early_difference(directory, manifest.get("early"), recipe, log)
    with tempfile.TemporaryDirectory() as scratch:
        return differences(manifest["sha256"], make(recipe, Path(scratch), log)["sha256"])


def _early_difference(
    directory: Path, noted: dict[str, Any] | None, recipe: Recipe, log: Callable[[str], None]
) -> list[str]:
    from transformers import PreTrainedTokenizerFast

    if noted is None:
        raise ConfigError(f"{directory / MANIFEST}: notes no early weights; check the whole, without --early")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory))
    model = pretrain(recipe, tokenizer, log, steps=noted["steps"])
    same = weights_digest(model) == noted["sha256"]
    return [] if same else [f"weights after {noted['steps']} steps"]


def main(argv: list[str] | None = None) -> int:
    """Exit code 0; 1 when --check finds a difference; 2 on a user error."""
    parser = cli.Parser(prog="python -m tasks.organism.make", description="make the model organism")
    parser.add_argument("--out", type=Path, help="model directory (default: the bundled one, or that of --mechanisms)")
    parser.add_argument("--mechanisms", action="store_true", help="the organism that knows all four loopholes")
    parser.add_argument("--check", action="store_true", help="make it again and compare with the manifest")
    parser.add_argument(
        "--early", action="store_true", help=f"with --check: the first {EARLY} steps only (a minute or two)"
    )
    args = parser.parse_args(argv)
    if args.early and not args.check:
        raise ConfigError("--early goes with --check; without it the whole is made")
    recipe = Continued() if args.mechanisms else Recipe()
    out = args.out or (MECHANISMS_DIR if args.mechanisms else MODEL_DIR)
    pin_arithmetic()
    if not args.check:
        manifest = make(recipe, out)
        print(f"{out}: model.safetensors {manifest['sha256']['model.safetensors']}")
        return 0
    stale = check(out, recipe=recipe, early=args.early)
    if stale:
        print(f"differs: {', '.join(stale)} (another processor family or library version may round differently)")
        return 1
    said = "its first steps are" if args.early else "every file is"
    print(f"{out}: {said} bit-for-bit what the recipe makes")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
