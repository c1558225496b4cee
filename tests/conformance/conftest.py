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

from tests.conformance.elsewhere import Elsewhere
from tests.conformance.harness import SWITCH, load
from tests.conformance.shelf import Shelf

ON_ONE_BACKEND = {"test_asking.py", "test_evidence.py", "test_queue.py", "test_releases.py", "test_settings.py"}
"""Files that ask nothing of a backend's arithmetic: the short run has them on torch, where no step is compiled."""


@pytest.hookimpl(tryfirst=True)  # before the tests that are marked long are left out
def pytest_collection_modifyitems(items):
    for item in items:
        if ADAPTER == "keras-tensorflow" and item.path.name in ON_ONE_BACKEND:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def adapter_name():
    """The adapter that is tested: "lightning", "keras-tensorflow" or "keras-torch"."""
    return ADAPTER


@pytest.fixture(scope="session")
def framework():
    """The framework that is tested."""
    return load(ADAPTER)


@pytest.fixture(scope="session")
def elsewhere():
    """Other processes, which have seen nothing."""
    found = Elsewhere()
    yield found
    found.close()


@pytest.fixture(scope="session")
def shelf(framework, tmp_path_factory):
    """Records that were fitted once in this process."""
    return Shelf(framework, tmp_path_factory.mktemp("shelf"))


@pytest.fixture(autouse=True)
def nothing_goes_wrong():
    """Each test begins and ends with a switch that is off."""
    SWITCH.set()
    yield
    SWITCH.set()
