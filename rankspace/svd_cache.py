"""Full-rank SVD of a weight, computed once and kept on disk.

    W = U · diag(S) · Vh,    W [out, in],  U [out, r],  S [r],  Vh [r, in],  r = min(out, in)

Key of an entry: sha256(code version, shape, dtype, weight bytes). A file is written to a temporary name, fsynced and
renamed, so a reader never sees half of one. Each carries the sha256 of its own tensors; a truncated, corrupted or
foreign file is recomputed and replaced.

Singular vectors are defined up to sign: here the entry of largest magnitude of each column of U is positive. Within a
cluster of equal singular values they are defined up to a rotation, so two machines may disagree there: processes that
exchange delta_S should share one cache directory.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, TensorSpec, safe_open, serialize_file
from torch import Tensor

from .atomic_dir import as_os_error, sync
from .errors import RankspaceError

CODE_VERSION = 1
FLOAT64_MAX_RANK = 512  # up to here float64 costs little and makes the fp32 result good to the last bits

Progress = Callable[[int, int, str], None]
"""progress(done, total, module_name), called after each module."""


@dataclass(frozen=True)
class Basis:
    """U [out, r], S [r], Vh [r, in], fp32 on the CPU.

    `key` names the cache entry; `content` is the sha256 of the weight's *values* (as fp32 bytes), the same whether a
    bf16 checkpoint was loaded in bf16 or in fp32.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor
    key: str
    content: str


def tensor_sha256(*tensors: Tensor) -> str:
    """sha256 over the raw bytes of the tensors in turn (any dtype, any device), hex."""
    digest = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        if flat.numel():  # its memory as it lies there: no copy, and no numpy needed
            digest.update((ctypes.c_ubyte * flat.numel()).from_address(flat.data_ptr()))
    return digest.hexdigest()


def weight_key(weight: Tensor, sha256: str | None = None) -> str:
    """Cache key of a weight: hex sha256 of code version, shape, dtype and bytes (`sha256`, when already known)."""
    content = sha256 or tensor_sha256(weight)
    head = f"rankspace-svd/{CODE_VERSION}|{tuple(weight.shape)}|{weight.dtype}|{content}"
    return hashlib.sha256(head.encode()).hexdigest()


def compute_svd(weight: Tensor, device: torch.device | str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(U, S, Vh) of `weight` [out, in], fp32 on the CPU, sign-fixed.

    Computed on `device`: the GPU when there is one, unless told otherwise. float64 up to rank 512, fp32 above.

    Raises:
        RankspaceError: the weight is not a finite 2-d floating-point matrix.
    """
    if weight.ndim != 2 or not weight.is_floating_point():
        raise RankspaceError(f"an SVD needs a 2-d floating-point weight, got {weight.dtype} {tuple(weight.shape)}")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else weight.device
    work = torch.float64 if min(weight.shape) <= FLOAT64_MAX_RANK else torch.float32
    matrix = weight.detach().to(device=device, dtype=work)
    if not torch.isfinite(matrix).all():
        raise RankspaceError("the weight holds NaN or Inf: the checkpoint is damaged, load it again")
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    peak = U.gather(0, U.abs().argmax(dim=0, keepdim=True)).squeeze(0)
    sign = torch.where(peak < 0, -1.0, 1.0).to(U)
    return tuple(t.float().cpu().contiguous() for t in (U * sign, S, sign[:, None] * Vh))


def svd(weight: Tensor, cache_dir: Path | None = None, device: torch.device | str | None = None) -> Basis:
    """The SVD of `weight` [out, in], from the cache if it is there, else computed and stored.

    Args:
        cache_dir: a directory (made if absent), or None for no cache.
        device: where to compute; None means the GPU when there is one.
    """
    return _complete(weight, _look_up(weight, cache_dir), device)


def svds(
    weights: Sequence[Tensor], cache_dir: Path | None = None, device: torch.device | str | None = None,
    threads: int | None = None,
) -> Iterator[Basis]:  # fmt: skip
    """`svd` of each weight, in order. Threads (None: a core each, eight at most) hash the weights and read the cache ahead,
    which is what starting costs once all is cached; what is missing is computed here, one after another."""
    ahead = threads or min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(ahead) as pool:
        waiting: deque[Future[_Found]] = deque()
        left = iter(weights)
        for weight in weights:
            while len(waiting) <= ahead and (coming := next(left, None)) is not None:
                waiting.append(pool.submit(_look_up, coming, cache_dir))
            yield _complete(weight, waiting.popleft().result(), device)


@dataclass(frozen=True)
class _Found:
    """What hashing a weight and looking into the cache gave; no `parts` where it is to be computed, no `path` without a
    cache."""

    key: str
    content: str
    path: Path | None
    parts: tuple[Tensor, Tensor, Tensor] | None


def _look_up(weight: Tensor, cache_dir: Path | None) -> _Found:
    raw = tensor_sha256(weight)
    content = raw if weight.dtype == torch.float32 else tensor_sha256(weight.detach().float())
    key = weight_key(weight, raw)
    path = None if cache_dir is None else Path(cache_dir) / f"{key}.safetensors"
    return _Found(key, content, path, None if path is None else _read(path, (weight.shape[0], weight.shape[1])))


def _complete(weight: Tensor, found: _Found, device: torch.device | str | None) -> Basis:
    """What was found, or else computed and stored."""
    parts = found.parts
    if parts is None:
        parts = compute_svd(weight, device)
        if found.path is not None:
            _write(found.path, parts)
    return Basis(*parts, found.key, found.content)


def _read(path: Path, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor] | None:
    """The tensors of a sound cache file, or None when it is absent, damaged or does not fit."""
    out, inner = shape
    r = min(shape)
    try:
        with safe_open(path, framework="pt") as file:
            stated = (file.metadata() or {}).get("sha256")
            parts = tuple(file.get_tensor(name) for name in ("U", "S", "Vh"))
    except (FileNotFoundError, SafetensorError):  # absent, truncated, or not ours: computing again heals it
        return None
    if [tuple(t.shape) for t in parts] != [(out, r), (r,), (r, inner)] or stated != tensor_sha256(*parts):
        return None
    return parts


def _write(path: Path, parts: tuple[Tensor, Tensor, Tensor]) -> None:
    try:
        atomic_save(dict(zip(("U", "S", "Vh"), parts, strict=True)), path, {"sha256": tensor_sha256(*parts)})
    except OSError as error:
        raise RankspaceError(
            f"cannot write the SVD cache {path.parent}: {error.strerror}; give another directory"
        ) from error


def atomic_save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file so that a reader finds all of it or none: temporary name, fsync, rename, fsync. OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}  # kept alive while it is written
        try:
            serialize_file({name: _spec(t) for name, t in whole.items()}, temporary, metadata)
        except SafetensorError as error:
            raise as_os_error(error, path) from error
        sync(temporary)
        os.chmod(temporary, 0o644)  # mkstemp makes 0600, and a cache is shared between services
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _spec(tensor: Tensor) -> TensorSpec:
    """Where the tensor lies; what safetensors.torch.save_file passes on, but that imports numpy to find it."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    size = tensor.numel() * tensor.element_size()
    return TensorSpec(dtype=dtype, shape=list(tensor.shape), data_ptr=tensor.data_ptr(), data_len=size)
