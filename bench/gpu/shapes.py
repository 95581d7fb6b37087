"""Models of a given shape with random weights: speed does not care what the numbers are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    import torch
    from transformers import Qwen3ForCausalLM

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 49152},
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
             "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936},
    "1.7b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
             "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936},
    "4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936},
}  # fmt: skip


def build(shape: str, device: str, dtype: str = "bfloat16") -> Qwen3ForCausalLM:
    """A Qwen3 causal LM of that shape, weights drawn on the device itself.

    Without a pad token: transformers sets its embedding to zero, a prompt may well begin with that id, a zero vector stays
    zero in every layer of random weights, and there RMSNorm's slope is 1/sqrt(eps) = 1000: the gradient grows a thousandfold
    a layer and is infinite after fifteen.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        **SHAPES[shape], max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            return Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def save(shape: str, folder: Path, device: str, dtype: str = "bfloat16") -> Path:
    """The model as a folder that vLLM and the trainer can open (no tokenizer); made once."""
    if not (folder / "config.json").is_file():
        build(shape, device, dtype).save_pretrained(folder)
    return folder


def _random_orthonormal(out: int, inner: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """U [out, r] and Vh [r, in], r = min, by QR of random matrices: a basis of the right shape at a hundredth of an SVD.

    RuntimeError when they are not orthonormal: one garbled basis makes every later gradient worthless.
    """
    import torch

    def draw(rows: int, columns: int) -> torch.Tensor:
        Q: torch.Tensor = torch.linalg.qr(torch.randn(rows, columns, device=device)).Q.contiguous()
        if not torch.allclose(Q.T @ Q, torch.eye(columns, device=device), atol=1e-2):
            raise RuntimeError(f"QR of a random [{rows}, {columns}] matrix on {device} is not orthonormal")
        return Q

    r = min(out, inner)
    return draw(out, r), draw(inner, r).T.contiguous()


def fill_cache(folder: Path, cache: Path, device: str) -> int:
    """Put random bases where the SVD cache would keep those of `folder`'s weights, so that services start sooner.

    Returns how many. Only for measuring speed: such an adapter trains in a basis that has nothing to do with W0.
    """
    from concurrent.futures import Future, ThreadPoolExecutor

    import torch
    from safetensors import safe_open

    from rankspace.svd_cache import _write, weight_key
    from rankspace.targets import hits

    jobs: list[Future[None]] = []
    with ThreadPoolExecutor(8) as pool:  # writing gigabytes with their digests is what takes the time
        for file in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                wanted = [n for n in tensors.keys() if n.endswith(".weight") and hits(n.removesuffix(".weight"))]  # noqa: SIM118
                weights = [tensors.get_tensor(name) for name in wanted]
            for weight, key in zip(weights, pool.map(weight_key, weights), strict=True):
                path = Path(cache) / f"{key}.safetensors"
                if path.is_file():
                    continue
                out, inner = weight.shape
                U, Vh = _random_orthonormal(out, inner, device)  # here, in one thread
                jobs.append(pool.submit(_write, path, (U.cpu(), torch.ones(Vh.shape[0]), Vh.cpu())))
        for job in jobs:
            job.result()
    return len(jobs)


@contextmanager
def random_bases(device: str) -> Iterator[None]:
    """Within it, adapters and generators get orthonormal bases by QR instead of the weights' own SVD.

    The speed of a step or a push does not depend on which basis it is, and 196 SVDs take a minute.
    """
    import torch

    from rankspace.svd_cache import Basis

    def bases(weights: Iterable[torch.Tensor], *_args: object) -> Iterator[Basis]:
        for weight in weights:
            out, inner = weight.shape
            U, Vh = _random_orthonormal(out, inner, device)
            yield Basis(U, torch.ones(Vh.shape[0]), Vh, key="random", content="random")

    with mock.patch("rankspace.adapter.svds", bases), mock.patch("rankspace.merge.svds", bases):
        yield
