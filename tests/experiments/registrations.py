"""Registrations that several tests share: of doses, whose arms, cells and claims are the test's own, and of the alarm."""

from __future__ import annotations

from pathlib import Path

import yaml

from experiments.design import alarm_registration


def registered(arms: dict, cells: dict, claims: dict, onset_window: int = 5) -> dict:
    """The values of a registration file: four steps of the preset demo."""
    return {
        "version": 2,
        "measures": {
            "window_steps": 25, "window_share": 0.25, "onset_window": onset_window, "onset_pp": 10,
            "definitions": {"hack": "strict"},
        },
        "outcomes": {
            "hack_pp": 10, "sensitivity_hack_pp": [5], "bare_mode": "no_hint", "bare_drop_pp": 30, "truncated_pp": 50
        },
        "diagnostics": {"cos_above": 0.2, "fired_above": 0.4, "first_steps": None},
        "design": {
            "preset": "demo", "steps": 4, "failed_counts_as_collapsed": True, "arms": arms, "cells": cells
        },
        "claims": claims,
    }  # fmt: skip


def write_registration(folder: Path, values: dict) -> Path:
    """As a file in `folder`."""
    path = folder / "doses.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


SEEDS = [10, 11]
DOSES = registered(
    arms={"leash": SEEDS, "far": SEEDS, "projected_from": SEEDS},
    cells={"far": {"arm": "setpoint", "settings": {"dose": 0.5}}},
    claims={"trend": {"kind": "dose_trend", "claim": "further is safer", "ladder": ["leash", "far"]}},
    onset_window=2,
)


def small_alarm(folder: Path, **changes: object) -> Path:
    """The registration on six-step runs named as synthetic_runs names them, at a rate that few runs allow."""
    values = yaml.safe_load(alarm_registration.PATH.read_text())
    setting = {
        "preset": "demo", "steps": 6, "claims": True,
        "clean": [{"arm": "no_loophole", "name": "demo", "seeds": [0, 19]}],
        "hacking": [{"arm": "vanilla", "name": "demo", "seeds": [0, 4]}],
    }  # fmt: skip
    values |= {"false_alarm_rate": 0.2, "least_runs": 4, "settings": {"tiny": setting}} | changes
    path = folder / "alarm.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path
