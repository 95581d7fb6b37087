"""Which version of which run's policy the engine holds, and the proof of it.

trainer ── delta_S, then its announcement ──> Redis ── newest ──> engine ── proof: checksum and probe log-probs ──> trainer
"""

from __future__ import annotations

import threading
import time

from common import delta_store
from common.errors import DeliveryError
from common.lock import runs_in_training
from common.metrics import Metrics
from common.queue import Queue
from common.settings import RefServerSettings
from common.types import DeliveryProof
from services.ref_server.engine import Engine


class ServedPolicy:
    """The engine together with which run's which version it holds."""

    def __init__(self, engine: Engine, queue: Queue, settings: RefServerSettings, metrics: Metrics):
        self.engine, self.queue, self.settings, self.metrics = engine, queue, settings, metrics
        self.lock = threading.Lock()
        self.paused = threading.Event()
        self.run_id: str | None = None
        self.version = -1
        self.turned_at = time.monotonic()
        self._push: tuple[str, int, str] | None = None
        self._proofs: dict[tuple[str, int], DeliveryProof] = {}
        self._outages = queue.outages

    def ensure(self, run_id: str, min_version: int, patience_s: float = 30.0) -> None:
        """Hold the newest announced version of `run_id`, which must be at least `min_version`; prove it if it changed.

        Raises DeliveryError when that version does not appear within `patience_s` seconds.
        """
        self._notice_outage()
        deadline = time.monotonic() + patience_s
        newest = delta_store.latest(self.queue.client, run_id)
        while newest is None or newest[0] < min_version:
            if time.monotonic() > deadline:
                raise DeliveryError(f"run {run_id}: policy version {min_version} was never pushed (newest is {newest})")
            time.sleep(0.002)
            newest = delta_store.latest(self.queue.client, run_id)
        # by checksum too: a resumed trainer pushes a number again, with other bits
        if self._push != (run_id, *newest):
            self._load(run_id, newest[0])

    def follow(self) -> None:
        """Without requests: hold and prove the newest push of the run in training, if there is just one."""
        self._notice_outage()
        client = self.queue.client
        runs = runs_in_training(client)
        newest = delta_store.latest(client, runs[0]) if len(runs) == 1 else None
        if newest is not None and self._push != (runs[0], *newest):
            self._load(runs[0], newest[0])

    def _notice_outage(self) -> None:
        """Redis was away and may have forgotten our proofs: give them again. Groups sampled before are on their way."""
        while self._outages != self.queue.outages:
            self._outages = self.queue.outages
            for proof in self._proofs.values():
                delta_store.prove(self.queue.client, proof)

    def _load(self, run_id: str, version: int) -> None:
        delta = delta_store.load(self.queue.client, run_id, version)
        loaded = self.engine.load(delta)
        if loaded.modules != len(delta.modules):
            raise DeliveryError(f"vLLM took {loaded.modules} weights of {len(delta.modules)} in the delta_S")
        self.run_id, self.version, self._push = run_id, version, (run_id, version, delta.checksum)
        replica = self.settings.replica
        proof = DeliveryProof(
            run_id=run_id,
            version=version,
            replica=replica,
            checksum=loaded.checksum,
            probe_logprobs=self.engine.probe(delta.probe_ids),
            load_s=loaded.seconds,
        )
        self._prove(proof)
        self.metrics["rs_delta_load_seconds"].labels(replica).set(loaded.seconds)
        self.metrics["rs_generator_policy_version"].clear()  # only of the run now served
        self.metrics["rs_generator_policy_version"].labels(replica, run_id).set(version)

    def _prove(self, proof: DeliveryProof) -> None:
        self._proofs[proof.run_id, proof.version] = proof
        for oldest in list(self._proofs)[: -delta_store.PROOFS_KEPT]:
            del self._proofs[oldest]
        delta_store.prove(self.queue.client, proof)
