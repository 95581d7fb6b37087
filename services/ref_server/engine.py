"""The only file that imports vLLM: sampling, probe log-probs and loading of a delta_S.

The engine runs inside this process (no EngineCore child that could outlive a kill). Weights are changed in place by
`worker_extension.DeltaWorker`, once per policy version, and the prefix cache is dropped with them: vLLM never does
that by itself, and a cache filled under old weights silently falsifies log-probs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from common.model_names import local, weight_files
from common.settings import RefServerSettings
from common.types import DeltaS, SamplingPlan

if TYPE_CHECKING:
    from vllm import CompletionOutput, PromptType, SamplingParams
    from vllm.logprobs import Logprob


@dataclass(frozen=True)
class Sample:
    """One sampled continuation: ids include the end-of-sequence token; logprobs are after temperature."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str


Ended = tuple[int, int, Sample]  # which prompt, which of its continuations, and that one


@dataclass(frozen=True)
class Loaded:
    """What the vLLM workers report after loading: checksum of the vector they hold, seconds, modules changed."""

    checksum: str
    seconds: float
    modules: int


def model_path(model: str) -> str:
    """A local model folder in the form that vLLM accepts (it needs ./ in front of a relative path), all its files there."""
    folder = local(model)
    weight_files(folder)
    return str(folder.resolve())


class Engine:
    """vLLM with one loaded policy. Not thread-safe: callers hold one lock around it."""

    def __init__(self, settings: RefServerSettings, eos_ids: list[int]):
        _environment()
        from vllm import LLM

        on_cpu = _on_cpu()
        # vLLM's CPU sampler cannot rewind a seeded generator after a partial prefill, so on CPU the token budget is so
        # large that no prompt is ever cut. (Switching chunked prefill off would do too, but vLLM warns against it.)
        cpu_only = {
            "max_num_batched_tokens": settings.max_num_seqs * settings.max_model_len,
            "enforce_eager": True,
        }
        self.eos_ids = eos_ids
        self.llm = LLM(
            model=model_path(settings.model),
            # token ids end to end: the prompt is rendered by us, and nothing is tokenised twice
            skip_tokenizer_init=True,
            dtype=settings.dtype,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            tensor_parallel_size=settings.tensor_parallel_size,
            worker_extension_cls="services.ref_server.worker_extension.DeltaWorker",
            # after temperature: the law that the tokens were drawn from, which the importance ratio needs
            logprobs_mode="processed_logprobs",
            disable_log_stats=True,
            # the engine's own; each request has a seed, which makes a run repeatable token for token
            seed=0,
            **_text_only(settings.model),
            **(cpu_only if on_cpu else _gpu_only(settings)),
        )
        where = (model_path(settings.model), str(settings.svd_cache), settings.bases_on)
        self.llm.collective_rpc("delta_prepare", args=where)

    def generate(
        self,
        prompts: list[list[int]],
        plans: list[SamplingPlan],
        between: Callable[[], None] | None = None,
        ended: Callable[[list[Ended]], None] | None = None,
    ) -> list[list[Sample]]:
        """`plans[i].n` continuations of `prompts[i]`, in order. Same weights, plan and seed: same tokens.

        `between` is called after each step of the engine, while the requests rest: the moment for a
        `load(delta, keep_running=True)`. Tokens sampled before and after it then come from different versions, each with
        the log-prob it was sampled with.

        `ended` is called after each step in which continuations were completed, with all of them, while others are still
        sampled: each continuation once. What either of the two raises ends the sampling and is raised.
        """
        inputs: list[PromptType] = [{"prompt_token_ids": ids} for ids in prompts]
        params = [_sampling(plan, self.eos_ids) for plan in plans]
        if between is None and ended is None:
            outputs = self.llm.generate(inputs, params, use_tqdm=False)
            return [[_sample(one) for one in output.outputs] for output in outputs]
        return self._step_by_step(inputs, params, between, ended)

    def _step_by_step(
        self,
        inputs: list[PromptType],
        params: list[SamplingParams],
        between: Callable[[], None] | None,
        ended: Callable[[list[Ended]], None] | None,
    ) -> list[list[Sample]]:
        """Each continuation is a request of its own: vLLM tells of a request with n > 1 only when all n are complete."""
        from vllm import RequestOutput

        engine, samples = self.llm.llm_engine, dict[tuple[int, int], Sample]()
        places = [(i, j) for i, plan in enumerate(params) for j in range(plan.n)]
        try:
            for number, (i, j) in enumerate(places):
                engine.add_request(str(number), inputs[i], _continuation(params[i], j))
            while engine.has_unfinished_requests():
                found: list[Ended] = []
                for out in engine.step():
                    if out.finished:
                        assert isinstance(out, RequestOutput), "no model here pools"
                        place = places[int(out.request_id)]
                        samples[place] = _sample(out.outputs[0])
                        found.append((*place, samples[place]))
                if found and ended is not None:
                    ended(found)
                if between is not None:
                    between()
        finally:  # requests left behind by an error would keep every later delta_S from being loaded
            left = [str(number) for number, place in enumerate(places) if place not in samples]
            if left:
                engine.abort_request(left)
        return [[samples[i, j] for j in range(plan.n)] for i, plan in enumerate(params)]

    def probe(self, ids: list[int]) -> list[float]:
        """log p(ids[i+1] | ids[:i+1]) under the loaded weights; len(ids) - 1 values."""
        from vllm import SamplingParams

        # one token, thrown away: vLLM gives log-probs of a prompt only along with a completion
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        prompt: PromptType = {"prompt_token_ids": ids}
        output = self.llm.generate([prompt], params, use_tqdm=False)[0]
        assert isinstance(output.prompt_logprobs, list)  # it was asked for
        return _of_tokens(output.prompt_logprobs[1:], ids[1:])

    def load(self, delta: DeltaS, keep_running: bool = False) -> Loaded:
        """Put W0 + U diag(delta_S) Vh in place on every worker and forget everything cached under the old weights.

        keep_running: requests in work go on afterwards under the new weights (what they have so far is prefilled anew).
        Without it there must be none, for their cache would stay behind: ConfigError.
        """
        if not keep_running and self.llm.llm_engine.has_unfinished_requests():
            raise ConfigError("a delta_S must not be loaded while requests are in work, unless they are to be kept")
        answers = self.llm.collective_rpc(
            "delta_load", args=(delta.vector, [list(m) for m in delta.modules], delta.adapter)
        )
        self.llm.reset_prefix_cache(reset_running_requests=True)  # raises when it cannot
        sums = {answer["checksum"] for answer in answers}
        if len(sums) != 1:
            raise ConfigError(
                "vLLM workers of one generator disagree about the delta_S they loaded; restart the generator"
            )
        return Loaded(sums.pop(), max(a["seconds"] for a in answers), min(a["modules"] for a in answers))


