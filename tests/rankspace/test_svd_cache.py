"""The SVD cache: correct, keyed by content, healed when damaged, never half-written."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rankspace import RankspaceError, attach, svd_cache
from rankspace.svd_cache import compute_svd, svd, svds, weight_key


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6), (1, 4), (600, 530)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reconstructs_and_is_orthonormal(shape, dtype):
    torch.manual_seed(0)
    W = torch.randn(shape).to(dtype)
    U, S, Vh = compute_svd(W)
    r = min(shape)
    assert (U.shape, S.shape, Vh.shape) == ((shape[0], r), (r,), (r, shape[1]))
    assert U.dtype == S.dtype == Vh.dtype == torch.float32 and (S[:-1] >= S[1:]).all()
    assert torch.allclose((U * S) @ Vh, W.float(), atol=2e-5 * S[0].item())
    assert torch.allclose(U.T @ U, torch.eye(r), atol=1e-5) and torch.allclose(Vh @ Vh.T, torch.eye(r), atol=1e-5)
    peak = U.gather(0, U.abs().argmax(0, keepdim=True))
    assert (peak > 0).all()  # the sign is fixed


def test_second_call_reads_the_file(tmp_path, monkeypatch):
    W = torch.randn(6, 4)
    first = svd(W, tmp_path / "deep" / "cache")
    monkeypatch.setattr(svd_cache, "compute_svd", lambda *_: pytest.fail("computed again"))
    again = svd(W, tmp_path / "deep" / "cache")
    assert all(torch.equal(getattr(first, n), getattr(again, n)) for n in ("U", "S", "Vh")) and first.key == again.key
    assert [p.name for p in (tmp_path / "deep" / "cache").iterdir()] == [f"{first.key}.safetensors"]


def test_key_sees_bytes_shape_and_dtype():
    W = torch.arange(12.0).reshape(3, 4)
    other = W.clone()
    other[0, 0] = -0.0
    keys = {weight_key(x) for x in (W, other, W.reshape(4, 3), W.bfloat16(), W.view(torch.int32).view(torch.float32).T)}
    assert len(keys) == 5 and weight_key(W.clone()) == weight_key(W)


def test_code_version_is_part_of_the_key(monkeypatch):
    W = torch.randn(3, 3)
    before = weight_key(W)
    monkeypatch.setattr(svd_cache, "CODE_VERSION", svd_cache.CODE_VERSION + 1)
    assert weight_key(W) != before


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "garbage", "foreign"])
def test_a_damaged_file_is_recomputed_and_replaced(tmp_path, damage):
    W = torch.randn(6, 4)
    want = svd(W, tmp_path)
    path = tmp_path / f"{want.key}.safetensors"
    data = path.read_bytes()
    if damage == "foreign":  # a sound file, but of another weight
        other = svd(torch.randn(6, 5), tmp_path)
        os.replace(tmp_path / f"{other.key}.safetensors", path)
    else:
        flipped = data[:-9] + bytes([data[-9] ^ 0x40]) + data[-8:]
        path.write_bytes({"truncate": data[:-50], "flip": flipped, "empty": b"", "garbage": b"x" * 500}[damage])
    got = svd(W, tmp_path)
    assert all(torch.equal(getattr(got, n), getattr(want, n)) for n in ("U", "S", "Vh"))
    assert path.read_bytes() == data


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        svd_cache.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(RankspaceError, match=r"cannot write the SVD cache .*No space left"):
        svd(torch.randn(3, 3), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RankspaceError, match="cannot write the SVD cache"):
        svd(torch.randn(3, 3), tmp_path / "file" / "sub")


def test_many_come_in_order_whether_cached_missing_damaged_or_twice(tmp_path):
    weights = [torch.randn(9, 5 + i, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    one_by_one = [svd(w, tmp_path / "other") for w in weights]
    for i in (1, 3, 4):
        svd(weights[i], tmp_path)
    (tmp_path / f"{one_by_one[3].key}.safetensors").write_bytes(b"no tensors")
    order = [5, 1, 0, 3, 3, 2, 4, 1]
    got = list(svds([weights[i] for i in order], tmp_path, threads=3))
    for i, basis in zip(order, got, strict=True):
        want = one_by_one[i]
        assert (basis.key, basis.content) == (want.key, want.content)
        assert torch.equal(basis.U, want.U) and torch.equal(basis.S, want.S) and torch.equal(basis.Vh, want.Vh)
    assert len(list(tmp_path.glob("*.safetensors"))) == 6


def test_what_is_cached_is_not_computed_again_and_a_bad_weight_among_many_is_refused(tmp_path, monkeypatch):
    weights = [torch.randn(6, 4, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    list(svds(weights, tmp_path))
    monkeypatch.setattr("rankspace.svd_cache.compute_svd", lambda *_: pytest.fail("it is in the cache"))
    assert len(list(svds(weights, tmp_path, threads=2))) == 5
    monkeypatch.undo()
    with pytest.raises(RankspaceError, match="holds NaN or Inf"):
        list(svds([*weights, torch.full((3, 3), torch.nan), *weights], tmp_path, threads=2))
    assert list(svds([], tmp_path)) == []


def test_several_writers_share_a_cache(tmp_path):
    weights = [torch.randn(20, 20, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    start = threading.Barrier(4)

    def work(order):
        start.wait()
        return [svd(weights[i], tmp_path).S for i in order]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, ([0, 1, 2], [0, 1, 2], [2, 1, 0], [1, 0, 2])))
    assert torch.equal(results[0][0], results[2][2])
    assert len(list(tmp_path.glob("*.safetensors"))) == 3 and len(list(tmp_path.iterdir())) == 3  # no temporary left


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.full((2, 2), torch.nan), "NaN or Inf"),
        (torch.ones(3), "2-d"),
        (torch.ones(2, 2, dtype=torch.int8), "floating-point"),
    ],
)
def test_no_svd_of_that(weight, message):
    with pytest.raises(RankspaceError, match=message):
        compute_svd(weight)


def test_attach_uses_the_cache_and_reports_each_module(tmp_path, tiny_qwen3, monkeypatch):
    seen = []
    first = attach(tiny_qwen3(), svd_cache_dir=tmp_path, progress=lambda *x: seen.append(x))
    assert seen == [(i, 14, name) for i, (name, _) in enumerate(first.modules, start=1)]
    monkeypatch.setattr(svd_cache, "compute_svd", lambda *_: pytest.fail("computed again"))
    second = attach(tiny_qwen3(), svd_cache_dir=tmp_path)
    assert first.fingerprint == second.fingerprint
