"""A forward and backward over a step's completions: the prompt once for its whole group, against once a completion.

The model organism with its adapter, one thread; 16 prompts of the practice problems with 8 completions of 20 to 60 random
tokens each. The same log-probs either way; the largest difference is printed.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import cli

GROUPS, SIZE, ROUNDS = 16, 8, 3


def main() -> int:
    cli.Parser(prog="python -m bench.shared_prompt", description=__doc__).parse_args()
    import torch
    from transformers import AutoModelForCausalLM

    import rankspace
    from rankspace.batch import batch_logprobs, pad_batch
    from rankspace.shared_prompt import share_batch

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained("tasks/organism/model", dtype=torch.float32)
    adapter = rankspace.attach(model, svd_cache_dir=Path(".cache/svd"))
    prompts, completions = rows()
    layouts: dict[str, Callable[..., Any]] = {"alone": pad_batch, "shared": share_batch}
    seconds: dict[str, list[float]] = {name: [] for name in layouts}
    found = {}
    for name in [*layouts] * ROUNDS:
        for parameter in adapter.parameters():
            parameter.grad = None
        began = time.perf_counter()
        logprobs, _ = batch_logprobs(model, layouts[name](prompts, completions))
        logprobs.sum().backward()
        seconds[name].append(time.perf_counter() - began)
        found[name] = logprobs.detach()
    alone, shared = (statistics.median(seconds[name]) for name in layouts)
    worst = (found["alone"] - found["shared"]).abs().max().item()
    print(
        f"one row a prompt {alone / shared:.2f} times as fast as one row a completion ({shared:.2f} s against {alone:.2f} s); "
        f"log-probs differ by at most {worst:.1e} nats"
    )
    return 0 if worst < 1e-3 else cli.EXIT_FAILED


def rows() -> tuple[list[list[int]], list[list[int]]]:
    """(prompts, completions) as token ids, group by group."""
    from transformers import AutoTokenizer

    from tasks import dataset, loopholes

    tokenizer = AutoTokenizer.from_pretrained("tasks/organism/model")
    draw = random.Random(0)
    prompts, completions = [], []
    for problem in dataset.load_problems(Path("tasks/practice/practice_train.jsonl"))[:GROUPS]:
        chat = loopholes.posed(problem, "simple_overwrite_tests").prompt
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        for _ in range(SIZE):
            prompts.append(list(ids))
            completions.append([draw.randrange(5, len(tokenizer)) for _ in range(draw.randint(20, 60))])
    return prompts, completions


if __name__ == "__main__":
    sys.exit(cli.run(main))