def _text_only(model: str) -> dict[str, Any]:
    """Of a model with a vision tower the language model alone; without this vLLM asks for an image processor."""
    config = json.loads((local(model) / "config.json").read_text(encoding="utf-8"))
    return {"language_model_only": True} if "vision_config" in config else {}


def _gpu_only(settings: RefServerSettings) -> dict[str, Any]:
    """With a stated cache size vLLM need not infer one from free memory, which other processes on the card change."""
    cache = {} if settings.kv_cache_gib is None else {"kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30)}
    return cache | {"enforce_eager": settings.enforce_eager}


def _sampling(plan: SamplingPlan, eos_ids: list[int]) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=plan.n,
        temperature=plan.temperature,
        max_tokens=plan.max_tokens,
        seed=plan.seed,
        top_p=1.0,
        top_k=-1,
        logprobs=0,
        stop_token_ids=eos_ids,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _continuation(params: SamplingParams, index: int) -> SamplingParams:
    """One of the n: as vLLM itself splits a request (ParentRequest), so that its tokens are the same bit for bit."""
    one = copy(params)
    one.n = 1
    one.seed = None if params.seed is None else params.seed + index
    return one


def _of_tokens(rows: Sequence[dict[int, Logprob] | None], ids: list[int]) -> list[float]:
    """The log-prob of each token, by its id: the first entry of a position's dict may be another token's."""
    return [float(row[token].logprob) for row, token in zip(rows, ids, strict=True) if row is not None]


def _sample(output: CompletionOutput) -> Sample:
    ids = list(output.token_ids)
    assert isinstance(output.logprobs, list)  # they were asked for
    return Sample(ids, _of_tokens(output.logprobs, ids), "length" if output.finish_reason == "length" else "stop")


def _environment() -> None:
    """vLLM is configured through the environment; what the user has set stays."""
    for name, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_HOST_IP": "127.0.0.1",
    }.items():
        os.environ.setdefault(name, value)


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cpu()
