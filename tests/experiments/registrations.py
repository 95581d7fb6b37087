"""A registration of doses, with the measures that these tests share; arms, cells and claims are the test's own."""

from __future__ import annotations

from pathlib import Path

import yaml


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
