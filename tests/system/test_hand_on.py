"""Groups are handed on when they are ready: each once, the shortest first, with the tokens of a batch sampled whole."""

import pytest

from tests.programs import result_of

PROGRAM = """
import json
from common.settings import RefServerSettings
from common.types import SamplingPlan
from services.ref_server.engine import Engine

PROMPTS = [[2, 30, 31, 40], [2, 50], [2, 60, 61, 62, 63]]
LONGEST = (14, 3, 8)

def main():
    engine = Engine(RefServerSettings(model="tasks/organism/model", device="cpu", max_num_seqs=16), [])
    plans = [SamplingPlan(n=2, temperature=1.0, max_tokens=m, seed=i) for i, m in enumerate(LONGEST)]
    whole, handed = engine.generate(PROMPTS, plans), []
    returned = engine.generate(PROMPTS, plans, finished=lambda at, samples: handed.append((at, samples)))

    def fails(at, samples):
        raise KeyError(at)

    try:
        engine.generate(PROMPTS, plans, finished=fails)
        raised = None
    except KeyError as error:
        raised = error.args[0]
    print("RESULT", json.dumps({
        "order": [at for at, _ in handed],
        "same": whole == returned == [samples for _, samples in sorted(handed, key=lambda pair: pair[0])],
        "raised": raised,
        "left": engine.llm.llm_engine.has_unfinished_requests(),
        "same_after_the_error": engine.generate(PROMPTS, plans) == whole,
    }))

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_groups_are_handed_on_as_they_finish_and_an_error_leaves_no_request_behind(tmp_path):
    found = result_of(tmp_path, PROGRAM)
    assert found == {"order": [1, 2, 0], "same": True, "raised": 1, "left": False, "same_after_the_error": True}
