"""`vllm serve` on an exported checkpoint: the same greedy tokens as transformers on the same files. Slow: a real server."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

import rankspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
ORGANISM = "tasks/organism/model"
PROMPTS = ("def f(x):", "Given a list nums, keep the numbers", "class Solution:\n    def peak(self, nums):")
START_LIMIT_S = 1200


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """The organism with a delta_S that changes what it says."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("export")
    adapter = rankspace.attach(AutoModelForCausalLM.from_pretrained(ORGANISM, dtype="auto"))
    noise = torch.randn(len(adapter.get_flat()), generator=torch.Generator().manual_seed(0))
    adapter.set_flat(0.05 * noise)
    file = rankspace.save_adapter(adapter, folder / "adapter", ORGANISM)
    return rankspace.export_model(rankspace.read_delta(file), folder / "merged")


def environment(folder: Path) -> dict[str, str]:
    """As services/ref_server/engine.py sets it. The CPU build is registered under another name than its `vllm` command
    asks for; a metadata file beside it is all that it lacks."""
    extra = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        version = importlib.metadata.version("vllm-cpu") + "+cpu"
        info = folder / f"vllm-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
        extra["PYTHONPATH"] = str(folder)
    return os.environ | extra


@pytest.fixture(scope="module")
def server(merged, tmp_path_factory):
    from common.ports import free_port

    pytest.importorskip("vllm")
    folder, port = tmp_path_factory.mktemp("serve"), free_port()
    command = [Path(sys.executable).with_name("vllm"), "serve", merged, "--host", "127.0.0.1", "--port", port]
    command += ["--served-model-name", "merged", "--max-model-len", 256, "--max-num-seqs", 4, "--enforce-eager"]
    command += [
        "--dtype",
        "float32",
    ]  # vLLM would round an fp32 checkpoint to 16 bits, and near-ties would fall otherwise
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            list(map(str, command)), env=environment(folder / "names"), stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while not healthy(url):
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(1)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def complete(url: str, prompt: str) -> tuple[list[int], list[int]]:
    """(token ids of the prompt, of the greedy completion) over the OpenAI API."""
    body = {"model": "merged", "prompt": prompt, "max_tokens": 24, "temperature": 0, "return_token_ids": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        (choice,) = json.load(answer)["choices"]
    return choice["prompt_token_ids"], choice["token_ids"]


def greedy(folder, prompt: str) -> tuple[list[int], list[int]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(prompt)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=24)
    return ids, out[0, len(ids) :].tolist()


def test_vllm_serves_the_merged_checkpoint_with_the_tokens_of_transformers(server, merged):
    answers = [complete(server, prompt) for prompt in PROMPTS]
    assert answers == [greedy(merged, prompt) for prompt in PROMPTS]
    assert answers != [greedy(ORGANISM, prompt) for prompt in PROMPTS]  # and they are not the base model's
