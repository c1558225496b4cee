"""Fixtures of the core's tests."""

import shutil

import pytest

from tests.core.small_record import IDS, N, made
from tests.core.test_fit_and_forget import data


@pytest.fixture(scope="session")
def fitted_once(tmp_path_factory):
    """The folder of a fitted record of thirty ids, to be copied."""
    return made(tmp_path_factory.mktemp("fitted") / "record", data(N), IDS)


@pytest.fixture
def folder(fitted_once, tmp_path):
    """The folder of a fitted record of thirty ids."""
    shutil.copytree(fitted_once, tmp_path / "record")
    return tmp_path / "record"
