"""The generation loop.

    requests ── consume ──> [load the newest delta_S, prove it] ──> sample ──> reference log-probs ── publish ──> rollouts
       one transaction                 proofs ──> trainer              vLLM    torch, delta_S = 0; each group when it is
                                                                               ready, while others are still sampled
                                                                 └── completions of groups not ready: offered to idle graders

The loop waits for requests; the trainer waits for rollouts and proofs. A request names the oldest policy version it
accepts, so the loop never samples with older weights than the trainer allows. A replica without requests loads and
proves each push all the same, so that the trainer can tell that all its replicas hold what it pushed. Killed in the
middle, it leaves its requests claimed; they are taken over and sampled again with the same seed.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from itertools import groupby

from common import digests, failpoints, keys
from common.errors import DeliveryError
from common.metrics import Metrics
from common.offers import Offers, early_token
from common.queue import Delivery, Queue
from common.settings import RefServerSettings
from common.types import Completion, DroppedGroup, GenerationRequest, RolloutGroup, Sibling
from rankspace.errors import RankspaceError
from services.ref_server.engine import Ended, Sample
from services.ref_server.reference import Reference
from services.ref_server.rendering import Renderer
from services.ref_server.served_policy import ServedPolicy

log = logging.getLogger("ref_server")


@dataclass
class _Handed:
    """One batch in work: when it began (perf_counter), and seconds of reference forwards in it so far."""

    started: float
    reference_s: float = 0.0


@dataclass
class _InWork:
    """One request, its prompt's token ids, and its completions so far with their texts, by their place in the group."""

    delivery: Delivery
    prompt: list[int]
    written: dict[int, tuple[Sample, str]] = field(default_factory=dict)
    handed_on: bool = False

    @property
    def request(self) -> GenerationRequest:
        request: GenerationRequest = self.delivery.message
        return request

    @property
    def complete(self) -> bool:
        return len(self.written) == self.request.sampling.n

    def in_order(self) -> list[tuple[Sample, str]]:
        return [one for _, one in sorted(self.written.items())]


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
        self.offers = Offers(queue.client)
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

    def _rendered(self, deliveries: list[Delivery]) -> list[_InWork]:
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
            ready.append(_InWork(delivery, prompt))
        return ready

    def _sample(self, ready: list[_InWork], handed: _Handed) -> list[list[Sample]]:
        """Sample and hand on; returns the groups made.

        A ValueError is vLLM's word for a request that it does not take: the others are then sampled one by one, and that
        one is dropped. Anything else may have harmed the engine, and ends the process.
        """
        if not ready:
            return []
        plans = [one.request.sampling for one in ready]
        try:
            self.policy.engine.generate(
                [one.prompt for one in ready], plans, ended=lambda found: self._ended(ready, found, handed)
            )
        except ValueError as error:
            left = [one for one in ready if not one.handed_on]
            if len(ready) == 1 and left:
                reason = (str(error).strip() or repr(error)).splitlines()[0]
                self._refuse(ready[0].delivery, f"the engine refuses it: {reason}")
            else:
                for one in left:
                    one.written.clear()
                    self._sample([one], handed)
        return [[sample for sample, _ in one.in_order()] for one in ready if one.handed_on]

    def _ended(self, ready: list[_InWork], found: list[Ended], handed: _Handed) -> None:
        """Completions that ended in one step of the engine: offered where siblings are still sampled, then what is complete
        is handed on. A reference forward so delays no offer."""
        offers = []
        for at, which, sample in found:
            one, text = ready[at], self.render.decode(sample.token_ids)
            if text not in (known for _, known in one.written.values()):
                offers.append((one, text))
            one.written[which] = (sample, text)
        self.offers.put([self._offer(one.request, text) for one, text in offers if not one.complete])
        for at in dict.fromkeys(at for at, _, _ in found):
            if ready[at].complete:
                self._hand_on(ready[at], handed)

    def _offer(self, request: GenerationRequest, text: str) -> Sibling:
        token = early_token(request.run_id, request.group_id, self.policy.version)
        return Sibling(token=token, problem=request.problem, text=text)

    def _refuse(self, delivery: Delivery, reason: str) -> None:
        log.error("dropped %s: %s", delivery.message.group_id, reason)
        self._drop(delivery.message, reason)
        self.queue.dead_letter(keys.GENERATORS, delivery, reason)

    def _hand_on(self, one: _InWork, handed: _Handed) -> None:
        """Score a finished group by the reference and publish it, while the rest of its batch is still sampled.

        A group is scored by itself, so its reference log-probs do not hang on which groups were asked for beside it.
        """
        request, before = one.request, time.perf_counter()
        ids = [sample.token_ids for sample, _ in one.in_order()]
        refs: list[list[float] | None] = [None] * len(ids)
        if request.want_reference:
            refs = list(self.reference.logprobs([one.prompt] * len(ids), ids, request.sampling.temperature))
        now = time.perf_counter()
        handed.reference_s += now - before
        made = self._group(one, refs, self.policy.version, now - handed.started)
        # sealed before it is sent: a group that overtook its seal would be refused
        digests.seal(self.queue.client, made)
        failpoints.reached("sampled")
        self.queue.publish(keys.ROLLOUTS, made)
        failpoints.reached("rollouts_put")
        self.queue.ack(keys.GENERATORS, one.delivery)
        one.handed_on = True

    def _group(self, one: _InWork, refs: list[list[float] | None], version: int, seconds: float) -> RolloutGroup:
        request = one.request
        completions = [
            Completion(
                token_ids=s.token_ids,
                logprobs=s.logprobs,
                ref_logprobs=ref,
                finish_reason=s.finish_reason,
                text=text,
            )
            for (s, text), ref in zip(one.in_order(), refs, strict=True)
        ]
        return RolloutGroup(
            run_id=request.run_id,
            group_id=request.group_id,
            purpose=request.purpose,
            step=request.step,
            problem=request.problem,
            policy_version=version,
            replica=self.settings.replica,
            prompt_ids=one.prompt,
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
