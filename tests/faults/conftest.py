"""Fixtures of the fault campaign."""

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.core.test_fit_and_forget import KEY


@pytest.fixture
def scratch(monkeypatch):
    """A folder in memory, where the system has one; keys that are made there are KEY."""
    monkeypatch.setattr("pybrush.record.secret.secrets", SimpleNamespace(token_bytes=lambda size: KEY[:size]))
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)
