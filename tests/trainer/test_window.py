"""In which steps an arm intervenes."""

import pytest
from pydantic import ValidationError

from common.settings import TrainerSettings
from services.trainer.window import intervenes

BASE = {"run_id": "r", "run_dir": "x", "model": "m", "train_problems": "a", "heldout_problems": "b",
        "projection": "one_sided", "direction": "random"}  # fmt: skip


def steps(rates, **more):
    s = TrainerSettings(**BASE, **more)
    return [k for k in range(len(rates)) if intervenes(s, k, rates[: k + 1])]


def test_without_a_window_every_step():
    assert steps([0.0, 1.0, 0.5]) == [0, 1, 2]


def test_until_is_exclusive_and_blind_to_hacks():
    assert steps([1.0] * 6, project_until=2) == [0, 1]


def test_from_starts_in_the_step_that_completes_the_window_and_never_stops():
    #        mean of the last five: -    -    -    -    .16  .25  .25  0.2
    assert steps([0.0, 0.0, 0.0, 0.5, 0.3, 0.45, 0.0, 0.0, 0.0], project_from=0.25) == [5, 6, 7, 8]
    assert steps([1.0] * 4, project_from=0.25) == [], "fewer than five steps are no window"
    assert steps([0.0, 0.0, 0.0, 0.0, 1.0, 0.0], project_from=0.25) == [], "one bad step is not a trend"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"project_until": 3, "project_from": 0.5}, "excludes project_from"),
        ({"project_until": 3, "projection": "off"}, "nothing to switch"),
        ({"projection": "setpoint"}, "needs the field dose, above 0"),
        ({"projection": "leash", "dose": -0.1}, "greater than or equal to 0"),
        ({"orthogonal": True}, "needs a direction and the field v_ref"),
    ],
)
def test_settings_that_cannot_be_meant(more, message):
    with pytest.raises(ValidationError, match=message):
        TrainerSettings(**(BASE | more))
