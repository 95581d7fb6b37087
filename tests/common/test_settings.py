"""Settings: unknown fields refused, every complaint one line that names the field."""

from typing import Annotated

import pytest

from common import settings
from common.errors import ConfigError
from common.scopes import Science, Scope, Settings, fields
from common.settings import (
    RESUMABLE,
    RedisSettings,
    SandboxSettings,
    TrainerSettings,
    build,
    dump,
    parse_assignments,
    read_settings_file,
)

GOOD = {"run_id": "r", "run_dir": "runs/r", "model": "m", "train_problems": "a", "heldout_problems": "b"}


def test_resolved_form_round_trips():
    import json

    made = build(TrainerSettings, GOOD)
    assert build(TrainerSettings, json.loads(dump(made))) == made


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 1}, ["unknown field 'learning_rate'", "lr"]),
        ({"lr": -1}, ["'lr'", "greater than 0"]),
        ({"run_id": "a b"}, ["'run_id'"]),
        ({"steps": "many"}, ["'steps'", "'many'"]),
        ({"steps": True}, ["'steps'", "true and false"]),
        ({"ratio_cap": False}, ["'ratio_cap'", "true and false"]),
        ({"lr": float("inf")}, ["'lr'", "finite"]),
        ({"kl_beta": float("nan")}, ["'kl_beta'"]),
        ({"betas": [0.9, 1.0]}, ["'betas.1'", "less than 1"]),
        ({"betas": [-0.1, 0.9]}, ["'betas.0'", "greater than or equal to 0"]),
        ({"projection": "one_sided"}, ["needs direction"]),
        ({"direction": "v_hack"}, ["v_hack", "rankspace extract"]),
        ({"reward_shaping": "rebound"}, ["pairs"]),
    ],
)
def test_a_complaint_is_one_line_naming_the_field(change, words):
    with pytest.raises(ConfigError) as caught:
        build(TrainerSettings, GOOD | change, "file.json")
    message = str(caught.value)
    assert message.startswith("file.json: ")
    assert "\n" not in message
    assert all(word in message for word in words)


def test_a_missing_field_is_named():
    with pytest.raises(ConfigError, match="field 'model' is missing"):
        build(TrainerSettings, {k: v for k, v in GOOD.items() if k != "model"})


def test_assignments_read_values_as_yaml():
    assert parse_assignments(["lr=1e-3", "steps=5", "loophole=null", "arm=vanilla"]) == {
        "lr": 1e-3, "steps": 5, "loophole": None, "arm": "vanilla",
    }  # fmt: skip
    for bad in ("lr", "=3", "a=[1"):
        with pytest.raises(ConfigError, match="--set"):
            parse_assignments([bad])


def test_settings_files(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("name: g\nparallel: 2\n")
    assert build(SandboxSettings, read_settings_file(path)).parallel == 2
    for text in ("- a\n", "{broken"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"s\.yaml"):
            read_settings_file(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_settings_file(tmp_path / "absent.json")


def test_lists_of_fields_follow_their_scopes():
    from common import settings
    from experiments.analysis.comparable import INCIDENTAL
    from experiments.design.presets import NAMED
    from experiments.launch.prepare import OF_THE_MACHINE

    scoped = [settings.fields(settings.TrainerSettings, scope) for scope in settings.Scope]
    assert sum(map(len, scoped)) == len(settings.TrainerSettings.model_fields)
    assert {"probe_bound", "device", "svd_cache", "run_id"} <= INCIDENTAL and not {"lr", "steps", "model"} & INCIDENTAL
    assert {"probe_bound", "checkpoint_every", "run_dir", "steps"} <= settings.RESUMABLE
    assert not {"svd_cache", "v_hack", "seed", "lr", "run_id"} & settings.RESUMABLE
    assert {"arm", "seed", "run_id", "run_dir", "v_hack", "direction"} == NAMED
    assert {"redis_url", "replica", "name", "port", "admin_token_file", "metrics_port"} <= OF_THE_MACHINE
    assert not {"device", "run_dir", "model"} & OF_THE_MACHINE


def every_class():
    return [c for c in vars(settings).values() if isinstance(c, type) and issubclass(c, Settings) and c is not Settings]


def test_every_field_of_every_process_has_one_scope():
    assert {TrainerSettings, SandboxSettings, RedisSettings} <= set(every_class())
    for kind in every_class():
        by_scope = [fields(kind, scope) for scope in Scope]
        assert sum(map(len, by_scope)) == len(kind.model_fields), "no field in two"
        assert frozenset().union(*by_scope) == frozenset(kind.model_fields), "no field in none"


@pytest.mark.parametrize("annotation", [int, Annotated[Science[int], Scope.MACHINE]])
def test_a_class_with_a_field_of_no_scope_or_of_two_cannot_be_made(annotation):
    with pytest.raises(TypeError, match=r"New\.field needs one scope"):
        type("New", (Settings,), {"__annotations__": {"field": annotation}})


def test_what_may_change_on_resuming_is_what_the_scopes_say():
    resumable = fields(TrainerSettings, Scope.MACHINE, Scope.BOOKKEEPING, Scope.PLACE) | {"run_dir", "steps"}
    assert resumable == RESUMABLE
    science = fields(TrainerSettings, Scope.SCIENCE)
    assert science >= {"lr", "steps", "group_size", "eval_problems", "projection", "pairs"} and not science & (
        resumable - {"steps"}
    )


@pytest.mark.parametrize("top_p", [0.95, 0.999, 1e-3])
def test_a_cut_law_is_refused_in_one_line_that_says_why(top_p):
    from experiments.design.plan import plan

    with pytest.raises(ConfigError, match=r"top_p must be 1: .*whole softmax") as caught:
        plan("smoke", "vanilla", 0, {"top_p": top_p})
    assert "\n" not in str(caught.value)
    assert plan("smoke", "vanilla", 0, {"top_p": 1}).trainer.top_p == 1.0
