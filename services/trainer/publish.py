"""Pushing delta_S and proving that it arrived.

    trainer: log-probs of a probe sequence under its own weights ──┐
    trainer ── delta_S, probe ids ──> Redis ──> generator loads ── probe log-probs, checksum ──> mean |difference| <= bound

A rollout group is accepted only if its generator has proven the very push that the group claims to be sampled from. And
before a step is trained on, every living replica has proven a push no older than the step accepts, whether or not it
sampled for it. (Not so while several runs share the generators: each replica then holds the run it last served.)
Covers: wrong vector, wrong module order, a generator that skipped a push, stale prefix caches on the probe, merged
weights that differ. Does not cover: a generator that proves one set of weights and samples from another on purpose.

A resumed run pushes numbers again that its former process had pushed, and on a GPU the last bits differ. Proofs of such a
former push are noted when the number is pushed again; one that a generator was still loading then comes later, and our push
of that number may never be loaded, because generators take the newest. A group sampled from a former push is trained on if
that proof's probe log-probs are within the bound of ours (the ratio uses the group's own log-probs), and is stale otherwise.
So is a group of a number that only the former process has reached.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common import delta_store
from common.errors import DeliveryError
from common.heartbeat import alive
from common.lock import runs_in_training
from common.queue import Queue
from common.types import DeliveryProof, DeltaS, GradedGroup, RolloutGroup, checksum

REMEMBERED = 8
PROOF_S = 20.0  # within which a generator that finds Redis restarted has given its proofs again


@dataclass(frozen=True)
class Expected:
    """What a proof of one version must say."""

    checksum: str
    logprobs: list[float]


class Publisher:
    """Pushes versions of one run and checks every generator's proof. `expected` goes into the checkpoint."""

    def __init__(
        self,
        queue: Queue,
        run_id: str,
        modules: list[tuple[str, int]],
        probe_ids: list[int],
        bound: float,
        adapter: str = "antipasto",
    ):
        self.queue, self.run_id, self.modules, self.adapter = queue, run_id, modules, adapter
        self.probe_ids, self.bound = probe_ids, bound
        self.expected: dict[int, Expected] = {}
        self.proven: dict[tuple[str, int], str] = {}
        self.last: DeltaS | None = None
        self.last_gap: float | None = None
        self.last_bytes = 0
        self.last_seconds: float | None = None
        self._resumed = False
        self._former: dict[int, set[str]] = {}  # version -> checksums proven before this process pushed that number
        self._reached = -1  # newest version that Redis knew before this process's first push
        self._published_s: dict[int, float] = {}
        self._measured = -1

    def push(self, version: int, vector: bytes, probe_logprobs: list[float]) -> None:
        """Publish version `version` with `vector` (little-endian fp32) and remember what a generator must answer."""
        delta = DeltaS(
            run_id=self.run_id,
            version=version,
            modules=self.modules,
            adapter=self.adapter,
            vector=vector,
            checksum=checksum(vector),
            probe_ids=self.probe_ids,
        )
        if self.last is None:
            announced = delta_store.latest(self.queue.client, self.run_id)
            self._reached = -1 if announced is None else announced[0]
        self.expected[version] = Expected(delta.checksum, probe_logprobs)
        self.expected.pop(version - REMEMBERED, None)
        # a crash between push and checkpoint leaves proofs of this number for weights that were never saved; the resumed run
        # pushes the number again, with other bits on other hardware, and must tell the two apart
        before = delta_store.proofs(self.queue.client, self.run_id, version)
        self._former[version] = {proof.checksum for proof in before} - {delta.checksum}
        self._former.pop(version - REMEMBERED, None)
        self.last = delta
        started = time.perf_counter()
        self.last_bytes = delta_store.publish(self.queue.client, delta)
        self._published_s = {v: self._published_s.get(v, 0.0) for v in self.expected} | {
            version: time.perf_counter() - started
        }

    def push_again(self) -> None:
        """After an outage of Redis, which may have forgotten the last push: publish it once more."""
        if self.last is not None:
            delta_store.publish(self.queue.client, self.last)

    def remembered(self) -> dict[str, list[Any]]:
        """What a checkpoint keeps, JSON-able."""
        return {str(version): [e.checksum, e.logprobs] for version, e in self.expected.items()}

    def restore(self, remembered: dict[str, list[Any]]) -> None:
        """After a restart: groups sampled from versions pushed before it can still be checked."""
        self._resumed = True
        self.expected = {int(version): Expected(digest, logprobs) for version, (digest, logprobs) in remembered.items()}

    def require_proof(self, graded: GradedGroup, patience_s: float = PROOF_S) -> bool:
        """DeliveryError unless this group's generator has proven the version it sampled from.

        It did so before it sampled; but Redis may have forgotten it, so it has `patience_s` seconds to say it again.
        False: the group comes from a former push of this number whose weights are not ours; it is stale.
        """
        group = graded.group
        expected = self.expected.get(group.policy_version)
        # the former process got further than its last checkpoint: its number, but not our weights
        if expected is None and self._resumed and group.policy_version > max(self.expected, default=0):
            return False
        if expected is None:
            raise DeliveryError(
                f"{group.group_id} was sampled from policy version {group.policy_version}, which this trainer never pushed; "
                "use a new run_id, or clear Redis of the old run"
            )
        if self.proven.get((group.replica, group.policy_version)) == expected.checksum:
            return True
        proof = self._answer(group, expected, patience_s)
        if self._may_be_former(group.policy_version, proof, expected):
            return proof is not None and probe_gap(expected.logprobs, proof.probe_logprobs) <= self.bound
        if proof is None:
            raise DeliveryError(
                f"generator {group.replica} sampled {group.group_id} from policy version {group.policy_version} without "
                "proving that it loaded it; restart the generator"
            )
        self._check(proof, expected)
        self.proven[group.replica, group.policy_version] = proof.checksum
        return True

    def _answer(self, group: RolloutGroup, expected: Expected, patience_s: float) -> DeliveryProof | None:
        """What the group's generator answered to its version: ours or a usable former one at once, else what stands there
        after patience_s seconds, for a load of a former push may be under way and ours come after it."""
        version, deadline = group.policy_version, time.monotonic() + patience_s
        while True:
            proof = delta_store.proof(self.queue.client, self.run_id, version, group.replica)
            if proof is not None:
                known = proof.checksum == expected.checksum or proof.checksum in self._former.get(version, ())
                alike = probe_gap(expected.logprobs, proof.probe_logprobs) <= self.bound
                if known or (version <= self._reached and alike):
                    return proof
            if time.monotonic() > deadline:
                return proof
            time.sleep(0.1)

    def _may_be_former(self, version: int, proof: DeliveryProof | None, expected: Expected) -> bool:
        """Whether a group of that version may be of a push by a process before this one."""
        if proof is None:  # or Redis and its generator have both forgotten it
            return version <= self._reached
        if proof.checksum == expected.checksum:
            return False
        return version <= self._reached or proof.checksum in self._former.get(version, ())

    def require_all(self, oldest: int, patience_s: float, check: Callable[[], None]) -> None:
        """Wait until every living generator has proven version `oldest` or a newer one.

        DeliveryError naming those that have not after `patience_s` seconds; a replica that dies meanwhile is not waited
        for. `check()` is called while waiting and may raise.
        """
        client, deadline = self.queue.client, time.monotonic() + patience_s
        while late := [name for name in alive(client, "ref_server") if not self._holds(name, oldest)]:
            if set(runs_in_training(client)) - {self.run_id}:
                return
            check()
            if time.monotonic() > deadline:
                raise DeliveryError(
                    f"{len(late)} living generators have not proven policy version {oldest} or newer within {patience_s:.0f} "
                    f"s: {', '.join(late)}; restart them"
                )
            time.sleep(0.1)

    def _holds(self, replica: str, oldest: int) -> bool:
        for version in sorted((v for v in self.expected if v >= oldest), reverse=True):
            expected = self.expected[version]
            if self.proven.get((replica, version)) == expected.checksum:
                return True
            proof = delta_store.proof(self.queue.client, self.run_id, version, replica)
            # Another checksum is the answer to an earlier push of this number, before a restart: the new one will come.
            if proof is not None and proof.checksum == expected.checksum:
                self._check(proof, expected)
                self.proven[replica, version] = proof.checksum
                return True
        return False

    def _check(self, proof: DeliveryProof, expected: Expected) -> None:
        who = f"generator {proof.replica}, policy version {proof.version}"
        if proof.checksum != expected.checksum:
            raise DeliveryError(
                f"{who}: it holds another delta_S than was pushed (checksums differ); restart the generator"
            )
        gap = probe_gap(expected.logprobs, proof.probe_logprobs)
        self._measure(proof, gap)
        if gap > self.bound:
            raise DeliveryError(
                f"{who}: probe log-probs differ from the trainer's by {gap:.4g} nats a token, the bound is {self.bound} "
                "(field probe_bound; 0.25 is enough in bf16); the generator does not run these weights"
            )

    def _measure(self, proof: DeliveryProof, gap: float) -> None:
        """`last_gap` and `last_seconds`: the worst replica of the version proven last; seconds to publish and to load."""
        seconds = self._published_s.get(proof.version, 0.0) + proof.load_s
        if proof.version == self._measured and self.last_gap is not None and self.last_seconds is not None:
            gap, seconds = max(gap, self.last_gap), max(seconds, self.last_seconds)
        self._measured, self.last_gap, self.last_seconds = proof.version, gap, seconds


def probe_gap(ours: list[float], theirs: list[float]) -> float:
    """Mean absolute difference in nats; infinite when the lengths differ or a value is not a number.

    The mean, not the largest: in bf16 single tokens differ by up to a nat between engines that run the same weights (a
    logit of 20 has a last bit of 0.125), while the mean stays below 0.1 and is 0.6 or more for other weights of the same
    training (SmolLM2-135M, docs/method.md).
    """
    gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=False)]
    if not gaps or len(ours) != len(theirs) or any(math.isnan(gap) for gap in gaps):
        return math.inf
    return statistics.fmean(gaps)
