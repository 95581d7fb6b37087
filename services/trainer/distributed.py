"""The device of a rank, and its place among the ranks. The only start-up of torch.distributed."""

from __future__ import annotations

import os

from common.ports import free_port


def take_device(name: str, memory_fraction: float | None = None) -> str:
    """The device, one card a rank, with this process's share of its memory capped where another service is on it too."""
    import torch

    from rankspace.gpu import avoid_cudnn_attention

    device = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    avoid_cudnn_attention()
    if device.startswith("cuda"):
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if memory_fraction is not None:
            torch.cuda.set_per_process_memory_fraction(memory_fraction)
    return device


def start_distributed(device: str) -> tuple[int, int]:
    """(rank, number of ranks). Alone unless a launcher (torchrun, deepspeed) says otherwise through the environment."""
    import torch

    if device == "cpu":
        # DeepSpeed chooses its accelerator when it is imported, by what the machine has
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if "RANK" not in os.environ:  # after the import: seconds in which somebody else might take the port
        os.environ |= {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
    # gloo is enough; DeepSpeed would compile a shared-memory all-reduce first, for minutes on a fresh machine
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if device.startswith("cuda") else "gloo", verbose=False)
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
