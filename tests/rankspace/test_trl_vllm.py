"""What TRL sends to vLLM with the adapter on: TRL's own code for walking, naming and loading, into a real vLLM engine."""

import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import rankspace
from rankspace import RankspaceError
from rankspace.merge import merged_weight

trl = pytest.importorskip("trl")
pytest.importorskip("vllm")
import transformers  # noqa: E402

from rankspace.sending import merged_parameters  # noqa: E402
from rankspace.trl import send_merged  # noqa: E402
from rankspace.trl_vllm import SENDING, require_same_policy  # noqa: E402

MODEL = "tasks/organism/model"


def model_with_adapter():
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    return model, rankspace.attach(model)


def trainer_of(model, llm=None, mode="colocate"):
    """TRL's VLLMGeneration without its constructor, which wants a GPU: what it walks, names and loads by is its own."""
    from trl.generation.vllm_generation import VLLMGeneration

    generation = object.__new__(VLLMGeneration)
    generation.model, generation.mode, generation.llm = model, mode, llm
    generation.enable_sleep_mode, generation._weight_metadata = False, None
    generation.accelerator = SimpleNamespace(is_main_process=True, device=torch.device("cpu"))
    generation._dist = SimpleNamespace(is_fsdp=False, gather_params=lambda _: nullcontext())
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    return SimpleNamespace(vllm_generation=generation, model=model, processing_class=tokenizer)


def moved(adapter, size=0.5):
    flat = torch.randn(adapter.get_flat().numel(), generator=torch.Generator().manual_seed(1)) * size
    adapter.set_flat(flat)


def test_the_walk_holds_merged_weights_and_no_delta():
    model, adapter = model_with_adapter()
    moved(adapter)
    base = dict(model.named_parameters())
    sent = dict(merged_parameters(iter((n, p.data) for n, p in base.items()), adapter))
    assert set(sent) == {name for name in base if not name.endswith("delta_S")}
    deltas = adapter.named_delta()
    for name, tensor in sent.items():
        module = name.removesuffix(".weight")
        if module in deltas:
            U, Vh = adapter.basis(module)
            assert torch.equal(tensor, merged_weight(base[name], U, deltas[module], Vh)) and not tensor.equal(
                base[name]
            )
        else:
            assert tensor.equal(base[name])


def test_a_renamed_weight_is_refused():
    model, adapter = model_with_adapter()
    renamed = ((name.replace("q_proj", "query"), p.data) for name, p in model.named_parameters())
    with pytest.raises(RankspaceError, match="adapted weights were not sent"):
        list(merged_parameters(renamed, adapter))


def test_a_trainer_without_vllm_is_refused():
    _, adapter = model_with_adapter()
    with pytest.raises(RankspaceError, match="use_vllm=True"):
        send_merged(SimpleNamespace(), adapter)
    assert adapter not in SENDING


def test_the_server_is_told_of_what_it_will_get():
    """Server mode: TRL sends a list of names and shapes first; it must be that of the walk without delta_S."""
    model, adapter = model_with_adapter()
    trainer = trainer_of(model, mode="server")
    trainer.vllm_generation._weight_metadata = ["stale"]
    sent = {}

    def update(metadata, walk):
        sent["names"], sent["walk"] = [name for name, *_ in metadata], dict(walk)

    trainer.vllm_generation.vllm_client = SimpleNamespace(update_named_params=update, reset_prefix_cache=lambda: None)
    send_merged(trainer, adapter)
    moved(adapter)
    trainer.vllm_generation.sync_weights()
    assert sent["names"] == list(sent["walk"]) and not any("delta_S" in name for name in sent["names"])
    before = {name: tensor.clone() for name, tensor in sent["walk"].items()}
    moved(adapter, 0.1)
    trainer.vllm_generation.sync_weights()
    adapted = f"{adapter.modules[0][0]}.weight"
    assert not sent["walk"][adapted].equal(before[adapted]), "each sync walks anew"


class OnCPU:
    """A real engine behind the calls that TRL makes. On a CPU vLLM packs its weights, so what TRL loads one by one goes in
    through vLLM's own `reload_weights`, all at once, when TRL is done and drops the prefix cache."""

    def __init__(self):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        from vllm import LLM

        self.llm = LLM(
            model=os.path.abspath(MODEL), dtype="float32", max_model_len=256, enforce_eager=True, max_logprobs=1,
            max_num_batched_tokens=4096, enable_prefix_caching=False,
        )  # fmt: skip
        self.worker, self.got = self.llm.llm_engine.model_executor.driver_worker, []
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self.got.extend))
        self.llm_engine = SimpleNamespace(
            model_executor=SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        )
        self.generate, self.get_default_sampling_params = self.llm.generate, self.llm.get_default_sampling_params

    def reset_prefix_cache(self):
        self.worker.reload_weights(weights_iterator=iter(list(self.got)), is_checkpoint_format=True)
        self.got.clear()
        self.llm.reset_prefix_cache()


@pytest.fixture(scope="module")
def llm():
    return OnCPU()


@pytest.mark.slow
def test_vllm_runs_the_policy_that_trains(llm):
    model, adapter = model_with_adapter()
    trainer = trainer_of(model, llm)
    generation = trainer.vllm_generation
    ids = trainer.processing_class("class Solution:\n    def f(self, nums):\n        return 7")["input_ids"]
    moved(adapter)
    with pytest.raises(RankspaceError, match="does not run the policy that trains"):
        require_same_policy(llm, model, ids)
    send_merged(trainer, adapter, probe=ids)
    send_merged(trainer, adapter, probe=ids)  # twice is once
    generation.sync_weights()
    assert require_same_policy(llm, model, ids) < 1e-3
    moved(adapter, 0.2)
    assert require_same_policy(llm, model, ids, bound=9.0) > 0.01, "a newer delta_S, not sent yet"
    generation.sync_weights()
    assert require_same_policy(llm, model, ids) < 1e-3
