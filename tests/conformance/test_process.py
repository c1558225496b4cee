"""One process, one framework: what is shared by all adapters is not shown by a mixture of two."""

import importlib
import sys

import pytest

FOREIGN = {
    "lightning": {"keras", "tensorflow", "pybrush_keras"},
    "keras-tensorflow": {"torch", "lightning", "pybrush_lightning"},
    "keras-torch": {"lightning", "pybrush_lightning"},
}


def test_the_adapter_of_this_process_brings_in_no_framework_of_another(adapter_name, request):
    if not all("conformance" in argument for argument in request.config.args):
        pytest.skip("other folders of tests share this process")
    importlib.import_module(f"pybrush_{adapter_name.partition('-')[0]}")
    assert not FOREIGN[adapter_name] & sys.modules.keys()
