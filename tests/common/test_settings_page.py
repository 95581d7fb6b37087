"""docs/settings.md is made from the settings, whole and up to date."""

from pathlib import Path

from common import settings_page
from common.settings import RefServerSettings, SandboxSettings, TrainerSettings

ROOT = Path(__file__).resolve().parents[2]


def test_every_field_has_a_meaning_and_every_meaning_a_field():
    named = {name for kind in (TrainerSettings, RefServerSettings, SandboxSettings) for name in kind.model_fields}
    assert set(settings_page.MEANINGS) == named


def test_the_page_is_up_to_date():
    assert (ROOT / "docs/settings.md").read_text() == settings_page.page() + "\n", (
        "run `python -m common.settings_page > docs/settings.md`"
    )


def test_the_page_says_type_bound_default_and_scope():
    page = settings_page.page()
    assert "| `lr` | float, > 0 | " in page and "| `seed` | int, ≥ 0 | `0` | name |" in page
    assert "| `dtype` | float32 / bfloat16 | `float32` | science |" in page
    assert all(line.count("|") == 6 for line in page.splitlines() if line.startswith("| `"))
