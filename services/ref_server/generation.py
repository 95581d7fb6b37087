"""The generation loop.

    requests ── consume ──> [load the newest delta_S, prove it] ──> sample ──> reference log-probs ── publish ──> rollouts
       one transaction                 proofs ──> trainer              vLLM    torch, delta_S = 0; each group when it is
                                                                               ready, while others are still sampled

The loop waits for requests; the trainer waits for rollouts and proofs. A request names the oldest policy version it
accepts, so the loop never samples with older weights than the trainer allows. A replica without requests loads and
proves each push all the same, so that the trainer can tell that all its replicas hold what it pushed. Killed in the
middle, it leaves its requests claimed; they are taken over and sampled again with the same seed.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from itertools import groupby

from common import delta_store, digests, failpoints, keys
from common.errors import DeliveryError
from common.lock import runs_in_training
from common.metrics import Metrics
from common.model_names import local
from common.queue import Delivery, Queue
from common.settings import RefServerSettings
from common.types import Completion, DeliveryProof, DroppedGroup, GenerationRequest, RolloutGroup
from rankspace.errors import RankspaceError
from services.ref_server.engine import Engine, Sample
from services.ref_server.reference import Reference

log = logging.getLogger("ref_server")


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


@dataclass
class _Handed:
    """One batch in work: when it began (perf_counter), and seconds of reference forwards in it so far."""

    started: float
    reference_s: float = 0.0


class Generator:
    """Takes requests, puts rollout groups."""

    def __init__(
        self,
        policy: ServedPolicy,
        reference: Reference,
        render: Renderer,
        queue: Queue,
        settings: RefServerSettings,
        metrics: Metrics,
    ):
        self.policy, self.reference, self.render = policy, reference, render
        self.queue, self.settings, self.metrics = queue, settings, metrics
        self._count([])  # a counter that appears with its first event hides that event

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set; the batch in work is finished first."""
        while not stop.is_set():
            if self.policy.paused.is_set():
                self._follow()
                stop.wait(0.5)
            else:
                self.turn()
            self.policy.turned_at = time.monotonic()

    def turn(self, wait_s: float = 0.5) -> int:
        """One batch of requests; returns how many groups were made.

        A request that was delivered before is taken alone: if it kills the engine, its neighbours are not counted down.
        """
        deliveries = self.queue.consume(
            keys.REQUESTS,
            keys.GENERATORS,
            (GenerationRequest,),
            self.settings.max_batch_groups,
            wait_s,
            self._drop,
            again=1,
        )
        if not deliveries:
            self._follow()
        with self.queue.renew_lease(keys.GENERATORS, deliveries):
            for run_id, part in groupby(
                sorted(deliveries, key=lambda d: d.message.run_id), key=lambda d: d.message.run_id
            ):
                self._batch(run_id, list(part))
        return len(deliveries)

    def _follow(self) -> None:
        with self.policy.lock:
            try:
                self.policy.follow()
            except DeliveryError as error:  # replaced by a newer push meanwhile; the next turn loads that one
                log.warning("%s", error)

    def _batch(self, run_id: str, deliveries: list[Delivery]) -> None:
        requests = [d.message for d in deliveries]
        started = time.perf_counter()
        with self.policy.lock:
            try:
                self.policy.ensure(run_id, max(r.min_version for r in requests))
            except DeliveryError as error:
                for delivery in deliveries:
                    self._refuse(delivery, str(error))
                return
            handed = _Handed(started)
            groups = self._sample(self._rendered(deliveries), handed)
        replica = self.settings.replica
        sampling_s = time.perf_counter() - started - handed.reference_s
        self.metrics["rs_generate_seconds"].labels(replica).observe(sampling_s)
        self.metrics["rs_reference_seconds"].labels(replica).observe(handed.reference_s)
        self._count(groups)

    def _rendered(self, deliveries: list[Delivery]) -> list[tuple[Delivery, list[int]]]:
        """Each request with its prompt's token ids; one that cannot be posed is dropped, with its own reason."""
        ready = []
        for delivery in deliveries:
            plan, room = delivery.message.sampling, self.settings.max_model_len
            try:
                prompt = self.render(delivery.message.problem.prompt)
            except RankspaceError as error:
                self._refuse(delivery, str(error))
                continue
            if len(prompt) + plan.max_tokens > room:  # vLLM would cut its completions short without a word
                self._refuse(
                    delivery,
                    f"too long: a prompt of {len(prompt)} tokens and max_tokens {plan.max_tokens} do not fit into the "
                    f"generator's max_model_len {room}",
                )
                continue
            ready.append((delivery, prompt))
        return ready

    def _sample(self, ready: list[tuple[Delivery, list[int]]], handed: _Handed) -> list[list[Sample]]:
        """Sample and hand on; returns the groups made.

        A ValueError is vLLM's word for a request that it does not take: the others are then sampled one by one, and that
        one is dropped. Anything else may have harmed the engine, and ends the process.
        """
        groups: dict[int, list[Sample]] = {}

        def finished(at: int, samples: list[Sample]) -> None:
            self._hand_on(*ready[at], samples, handed)
            groups[at] = samples

        if not ready:
            return []
        plans = [delivery.message.sampling for delivery, _ in ready]
        try:
            self.policy.engine.generate([prompt for _, prompt in ready], plans, finished=finished)
        except ValueError as error:
            left = [one for at, one in enumerate(ready) if at not in groups]
            if len(ready) == 1 and left:
                self._refuse(
                    ready[0][0], f"the engine refuses it: {(str(error).strip() or repr(error)).splitlines()[0]}"
                )
            else:
                return [*groups.values(), *(group for one in left for group in self._sample([one], handed))]
        return list(groups.values())

    def _refuse(self, delivery: Delivery, reason: str) -> None:
        log.error("dropped %s: %s", delivery.message.group_id, reason)
        self._drop(delivery.message, reason)
        self.queue.dead_letter(keys.GENERATORS, delivery, reason)

    def _hand_on(self, delivery: Delivery, prompt: list[int], samples: list[Sample], handed: _Handed) -> None:
        """Score a finished group by the reference and publish it, while the rest of its batch is still sampled.

        A group is scored by itself, so its reference log-probs do not hang on which groups were asked for beside it.
        """
        request, before = delivery.message, time.perf_counter()
        refs: list[list[float] | None] = [None] * len(samples)
        if request.want_reference:
            ids = [s.token_ids for s in samples]
            refs = list(self.reference.logprobs([prompt] * len(samples), ids, request.sampling.temperature))
        now = time.perf_counter()
        handed.reference_s += now - before
        made = self._group(request, prompt, samples, refs, self.policy.version, now - handed.started)
        digests.seal(self.queue.client, made)
        failpoints.reached("sampled")
        self.queue.publish(keys.ROLLOUTS, made)
        failpoints.reached("rollouts_put")
        self.queue.ack(keys.GENERATORS, delivery)

    def _group(
        self,
        request: GenerationRequest,
        prompt: list[int],
        group: list[Sample],
        refs: list[list[float] | None],
        version: int,
        seconds: float,
    ) -> RolloutGroup:
        completions = [
            Completion(
                token_ids=s.token_ids,
                logprobs=s.logprobs,
                ref_logprobs=ref,
                finish_reason=s.finish_reason,
                text=self.render.decode(s.token_ids),
            )
            for s, ref in zip(group, refs, strict=True)
        ]
        return RolloutGroup(
            run_id=request.run_id,
            group_id=request.group_id,
            purpose=request.purpose,
            step=request.step,
            problem=request.problem,
            policy_version=version,
            replica=self.settings.replica,
            prompt_ids=prompt,
            completions=completions,
            generate_s=seconds,
        )

    def _count(self, samples: list[list[Sample]]) -> None:
        replica = self.settings.replica
        self.metrics["rs_generated_groups_total"].labels(replica).inc(len(samples))
        self.metrics["rs_generated_tokens_total"].labels(replica).inc(sum(len(s.token_ids) for g in samples for s in g))

    def _drop(self, request: GenerationRequest, reason: str) -> None:
        """Tell the trainer not to wait for a group that will not come."""
        notice = DroppedGroup(run_id=request.run_id, group_id=request.group_id, stage="generate", reason=reason)
        self.queue.publish(keys.graded(request.run_id), notice)


class Renderer:
    """Chat messages -> token ids, and ids -> text, with the model's own tokenizer and template."""

    def __init__(self, settings: RefServerSettings):
        from transformers import AutoTokenizer

        from rankspace.chat import Chat

        self.folder = local(settings.model)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.chat = Chat(settings.chat_template_kwargs, settings.chat_date)

    def __call__(self, messages: list[dict[str, str]]) -> list[int]:
        """RankspaceError when the template refuses them."""
        return self.chat.ids(self.tokenizer, messages)

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def eos_ids(self) -> list[int]:
        """Every id that ends a completion: the tokenizer's and those of generation_config.json."""
        from transformers import GenerationConfig

        ids = {self.tokenizer.eos_token_id}
        try:
            listed = GenerationConfig.from_pretrained(self.folder).eos_token_id
        except OSError:  # the file is optional in a model folder
            listed = None
        ids.update(listed if isinstance(listed, list) else [listed])
        return sorted(i for i in ids if i is not None)
