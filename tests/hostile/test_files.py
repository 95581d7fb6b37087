"""Files from elsewhere (problems, pairs, settings): wholly good, or one line that names the file; no crash, no hang."""

import gzip
import json
import time

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from common.settings import (
    RefServerSettings,
    SandboxSettings,
    TrainerSettings,
    build,
    parse_assignments,
    read_settings_file,
)
from rankspace import RankspaceError
from rankspace.pairs import load_pairs
from tasks.dataset import load_problems
from tests.samples import PROBLEM

GOOD = PROBLEM.model_dump()
PAIR = {
    "id": "a",
    "problem_id": 1,
    "prompt": [{"role": "user", "content": "x"}],
    "hack": "h",
    "clean": "c",
    "split": "train",
}
LOADERS = {"problems": load_problems, "pairs": load_pairs}
LIMIT_S = 10.0

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
NESTED = lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=8), x, max_size=4)  # noqa: E731
ANY = st.recursive(SCALARS, NESTED, max_leaves=12)


def load(loader, path):
    """Rows, or the one line that says what is wrong with the file."""
    started = time.monotonic()
    try:
        return LOADERS[loader](path)
    except (ConfigError, RankspaceError) as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        assert len(str(error)) < 2000
        return None
    finally:
        assert time.monotonic() - started < LIMIT_S


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("files") / "rows.jsonl"


fuzz = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("loader", LOADERS)
@fuzz
@given(data=st.binary(max_size=400))
def test_any_bytes(path, loader, data):
    path.write_bytes(data)
    load(loader, path)


@pytest.mark.parametrize("loader", LOADERS)
@fuzz
@given(field=st.sampled_from(sorted(GOOD | PAIR)), value=ANY, drop=st.booleans())
def test_a_good_row_with_one_field_changed(path, loader, field, value, drop):
    row = dict(GOOD if loader == "problems" else PAIR)
    row[field] = value
    if drop:
        del row[field]
    path.write_text(json.dumps(row) + "\n")
    load(loader, path)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("text", [
    "[" * 200_000, '{"a":' * 100_000, "9" * 6000, '{"id": ' + "9" * 6000 + "}", '"' + "\\ud800" * 10 + '"', "\x00" * 1000, "nul",
    '{"id": NaN}', "{}\n" * 1000, '{"id": 1e999}', '{"id": "\\ud800"}', "\ufeff{}", '{"prompt": ' + "[" * 5000 + "]" * 5000 + "}",
], ids=range(13))  # fmt: skip
def test_texts_that_break_parsers(path, loader, text):
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    assert load(loader, path) is None


@pytest.mark.parametrize("loader", LOADERS)
def test_surrogates_and_five_megabytes_in_a_row(path, loader):
    row = GOOD if loader == "problems" else PAIR
    for text in ("\ud800", "\udcff" * 100, "x" * 5_000_000, "`" * 1_000_000, "\x00"):
        changed = row | {"prompt": [{"role": "user", "content": text}]}
        path.write_text(json.dumps(changed) + "\n")
        load(loader, path)


@pytest.mark.parametrize("loader", ["problems", "pairs"])
@fuzz
@given(data=st.binary(max_size=200), cut=st.integers(0, 60))
def test_damaged_gzip(tmp_path_factory, loader, data, cut):
    path = tmp_path_factory.getbasetemp() / "rows.jsonl.gz"
    for content in (data, gzip.compress(json.dumps(GOOD).encode())[:cut], b"\x1f\x8b" + data):
        path.write_bytes(content)
        load(loader, path)


@pytest.mark.parametrize("loader", LOADERS)
def test_what_is_no_file(tmp_path, loader):
    assert load(loader, tmp_path) is None
    assert load(loader, tmp_path / "absent") is None


# ---- settings ---------------------------------------------------------------------------------------------------

KINDS = (TrainerSettings, RefServerSettings, SandboxSettings)
FIELDS = sorted({name for kind in KINDS for name in kind.model_fields})


@fuzz
@given(data=st.binary(max_size=300) | st.text(max_size=300).map(lambda t: t.encode("utf-8", "replace")))
def test_any_settings_file(path, data):
    path.write_bytes(data)
    try:
        assert isinstance(read_settings_file(path), dict)
    except ConfigError as error:
        assert str(path) in str(error) and "\n" not in str(error)


BOMB = "a0: &a0 x\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['true']", "[" * 50_000, "&a [*a]", "? {a: b}\n: c", "{1: 2}",
                                  "{[1]: 2}", "a: !!binary '='", "a: 2024-99-99", BOMB], ids=range(9))  # fmt: skip
def test_settings_files_that_break_parsers(path, text):
    path.write_text(text)
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        build(SandboxSettings, read_settings_file(path), str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert time.monotonic() - started < LIMIT_S


@fuzz
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=10), ANY, max_size=6))
def test_any_values(values):
    for kind in KINDS:
        try:
            assert isinstance(build(kind, values), kind)
        except ConfigError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000


@fuzz
@given(st.lists(st.text(max_size=40), max_size=4))
def test_any_assignment(items):
    try:
        assert isinstance(parse_assignments(items), dict)
    except ConfigError as error:
        assert str(error).startswith("--set")


def test_yaml_is_only_ever_read_safely():
    with pytest.raises(ConfigError):
        parse_assignments(["a=!!python/name:os.system"])
    assert yaml.safe_load("a: 1") == {"a": 1}
