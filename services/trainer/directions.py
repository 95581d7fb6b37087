"""What an arm acts along, from its settings: directions read and checked, and the contrastive loss on the pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.model_names import local
from common.settings import TrainerSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rankspace.adapter import Adapter
    from rankspace.direction import Direction
    from rankspace.dpo import PairContrast


def directions(s: TrainerSettings, adapter: Adapter) -> tuple[Direction | None, Direction | None]:
    """(what the arm acts along, the v_hack that positions are measured against); None where there is none."""
    from rankspace import RankspaceError
    from rankspace.direction import load_direction, orthogonalised, random_direction, require_validated

    if s.direction == "none":
        return None, None
    reference = None if s.v_ref is None else load_direction(s.v_ref, adapter.modules, adapter.fingerprint)
    if reference is not None and reference.kind != "v_hack":
        raise RankspaceError(f"field v_ref: {s.v_ref} is of kind {reference.kind!r}, give a v_hack file")
    if s.direction == "random":
        direction = random_direction(adapter.modules, s.seed)
    else:
        assert s.v_hack is not None  # TrainerSettings has checked it
        direction = load_direction(s.v_hack, adapter.modules, adapter.fingerprint)
        # preflight has read the same from the file's header; this is the direction as it was loaded
        require_validated(direction, s.gate)
    if s.orthogonal:
        assert reference is not None  # TrainerSettings has checked it
        direction = orthogonalised(direction, reference)
    # only a v_hack: against a control, "towards the hack" would mean nothing
    if reference is None and direction.kind == "v_hack":
        reference = direction
    return direction, reference


def contrast(s: TrainerSettings, model: PreTrainedModel, adapter: Adapter) -> PairContrast | None:
    """The contrastive loss on the training pairs, with its reference log-probs taken now, at delta_S = 0."""
    if s.dpo_beta == 0:
        return None
    from transformers import AutoTokenizer

    from rankspace.chat import Chat
    from rankspace.compile import eagerly
    from rankspace.dpo import PairContrast
    from rankspace.pairs import load_pairs, tokenize_pair

    assert s.pairs is not None  # TrainerSettings has checked it
    tokenizer = AutoTokenizer.from_pretrained(local(s.model))
    chat = Chat(s.chat_template_kwargs, s.chat_date)
    pairs = [tokenize_pair(tokenizer, pair, chat) for pair in load_pairs(s.pairs, "train")]
    with eagerly():
        return PairContrast(model, adapter, pairs, s.dpo_gamma, s.dpo_pairs, s.seed)
