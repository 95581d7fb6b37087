"""The compose file, resolved once, and a short scratch folder."""

import shutil
import tempfile
from pathlib import Path

import pytest
from compose_tool import PROFILES, compose_config


@pytest.fixture(scope="session")
def everything():
    """All services of all profiles."""
    return compose_config(PROFILES)


@pytest.fixture
def short_tmp():
    """A folder whose path is short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="rs-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
