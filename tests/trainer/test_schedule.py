"""Learning rates by hand."""

import pytest

from common.errors import ConfigError
from common.settings import TrainerSettings, build
from services.trainer.schedule import learning_rate

BASE = {"run_id": "r", "run_dir": "x", "model": "m", "train_problems": "a", "heldout_problems": "b"}


@pytest.mark.parametrize(
    ("schedule", "warmup", "want"),
    [
        ("constant", 0, [0.4] * 6),
        ("constant", 2, [0.2, 0.4, 0.4, 0.4, 0.4, 0.4]),
        ("linear", 2, [0.2, 0.4, 0.4, 0.3, 0.2, 0.1]),
        ("cosine", 2, [0.2, 0.4, 0.4, 0.2 * (1 + 0.5**0.5), 0.2, 0.2 * (1 - 0.5**0.5)]),
        ("linear", 9, [0.4 * k / 9 for k in range(1, 7)]),
    ],
)
def test_rates_of_six_steps(schedule, warmup, want):
    s = build(TrainerSettings, BASE | {"steps": 6, "lr": 0.4, "lr_schedule": schedule, "lr_warmup_steps": warmup})
    assert [learning_rate(s, k) for k in range(6)] == pytest.approx(want)


def test_a_cap_below_the_clip_is_refused():
    with pytest.raises(ConfigError, match="ratio_cap must be above"):
        build(TrainerSettings, BASE | {"ratio_cap": 1.15}, "trainer")
