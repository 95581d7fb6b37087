"""Models brought here: from a stand-in of the hub, from a GGUF file, from a folder; what stops, and what goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.model_names import brought, local, parse, weight_files
from experiments.design.presets import ORGANISM_MODEL

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class Hub(ThreadingHTTPServer):
    """The hub's answers that huggingface_hub asks for. lie: a file whose stated digest is wrong; cut: one that ends early,
    so many times; gets: files sent."""

    def __init__(self, folder: Path, name: str = "someone/tiny"):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {n: (folder / n).read_bytes() for n in NAMES} | {"original/model.safetensors": b"other format"}
        self.name, self.lie, self.cut, self.gets = name, "", {}, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sibling(self, name: str) -> dict:
        data = self.files[name]
        stated = data + b"x" if name == self.lie else data
        blob = hashlib.sha1(f"blob {len(data)}\0".encode() + stated).hexdigest()
        big = {"lfs": {"sha256": hashlib.sha256(stated).hexdigest(), "size": len(data), "pointerSize": 1}}
        return {"rfilename": name, "size": len(data), "blobId": blob} | (big if name.endswith(".safetensors") else {})


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{self.server.name}"):
            said = {"id": self.server.name, "sha": COMMIT, "cardData": {"license": "apache-2.0"}, "tags": []}
            return self.send(
                json.dumps(said | {"siblings": [self.server.sibling(n) for n in self.server.files]}).encode()
            )
        name = path.removeprefix(f"/{self.server.name}/resolve/{COMMIT}/")
        if name not in self.server.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return self.send(self.server.files[name], name)

    def send(self, data: bytes, name: str = "") -> None:
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            if name:
                self.server.gets.append((name, start))
            end = len(data) // 2 if self.server.cut.get(name, 0) > 0 else len(data)
            self.server.cut[name] = self.server.cut.get(name, 0) - 1
            self.wfile.write(data[start:end])
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub():
    server = Hub(ROOT / ORGANISM_MODEL)
    yield server
    server.shutdown()


def command(cwd: Path, *arguments: str, endpoint: str = "http://127.0.0.1:9", **env: str):
    """`python -m experiments model ...` in a folder of its own."""
    values = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "HF_ENDPOINT": endpoint,
              "HF_HOME": str(cwd / "hf"), **env}  # fmt: skip
    values.pop("HF_HUB_OFFLINE", None)
    done = [sys.executable, "-m", "experiments", "model", *arguments]
    return subprocess.run(done, cwd=cwd, env=values, capture_output=True, text=True, timeout=280)


def test_from_the_hub_with_its_licence_and_digests(tmp_path, hub):
    done = command(tmp_path, "someone/tiny", endpoint=hub.url)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "models" / "tiny"
    assert sorted(p.name for p in folder.iterdir()) == sorted([*NAMES, "source.json"])
    said = json.loads((folder / "source.json").read_text())
    assert (said["source"], said["revision"], said["licence"]) == ("someone/tiny", COMMIT, "apache-2.0")
    weights = hub.files["model.safetensors"]
    assert said["files"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert (folder / "model.safetensors").read_bytes() == weights
    first = done.stderr.splitlines()[0]
    assert "licence apache-2.0" in first and "GiB" in first and COMMIT[:12] in first and "at 50 MB/s" in first
    sent = len(hub.gets)
    again = command(tmp_path, "someone/tiny", endpoint="http://127.0.0.1:9")
    assert again.returncode == 0 and len(hub.gets) == sent, "what is here needs no network"


def test_a_download_that_was_cut_goes_on(tmp_path, hub):
    hub.files["README.md"] = bytes(24 << 20)  # huggingface_hub writes 10 MiB at a time
    hub.cut["README.md"] = 100
    done = command(tmp_path, "someone/tiny", endpoint=hub.url)
    assert done.returncode == 2 and "start again" in done.stderr.splitlines()[-1], done.stderr
    assert not (tmp_path / "models" / "tiny").exists()
    hub.cut["README.md"] = 0
    hub.gets.clear()
    assert command(tmp_path, "someone/tiny", endpoint=hub.url).returncode == 0
    assert hub.gets == [("README.md", 10 << 20)]


def test_other_bytes_than_stated_are_not_used(tmp_path, hub):
    hub.lie = "model.safetensors"
    done = command(tmp_path, "someone/tiny", endpoint=hub.url)
    assert done.returncode == 2 and "model.safetensors came twice with other bytes" in done.stderr
    assert not (tmp_path / "models" / "tiny").exists()


@pytest.mark.parametrize("name", ["someone/tiny", "someone/else"])
def test_no_network_and_no_such_model_are_one_line(tmp_path, hub, name):
    endpoint = hub.url if name == "someone/else" else "http://127.0.0.1:9"
    done = command(tmp_path, name, endpoint=endpoint)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    words = ["knows no model"] if name == "someone/else" else ["hf download someone/tiny", "models/tiny"]
    assert all(word in line for word in words), line


def test_what_a_name_means(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name, kind, folder in (
        ("a/b", "folder", "a/b"), ("Qwen/Qwen3-4B", "hub", "models/Qwen3-4B"), ("x/y.gguf", "gguf", "models/y"),
        ("models/mine", "folder", "models/mine"), ("./x/y", "folder", "x/y"), ("o/n@main", "hub", "models/n"),
    ):  # fmt: skip
        assert (parse(name).kind, str(parse(name).folder)) == (kind, folder), name
    with pytest.raises(ConfigError, match="experiments model Qwen/Qwen3-4B"):
        local("Qwen/Qwen3-4B")
    here = tmp_path / "models" / "Qwen3-4B"
    here.mkdir(parents=True)
    (here / "config.json").write_text("{}")
    assert local("Qwen/Qwen3-4B") == Path("models/Qwen3-4B")
    (here / "source.json").write_text(json.dumps({"source": "Else/Qwen3-4B", "revision": COMMIT}))
    with pytest.raises(ConfigError, match="holds Else/Qwen3-4B, not Qwen/Qwen3-4B"):
        brought(parse("Qwen/Qwen3-4B"))
    (here / "source.json").write_text(json.dumps({"source": "Qwen/Qwen3-4B", "revision": COMMIT}))
    with pytest.raises(ConfigError, match="not v2"):
        brought(parse("Qwen/Qwen3-4B@v2"))


def test_a_missing_shard_is_named_and_a_stale_index_is_not(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(ConfigError, match="lacks model-00002-of-00002"):
        weight_files(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ConfigError, match="lacks model-00002-of-00002"):
        weight_files(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-00001-of-00002.safetensors").rename(tmp_path / "model.safetensors")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"], "the index is left from before"


def test_a_folder_is_copied_whole(tmp_path):
    done = command(tmp_path, str(ROOT / ORGANISM_MODEL), "--out", "copy")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (ROOT / ORGANISM_MODEL / NAMES[1]).read_bytes()
    shutil.rmtree(tmp_path / "copy")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "notes").touch()
    assert "in the way" in command(tmp_path, str(ROOT / ORGANISM_MODEL), "--out", "copy").stderr
