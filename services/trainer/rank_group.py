"""Several ranks as one: rank 0 runs the loop and talks to Redis, the others do the same through the collective calls.

    rank 0:   ranks.train_step(rows) ── (what, bytes) ──> every other rank: the same call on its own policy

What is sent between ranks is msgpack, like everything else.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack

from rankspace import RankspaceError
from services.trainer import checkpoint
from services.trainer.checkpoint import State
from services.trainer.collate import TrainingSample
from services.trainer.policy import Policy

if TYPE_CHECKING:
    from rankspace.pairs import TokenizedPair


class RankGroup:
    """Rank 0's handle on all ranks."""

    def __init__(self, policy: Policy):
        self.policy, self.ranks = policy, policy.ranks

    def train_step(self, rows: list[TrainingSample], step: int, intervene: bool) -> dict[str, Any] | None:
        self._tell("train_step", [[astuple(r) for r in rows], step, intervene])
        return self.policy.train_step(rows, step, intervene)

    def refresh(self, pairs: list[TokenizedPair]) -> None:
        """Extract v_hack anew from tokenised pairs."""
        self._tell("refresh", [list(astuple(p)) for p in pairs])
        self.policy.refresh(pairs)

    def nll_margin(self, pairs: list[TokenizedPair]) -> float:
        """NLL(clean) - NLL(hack) of tokenised pairs, mean, under the present weights. Every rank takes part: under ZeRO-3
        a forward is collective."""
        self._tell("nll_margin", [list(astuple(p)) for p in pairs])
        return self.policy.nll_margin(pairs)

    def score(self, prompts: list[list[int]], completions: list[list[int]], at_zero: bool) -> list[list[float]]:
        """Log-probs of given completions (Policy.score). Every rank takes part: under ZeRO-3 a forward is collective."""
        self._tell("score", [prompts, completions, at_zero])
        return self.policy.score(prompts, completions, at_zero)

    def snapshot(self, probe_ids: list[int]) -> tuple[bytes, list[float]]:
        """(delta_S bytes, probe log-probs) under the present weights."""
        self._tell("snapshot", probe_ids)
        return self.policy.vector(), self.policy.probe(probe_ids)

    def save(self, state: State, run_dir: Path, keep: int) -> None:
        self._tell("save", [asdict(state), str(run_dir), keep])
        checkpoint.save(self.policy, state, run_dir, keep)

    def load(self, run_dir: Path) -> State | None:
        self._tell("load", str(run_dir))
        return checkpoint.load(self.policy, run_dir)

    def shutdown(self) -> None:
        """The others return from `worker_loop`."""
        self._tell("shutdown", None)

    def _tell(self, what: str, args: Any) -> None:
        if self.ranks > 1:
            _broadcast(self.policy, msgpack.packb([what, args]))


def worker_loop(policy: Policy) -> None:
    """What every rank but 0 does until it is shut down."""
    while True:
        what, args = msgpack.unpackb(_broadcast(policy, None))
        if what == "shutdown":
            return
        if what == "train_step":
            with suppress(RankspaceError):  # every rank raises the same; rank 0 reports it and shuts us down
                policy.train_step([TrainingSample(*row) for row in args[0]], *args[1:])
        elif what in ("refresh", "nll_margin"):
            from rankspace.pairs import TokenizedPair

            getattr(policy, what)([TokenizedPair(*p) for p in args])
        elif what == "score":
            policy.score(*args)
        elif what == "snapshot":
            policy.vector(), policy.probe(args)
        elif what == "save":
            checkpoint.save(policy, State(**args[0]), Path(args[1]), args[2])
        elif what == "load":
            checkpoint.load(policy, Path(args))


def _broadcast(policy: Policy, data: bytes | None) -> bytes:
    import torch
    from torch import distributed

    # two broadcasts: the others must know how much to make room for
    size = torch.tensor([len(data or b"")], device=policy.device)
    distributed.broadcast(size, 0)
    buffer = (
        torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if data is not None
        else torch.empty(int(size), dtype=torch.uint8)
    )
    buffer = buffer.to(policy.device)
    distributed.broadcast(buffer, 0)
    return buffer.cpu().numpy().tobytes()
