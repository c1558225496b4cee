"""Finding an adapter: who is asked about a model, who wins, and what is imported on the way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pybrush.adapters import adapter_named, adapter_of
from pybrush.errors import MissingExtraError, UnsupportedError

ROOT = Path(__file__).parents[2]


class Installed:
    """A folder on sys.path, to install small frameworks and adapters into."""

    def __init__(self, folder):
        self.folder = folder

    def framework(self, name):
        """Install a package whose models are of a class of one of its modules."""
        (self.folder / name).mkdir()
        (self.folder / name / "__init__.py").write_text(f"from {name}.models import Model\n")
        (self.folder / name / "models.py").write_text("class Model: ...\n")

    def adapter(self, module, *packages, source="import {0}", claim=1):
        """Install the adapter of some packages as a distribution of its own."""
        body = source.format(*packages) + f"\nclass Adapter:\n    def claims(self, model): return {claim}\n"
        (self.folder / f"{module}.py").write_text(body)
        about = self.folder / f"{module}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        lines = [f"{package} = {module}:Adapter\n" for package in packages]
        (about / "entry_points.txt").write_text("[pybrush.adapters]\n" + "".join(lines))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder on sys.path whose modules are forgotten after the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield Installed(tmp_path)
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def model_of(*packages):
    """Return an instance of a user's class that derives from the Model of some packages."""
    bases = tuple(__import__(package).Model for package in packages)
    return type("Mine", bases, {"__module__": "__main__"})()


def test_a_model_finds_the_adapter_of_the_package_that_its_class_derives_from(installed):
    for name in ("red", "blue"):
        installed.framework(name)
        installed.adapter(f"adapter_of_{name}", name)
    assert type(adapter_of(model_of("red"))).__module__ == "adapter_of_red"
    assert type(adapter_of(model_of("blue"))).__module__ == "adapter_of_blue"


def test_an_adapter_of_another_package_is_not_imported_installed_or_not(installed):
    for name in ("red", "blue"):
        installed.framework(name)
        installed.adapter(f"adapter_of_{name}", name)
    installed.adapter("adapter_of_nothing", "green")
    adapter_of(model_of("red"))
    assert "adapter_of_red" in sys.modules
    assert not {"blue", "adapter_of_blue", "green", "adapter_of_nothing"} & sys.modules.keys()


def test_an_adapter_that_fails_to_be_imported_is_not_passed_over(installed):
    installed.framework("red")
    installed.adapter("adapter_of_red", "red", source="import a_module_that_{0}_forgot")
    with pytest.raises(ImportError, match="a_module_that_red_forgot"):
        adapter_of(model_of("red"))


def test_of_two_adapters_the_one_that_knows_the_model_better_is_taken(installed):
    for name, claim in (("red", 1), ("blue", 2)):
        installed.framework(name)
        installed.adapter(f"adapter_of_{name}", name, claim=claim)
    assert type(adapter_of(model_of("red", "blue"))).__module__ == "adapter_of_blue"


def test_two_adapters_that_know_a_model_alike_are_an_error_that_names_both(installed):
    for name in ("red", "blue"):
        installed.framework(name)
        installed.adapter(f"adapter_of_{name}", name)
    with pytest.raises(UnsupportedError, match=r"Mine is claimed by (blue, red|red, blue);"):
        adapter_of(model_of("red", "blue"))


def test_an_adapter_of_two_packages_claims_a_model_of_both_once(installed):
    installed.framework("red")
    installed.framework("blue")
    installed.adapter("adapter_of_colours", "red", "blue")
    assert type(adapter_of(model_of("red", "blue"))).__module__ == "adapter_of_colours"


@pytest.mark.parametrize("claim", [0, None], ids=["its adapter declines", "it has no adapter"])
def test_a_model_that_nobody_claims_is_told_whose_models_are_known(installed, claim):
    installed.framework("red")
    installed.framework("blue")
    installed.adapter("adapter_of_colours", "red" if claim == 0 else "blue", claim=0)
    with pytest.raises(UnsupportedError, match=r"Mine is claimed by none; .* models of .*lightning"):
        adapter_of(model_of("red"))


def test_an_adapter_that_is_asked_for_by_name_and_cannot_be_imported_names_its_extra(installed):
    installed.adapter("adapter_of_nothing", "green")
    with pytest.raises(MissingExtraError, match=r"No module named 'green'.*pip install 'pybrush\[green\]'"):
        adapter_named("green")
    with pytest.raises(MissingExtraError, match=r"not installed: pip install 'pybrush\[violet\]'"):
        adapter_named("violet")


@pytest.mark.parametrize(
    ("adapter", "others"),
    [
        ("pybrush_keras", {"torch", "lightning", "pytorch_lightning", "torchmetrics", "pybrush_lightning", "hydra"}),
        ("pybrush_lightning", {"keras", "tensorflow", "pybrush_keras", "hydra"}),
    ],
)
def test_importing_an_adapter_brings_in_its_own_framework_alone(adapter, others):
    program = f"import sys, {adapter}; print(*sorted({others} & set(sys.modules)))"
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr
