"""Before anything is extracted or started: one rendering for all, prompts that fit, a model that the adapter covers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from common.errors import ConfigError
from experiments.design.plan import plan
from experiments.design.presets import ORGANISM_MODEL, PRESETS, SOURCES
from experiments.launch.check import check_model
from experiments.launch.describe import describe
from experiments.launch.direction import rendering
from services.trainer import preflight


@pytest.fixture
def model(tmp_path):
    """The organism in a folder of the test's own, whose files it may change."""
    return Path(shutil.copytree(ORGANISM_MODEL, tmp_path / "model"))


def smoke(**assignments):
    return plan("smoke", "vanilla", 0, assignments)


def test_the_presets_models_as_they_are(model):
    check_model(smoke())
    check_model(smoke(model=str(model)))


def test_a_prompt_that_does_not_fit_is_named_with_the_length_that_would_do():
    with pytest.raises(ConfigError, match=r"its prompt of \d+ tokens and max_tokens=64 do not fit") as caught:
        check_model(smoke(**{"generator.max_model_len": 100}))
    enough = int(str(caught.value).rpartition("=")[2])
    check_model(smoke(**{"generator.max_model_len": enough}))
    with pytest.raises(ConfigError):
        check_model(smoke(**{"generator.max_model_len": enough - 1}))


@pytest.mark.parametrize(
    ("template", "words"),
    [("{{ raise_exception('no system role') }}", "problem .*: the chat template refuses the prompt: no system role"),
     ("", "no chat template")],
)  # fmt: skip
def test_a_template_that_cannot_is_refused(model, template, words):
    (model / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match=words):
        check_model(smoke(model=str(model)))


def test_a_switch_that_nothing_reads_is_refused_and_one_that_is_read_reaches_everybody(model):
    given = {"model": str(model), "chat_template_kwargs": {"enable_thinking": False}}
    with pytest.raises(ConfigError, match="does not read 'enable_thinking'"):
        check_model(smoke(**given))
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(template + "{% if enable_thinking is false %}{% endif %}")
    planned = smoke(**given)
    check_model(planned)
    assert planned.server["chat_template_kwargs"] == {"enable_thinking": False}
    assert planned.file()["chat_template_kwargs"] == {"enable_thinking": False}
    assert json.loads(rendering(planned.trainer)[3]) == {"enable_thinking": False}
    with pytest.raises(ConfigError, match=r"generator.chat_template_kwargs=\{\} differs"):
        smoke(**given, **{"generator.chat_template_kwargs": {}})
    with pytest.raises(ConfigError, match="'messages' is decided here"):
        smoke(chat_template_kwargs={"messages": 1})


@pytest.mark.parametrize("preset", ["qwen3.5-2b", "qwen3-4b"])
def test_thinking_is_off_in_the_presets_that_would_think(preset):
    planned = plan(preset, "projected", 0)
    assert planned.trainer.chat_template_kwargs == planned.server["chat_template_kwargs"] == {"enable_thinking": False}
    assert "is brought to models/" in describe(planned)


def test_a_direction_rendered_otherwise_is_refused(tmp_path):
    import torch

    from rankspace.direction import Direction, save_direction

    s = plan("smoke", "projected", 0, {"chat_template_kwargs": {"enable_thinking": False}}).trainer
    path = tmp_path / "v.safetensors"
    for kwargs, refused in (({"enable_thinking": False}, False), ({}, True), (None, True)):
        metadata = {} if kwargs is None else {"chat_template_kwargs": kwargs, "chat_date": s.chat_date}
        save_direction(Direction("v_hack", torch.ones(2), [("m", 2)], metadata), path)
        if refused:
            with pytest.raises(ConfigError, match=r"field 'chat_template_kwargs': .* was extracted with \{\}"):
                preflight.check_chat(path, s)
        else:
            preflight.check_chat(path, s)


def test_folders_that_presets_name_have_a_source():
    for preset in PRESETS.values():
        model = str(preset.values["model"])
        assert Path(model).is_dir() or model in SOURCES or preset.prepare or model.startswith("Qwen/"), preset.name
