"""The real jail, once a file."""

import pytest


@pytest.fixture(scope="module")
def runner():
    """Runs programs of the published evaluation."""
    from services.sandbox.jail.executor import Executor
    from services.sandbox.verdicts.published import jailed

    with Executor() as executor:
        yield jailed(executor)
