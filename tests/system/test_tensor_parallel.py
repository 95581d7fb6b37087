"""Two tensor-parallel shards hold what one worker holds: the same probe log-probs before, with and after a delta_S."""

import pytest

from tests.programs import result_of

PROGRAM = """
import json, sys
import numpy as np
from safetensors import safe_open
from common.settings import RefServerSettings
from common.types import DeltaS, checksum
from rankspace.targets import hits
from services.ref_server.engine import Engine

def main(shards):
    model = "tasks/organism/model"
    engine = Engine(RefServerSettings(model=model, device="cpu", max_num_seqs=16, tensor_parallel_size=shards), [1])
    with safe_open(f"{model}/model.safetensors", framework="np") as file:
        names = [n.removesuffix(".weight") for n in sorted(file.keys()) if n.endswith(".weight")]
        modules = [(n, min(file.get_slice(f"{n}.weight").get_shape())) for n in names if hits(n)]
    found = []
    for version, scale in enumerate((0.0, 3.0, 0.0)):
        values = scale * np.random.default_rng(0).standard_normal(sum(r for _, r in modules))
        vector = values.astype("<f4").tobytes()
        delta = DeltaS(run_id="x", version=version, modules=modules, vector=vector, checksum=checksum(vector),
                       probe_ids=[2, 30, 31, 40, 50, 60])
        loaded = engine.load(delta)
        assert loaded.checksum == delta.checksum and loaded.modules == len(modules)
        found.append(engine.probe(delta.probe_ids))
    print("RESULT", json.dumps(found))

if __name__ == "__main__":
    main(int(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_shards_are_as_good_as_one(tmp_path):
    found = {shards: result_of(tmp_path, PROGRAM, shards) for shards in (1, 2)}
    for one, two in zip(found[1], found[2], strict=True):
        assert two == pytest.approx(one, abs=1e-4)
    base, moved, back = found[2]
    assert back == base, "a delta_S of zero leaves no trace"
    assert max(abs(a - b) for a, b in zip(base, moved, strict=True)) > 1.0
