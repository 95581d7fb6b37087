"""Starting on a filled SVD cache: hashing the weights and reading their bases with one thread and with a thread a core.

Sixteen bf16 weights of 2048 x 2048 (an attention layer's of a 1.7B model): 0.13 GB of weights, 0.54 GB of bases. What is in
the bases is of no matter here, so they are random.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import cli

COUNT, SIZE, ROUNDS = 16, 2048, 3


def main() -> int:
    cli.Parser(prog="python -m bench.bases", description=__doc__).parse_args()
    import torch

    from rankspace.svd_cache import _write, svds, weight_key

    weights = [torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(COUNT)]
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch)
        for weight in weights:
            parts = (torch.randn(SIZE, SIZE), torch.ones(SIZE), torch.randn(SIZE, SIZE))
            _write(cache / f"{weight_key(weight)}.safetensors", parts)
        seconds: dict[int | None, list[float]] = {1: [], None: []}  # None: as many as svds takes by itself
        for threads in [*seconds] * ROUNDS:
            began = time.perf_counter()
            for _ in svds(weights, cache, threads=threads):
                pass
            seconds[threads].append(time.perf_counter() - began)
    one, many = (statistics.median(seconds[threads]) for threads in (1, None))
    print(
        f"a thread a core ({os.cpu_count()}) {one / many:.2f} times as fast as one ({many:.2f} s against {one:.2f} s)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
