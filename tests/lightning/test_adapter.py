"""The core finds the adapter of Lightning's modules, of both packages, and no other adapter on the way."""

import sys

import pytest
from torch import nn

from pybrush.adapters import adapter_named, adapter_of
from pybrush.errors import UnsupportedError
from pybrush_lightning.adapter import LightningAdapter
from tests.lightning.models import Net, OtherNet


@pytest.mark.parametrize("make", [Net, OtherNet])
def test_a_module_of_either_package_finds_it_where_keras_is_not_installed(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    assert type(adapter_of(make())) is LightningAdapter
    assert "pybrush_keras" not in sys.modules


def test_the_name_in_records_finds_it():
    assert type(adapter_named("lightning")) is LightningAdapter


def test_a_module_of_torch_alone_is_nobodys():
    with pytest.raises(UnsupportedError, match=r"Linear is claimed by none; .* models of keras, lightning, pytorch_l"):
        adapter_of(nn.Linear(1, 1))
