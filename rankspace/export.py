"""A trained adapter as an ordinary Hugging Face checkpoint, or as delta_S with a card.

    <out>/            config, generation config, tokenizer files, safetensors shards, README.md, rankspace.json
    <out>/adapter/    delta_S.safetensors and its card; with `adapter_only` these two are <out> itself

    W = W0 + U · diag(delta_S) · Vh       in fp32, rounded once to the dtype of the base

Works through the model module by module, so beside the weights only one SVD is in memory. The fingerprint is compared
before anything is written, and the directory appears whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .adapter_io import CARD, FILE, SavedDelta, probe, require_base, require_bases, require_modules, write_delta
from .atomic_dir import new_directory, require_free
from .card import merged_card
from .errors import RankspaceError
from .fingerprint import Fingerprint
from .merge import merged_weight, split_flat
from .models import find_model, load_model, load_tokenizer, require_model
from .pissa import factors
from .svd_cache import Progress, svd

NOTE = "rankspace.json"
MARKS = (NOTE, FILE)  # what tells that a directory is an earlier export
TOKENIZER_FILES = (
    "tokenizer*.json", "tokenizer.model", "*.tiktoken", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "spiece.model", "chat_template.*", "LICENSE*", "NOTICE*",
)  # fmt: skip


def export_model(
    saved: SavedDelta,
    out: str | Path,
    model: str | None = None,
    adapter_only: bool = False,
    force: bool = False,
    svd_cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write `saved` as a merged checkpoint (or alone) into the new directory `out`; returns it. Needs transformers.

    Args:
        saved: from `read_delta` or `source.of_run`.
        model: directory or hub name of the base; None takes the one that `saved` names.
        force: replace an earlier export in `out`.

    Raises:
        RankspaceError: `out` is not free, the base is another one, its bases came out turned, the disk is full.
    """
    out, base = Path(out), model or saved.base_model
    require_free(out, force, MARKS)
    require_model(base)
    lm = load_model(base)
    require_modules(lm, saved)
    fingerprint, probes = fold(lm, saved, svd_cache_dir, progress)
    require_base(saved, fingerprint)
    require_bases(saved, probes)
    known = replace(saved, base_model=base, fingerprint=fingerprint, probes=probes)
    with new_directory(out, force, MARKS) as draft:
        if adapter_only:
            write_delta(known, draft)
        else:
            _write_merged(lm, known, draft)
    return out


@torch.no_grad()
def fold(
    model: nn.Module, saved: SavedDelta, svd_cache_dir: Path | None = None, progress: Progress | None = None
) -> tuple[str, list[list[float]]]:
    """Overwrite the adapted weights of a plain model by the merged ones; (fingerprint before, probes of the bases)."""
    fingerprint, probes = Fingerprint(saved.kind), []
    parts = split_flat(saved.flat, saved.modules)
    for done, ((name, _), delta) in enumerate(zip(saved.modules, parts, strict=True), start=1):
        weight = model.get_parameter(f"{name}.weight")
        basis = svd(weight, svd_cache_dir)
        # of the weight as it was: it is overwritten below
        fingerprint.add(name, weight.shape, basis.content)
        U, Vh = factors(basis, saved.kind)
        probes.append(probe(delta, U, Vh, weight.shape[0]))
        weight.copy_(merged_weight(weight, U, delta, Vh))
        if progress is not None:
            progress(done, len(saved.modules), name)
    return fingerprint.hexdigest(), probes


def _write_merged(lm: Any, saved: SavedDelta, draft: Path) -> None:
    lm.save_pretrained(draft)
    copy_tokenizer(saved.base_model, draft)
    (draft / "adapter").mkdir()
    write_delta(saved, draft / "adapter")
    (draft / CARD).write_text(merged_card(saved.facts(), str(lm.dtype).removeprefix("torch.")))
    (draft / NOTE).write_text(json.dumps(saved.facts(), indent=1) + "\n")


def copy_tokenizer(base: str, out: Path) -> None:
    """The base's tokenizer files, byte for byte when it is a directory, else as the hub's are saved again.

    Raises:
        RankspaceError: the base has none.
    """
    base = find_model(base)
    if not Path(base).is_dir():
        load_tokenizer(base).save_pretrained(out)
        return
    # copied, not loaded and saved: transformers writes a tokenizer in a form of its own
    found = {path for pattern in TOKENIZER_FILES for path in Path(base).glob(pattern) if path.is_file()}
    if not any(path.name.startswith(("tokenizer", "vocab", "spiece")) or path.suffix == ".tiktoken" for path in found):
        raise RankspaceError(f"{base} holds no tokenizer files: put them beside the weights of the base model")
    for path in found:
        shutil.copyfile(path, out / path.name)
