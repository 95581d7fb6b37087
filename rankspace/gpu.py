"""Memory of one GPU, for the metrics of the processes that share it."""

from __future__ import annotations

from collections.abc import Callable


def memory(device: str) -> dict[str, Callable[[], float]]:
    """kind -> function that returns bytes; empty for a device that is no GPU.

    used, total: of the whole device, whoever uses it. reserved: what this process's torch allocator holds.
    """
    import torch

    if not device.startswith("cuda"):
        return {}
    return {
        "used": lambda: float(torch.cuda.mem_get_info(device)[1] - torch.cuda.mem_get_info(device)[0]),
        "total": lambda: float(torch.cuda.mem_get_info(device)[1]),
        "reserved": lambda: float(torch.cuda.memory_reserved(device)),
    }
