"""Which adapter this process tests: PYBRUSH_ADAPTER names it, since two frameworks do not share a process."""

import os

import pytest

ADAPTERS = ("lightning", "keras-tensorflow", "keras-torch")
ADAPTER = os.environ.setdefault("PYBRUSH_ADAPTER", "lightning")
if ADAPTER not in ADAPTERS:
    raise pytest.UsageError(f"PYBRUSH_ADAPTER is {ADAPTER!r}; expected one of {', '.join(ADAPTERS)}.")

PACKAGE, _, BACKEND = ADAPTER.partition("-")
if BACKEND:
    # Keras reads it when it is imported.
    os.environ["KERAS_BACKEND"] = BACKEND


@pytest.fixture(scope="session")
def adapter_name():
    """The adapter that is tested: "lightning", "keras-tensorflow" or "keras-torch"."""
    return ADAPTER
