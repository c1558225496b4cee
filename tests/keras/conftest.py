"""Fixtures of the Keras tests, which run in one process for each backend, named by KERAS_BACKEND."""

import os
import sys

import pytest

BACKEND = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
BEFORE = set(sys.modules)
# Under its torch backend Keras itself imports TensorFlow where it can, to seed it too.
FOREIGN = {"tensorflow": {"torch", "lightning"}, "torch": {"lightning"}}[BACKEND] - BEFORE

import keras

ON_ONE_BACKEND = {"test_command.py", "test_conf.py", "test_replay.py"}
"""Files that ask nothing of a backend's arithmetic: the short run has them on torch, where no step is compiled."""


@pytest.hookimpl(tryfirst=True)  # before the tests that are marked long are left out
def pytest_collection_modifyitems(items):
    for item in items:
        if BACKEND == "tensorflow" and item.path.name in ON_ONE_BACKEND and item.path.parent.name == "keras":
            item.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True)
def _fresh():
    """Give each test the same draws, layer names and dtype policy, whatever ran before it."""
    # A collection of garbage takes 0.2 s, which is most of a small test.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_framework_of_another_adapter(request):
    """Fail a session of these tests alone that brought in what only another adapter or backend needs."""
    yield
    if all("keras" in argument for argument in request.config.args):
        found = sorted(FOREIGN & sys.modules.keys())
        assert not found, f"tests on the {BACKEND} backend imported {', '.join(found)}"


@pytest.fixture(scope="session")
def fresh_process():
    """Another process that trains a case without the forgotten rows."""
    from tests.keras.twin import FreshProcess

    process = FreshProcess()
    yield process
    process.close()
