"""Fixtures of the Lightning tests."""

import pytest

from tests.lightning.twin import FreshProcess


@pytest.fixture(scope="session")
def fresh_process():
    """Another process that trains a case without the forgotten rows."""
    process = FreshProcess()
    yield process
    process.close()
