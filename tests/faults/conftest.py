"""Fixtures of the fault campaign."""

from types import SimpleNamespace

import pytest

from tests.core import test_kill
from tests.core.test_fit_and_forget import KEY

memory = test_kill.scratch


@pytest.fixture
def scratch(memory, monkeypatch):
    """A folder in memory, where the system has one; keys that are made there are KEY."""
    monkeypatch.setattr("pybrush.record.secret.secrets", SimpleNamespace(token_bytes=lambda size: KEY[:size]))
    return memory
