"""push_to_hub against a stand-in of the Hub on this machine: huggingface_hub's own client, what arrives, what is refused."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import rankspace
from rankspace import RankspaceError
from rankspace.__main__ import main

pytest.importorskip("huggingface_hub")


class Hub(BaseHTTPRequestHandler):
    """The three requests of an upload of small files: make the repository, ask how to send, commit."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer good":
            return self._answer(401, {"error": "who are you"})
        if self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            return self._answer(200, {"url": f"http://127.0.0.1:{self.server.server_port}/me/x"})
        if self.path.endswith("/preupload/main"):
            files = [f["path"] for f in json.loads(body)["files"]]
            return self._answer(
                200, {"files": [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self._answer(
                200,
                {
                    "commitOid": "0" * 40,
                    "commitUrl": f"http://127.0.0.1:{self.server.server_port}/me/x/commit/0",
                    "success": True,
                },
            )
        return self._answer(200, {"errors": [], "warnings": []})  # of the card's header

    def do_GET(self):
        self._answer(200, {"sha": "0" * 40, "siblings": [], "id": "me/x"})

    def _answer(self, status, value):
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub.constants as constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.made, server.files = [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "good")
    yield server
    server.shutdown()


@pytest.fixture
def exported(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("up_proj", torch.nn.Linear(6, 4))
    adapter = rankspace.attach(model)
    adapter.set_flat(torch.arange(4.0))
    direction = rankspace.random_direction(adapter.modules, 1)
    rankspace.save_adapter(adapter, tmp_path / "out", "me/base", direction, step=3)
    return tmp_path / "out"


def test_what_arrives_is_the_directory(hub, exported, capsys):
    (exported / ".secret").write_text("not mine to send")
    assert main(["push", "--dir", str(exported), "--repo", "me/x"]) == 0
    assert f":{hub.server_port}/me/x" in capsys.readouterr().out
    assert hub.made[0]["name"] == "x" and hub.made[0]["organization"] == "me" and is_private(hub.made[0])
    assert hub.files == {p.name: p.read_bytes() for p in exported.iterdir() if p.name != ".secret"}
    assert set(hub.files) == {"README.md", "delta_S.safetensors"}
    assert main(["push", "--dir", str(exported), "--repo", "me/x", "--public"]) == 0
    assert not is_private(hub.made[1])


def is_private(asked):
    """The client has said it in two ways."""
    return asked.get("visibility") == "private" or asked.get("private") is True


@pytest.mark.parametrize(
    ("repo", "token", "says"),
    [("x", "good", "give owner/name"), ("a/b/c", "good", "give owner/name"), ("me/x", "bad", "hf auth login")],
)
def test_refusals_are_one_line(hub, exported, monkeypatch, capsys, repo, token, says):
    monkeypatch.setenv("HF_TOKEN", token)
    assert main(["push", "--dir", str(exported), "--repo", repo]) == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1
    assert not hub.files


def test_only_an_export_is_taken(hub, exported, tmp_path):
    with pytest.raises(RankspaceError, match="no export"):
        rankspace.push_to_hub(tmp_path, "me/x")
    (exported / "README.md").unlink()
    with pytest.raises(RankspaceError, match=r"card README\.md is gone"):
        rankspace.push_to_hub(exported, "me/x")
    assert not hub.made


def test_a_server_that_does_not_answer(exported, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RankspaceError, match="not uploaded"):
        rankspace.push_to_hub(exported, "me/x", token="good")
