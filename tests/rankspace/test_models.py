"""Names of models: what has been brought to models/ is read from there, and what has not says how."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rankspace.errors import RankspaceError
from rankspace.models import find_model, load_model, load_tokenizer, require_model

ORGANISM = Path(__file__).resolve().parents[2] / "tasks/organism/model"
COMMIT = "0123456789ab"


@pytest.fixture
def brought(tmp_path, monkeypatch):
    """models/tiny of the hub and models/quant of a GGUF file, as `python -m experiments model` leaves them."""
    monkeypatch.chdir(tmp_path)
    for name, said in (
        ("tiny", {"source": "acme/tiny", "revision": COMMIT, "asked": "v2"}),
        ("quant", {"source": str(tmp_path / "quant.gguf")}),
    ):
        shutil.copytree(ORGANISM, f"models/{name}")
        Path(f"models/{name}/source.json").write_text(json.dumps(said))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("acme/tiny", "models/tiny"), ("acme/tiny@v2", "models/tiny"), (f"acme/tiny@{COMMIT}", "models/tiny"),
        ("acme/tiny@v3", None), ("other/tiny", None), ("acme/absent", None), ("quant.gguf", "models/quant"),
        ("elsewhere/quant.gguf", None), ("models/tiny", None),
    ],
)  # fmt: skip
def test_a_name_means_the_folder_that_was_made_of_it_and_no_other(brought, name, found):
    assert find_model(name) == (found or name)


@pytest.mark.parametrize("damage", ["no json", "[]", "{}"])
def test_a_folder_that_says_nothing_of_itself_stands_for_no_name(brought, damage):
    Path("models/tiny/source.json").write_text(damage)
    assert find_model("acme/tiny") == "acme/tiny"


def test_model_and_tokenizer_of_a_brought_name_need_no_network(brought):
    for name in ("acme/tiny@v2", "quant.gguf"):
        require_model(name)
        assert load_tokenizer(name).chat_template and load_model(name).config.model_type


def test_a_gguf_file_that_was_not_brought_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.gguf").touch()
    with pytest.raises(
        RankspaceError, match=r"run `python -m experiments model x\.gguf`, then give the directory models/x"
    ):
        require_model("x.gguf")
    with pytest.raises(RankspaceError, match="no such file"):
        require_model("y.gguf")


def test_a_hub_name_that_cannot_be_had_says_how_to_bring_it(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    for load in (load_tokenizer, load_model):
        with pytest.raises(RankspaceError, match=r"`hf download acme/absent --local-dir models/absent`") as caught:
            load("acme/absent@v1")
        assert "\n" not in str(caught.value)
