"""What the processes on a GPU share: which attention kernels may run there, and how much memory is in use."""

from __future__ import annotations

from collections.abc import Callable


def avoid_cudnn_attention() -> None:
    """Keep scaled_dot_product_attention off cuDNN in this process; flash and memory-efficient kernels take its place.

    torch from 2.11 on prefers cuDNN on Hopper and Blackwell, and others have seen its backward return NaN where the loss was
    sound (pytorch/pytorch#196678, with a mask; NVIDIA/cudnn-frontend#160, huggingface/trl#7181). Call it before the first
    backward. A setting of the process, not a context: with checkpointed activations the forward runs again in backward.
    """
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


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
