"""A push while requests are in work: they go on under the new weights, and every log-prob is that of the weights it was
sampled under."""

import pytest

from tests.programs import result_of

PROGRAM = """
import json
import numpy as np
from safetensors import safe_open
from common.errors import ConfigError
from common.settings import RefServerSettings
from common.types import DeltaS, SamplingPlan, checksum
from rankspace.targets import hits
from services.ref_server.engine import Engine

PROMPTS = [[2, 30, 31, 40], [2, 50], [2, 60, 61, 62, 63]]

def main():
    model = "tasks/organism/model"
    engine = Engine(RefServerSettings(model=model, device="cpu", max_num_seqs=16), [])
    with safe_open(f"{model}/model.safetensors", framework="np") as file:
        names = [n.removesuffix(".weight") for n in sorted(file.keys()) if n.endswith(".weight")]
        modules = [(n, min(file.get_slice(f"{n}.weight").get_shape())) for n in names if hits(n)]

    def delta(version):
        values = 2.0 * np.random.default_rng(version).standard_normal(sum(r for _, r in modules))
        vector = values.astype("<f4").tobytes()
        return DeltaS(run_id="x", version=version, modules=modules, vector=vector, checksum=checksum(vector), probe_ids=[2, 3])

    steps, refused = 0, ""
    def between():
        nonlocal steps, refused
        steps += 1
        if steps == 6:
            try:
                engine.load(delta(2))
            except ConfigError as error:
                refused = str(error)
            engine.load(delta(2), keep_running=True)

    engine.load(delta(1))
    plans = [SamplingPlan(n=2, temperature=1.0, max_tokens=14, seed=i) for i in range(len(PROMPTS))]
    groups = engine.generate(PROMPTS, plans, between)
    found = {"refused": refused, "rows": []}
    for version in (1, 2):
        engine.load(delta(version))
        for prompt, group in zip(PROMPTS, groups):
            for i, sample in enumerate(group):
                logprobs = engine.probe(prompt + sample.token_ids)[len(prompt) - 1:]
                found["rows"].append({"version": version, "sampled": sample.logprobs, "scored": logprobs})
    print("RESULT", json.dumps(found))

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_token_is_scored_by_the_version_that_sampled_it(tmp_path):
    found = result_of(tmp_path, PROGRAM)
    assert "while requests are in work" in found["refused"]
    half = len(found["rows"]) // 2
    for old, new in zip(found["rows"][:half], found["rows"][half:], strict=True):
        sampled = old["sampled"]
        assert len(sampled) == 14  # nothing was lost or cut short
        by_old = [abs(a - b) < 1e-3 for a, b in zip(sampled, old["scored"], strict=True)]
        by_new = [abs(a - b) < 1e-3 for a, b in zip(sampled, new["scored"], strict=True)]
        cut = by_old.index(False)
        assert 4 <= cut <= 8 and all(by_new[cut:]) and not all(by_new[:cut])
