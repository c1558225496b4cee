"""From words on a command line and YAML to settings and objects; with `pybrush.commands` all that names Hydra.

The configuration in conf/pybrush is composed here, and that of a record is read, its targets checked.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pybrush
from pybrush.adapters import adapter_named
from pybrush.errors import ConfigurationError
from pybrush.plan.forecast import Sizes
from pybrush.record import Record
from pybrush.replay import Replay
from pybrush.result import UnlearnResult
from pybrush.settings import check_words, quoted
from pybrush.trust import Trust, check_targets

if TYPE_CHECKING:
    from omegaconf import DictConfig

S = TypeVar("S")

CONFIG = "config.yaml"
"""Where `train` leaves the composed configuration, in the record."""

PARTS = ("model", "data", "callbacks")
"""The groups of a training in any framework; with the group of the adapter's runner all of them."""

_OF_ONE_FRAMEWORK = "model, data, callbacks and experiment must be of the framework that is chosen (framework=NAME)"


class CommandAdapter(Protocol):
    """What the command asks of the adapter of a framework.

    A `runner` is what a framework trains with and gives its callbacks to, built from a group of the configuration.

    Attributes:
        runner: the name of that group.
        trusted: modules from which a record's configuration may build objects without being asked about.
        distrusted: modules among them from which it may not.
        builders: functions that it may call, by their full names.
    """

    runner: str
    trusted: Sequence[str]
    distrusted: Sequence[str]
    builders: Sequence[str]

    def claims(self, model: Any) -> int:
        """Return how specifically the adapter knows a model; 0 for not at all."""

    def begin(self, seed: int) -> None:
        """Seed everything, before anything is built."""

    def fit(self, runner: Any, model: Any, data: Any) -> None:
        """Train, leaving a record."""

    def test(self, runner: Any, model: Any, data: Any) -> Mapping[str, float]:
        """Evaluate what was trained."""

    def sizes(self, runner: Any, model: Any, data: Any) -> Sizes:
        """Return what a training that was built would be made for, without training."""

    def unlearn(self, runner: Any, model: Any, data: Any, request: Mapping[str, Any]) -> UnlearnResult:
        """Serve a request."""

    def replay(self, runner: Any, model: Any, data: Any, request: Mapping[str, Any]) -> Replay:
        """Train stages again and compare."""

    def script(self, record: Record, reading: str, request: Mapping[str, str]) -> str:
        """Return Python lines that serve a request on a record made by a script."""

    def replay_script(self, record: Record, request: Mapping[str, str]) -> str:
        """Return Python lines that replay stages of a record made by a script."""


def command_adapter(name: str) -> CommandAdapter:
    """Return an installed adapter by its name (see `pybrush.adapters.adapter_named`)."""
    adapter: CommandAdapter = adapter_named(name)
    return adapter


def settings_of(command: str, words: Sequence[str], shape: type[S]) -> S:
    """Compose the settings of a command that is no Hydra job, so that nothing of them is written to disk.

    Raises:
        ConfigurationError: for words that are no settings; their values are not repeated.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    path = conf_folder() / f"{command}.yaml"
    if set(words) & {"-h", "--help"}:
        sys.stdout.write(f"usage: pybrush {command} [KEY=VALUE] ...\n\n{path.read_text(encoding='utf-8')}")
        raise SystemExit(0)
    check_words(words, OmegaConf.to_container(OmegaConf.load(path)))
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = compose(command, [quoted(word) for word in words])
    for name in ("record", "to"):  # where one is needed, its file says ???
        if OmegaConf.is_missing(composed, name):
            which = "which record" if name == "record" else "where to"
            raise ConfigurationError(f"say {which}: pybrush {command} {name}=FOLDER.")
    typed = OmegaConf.structured(shape)
    # Made of frozen dataclasses it is read-only, group by group; the checks of types are what we want of it.
    groups = [
        typed[name] for name in typed if not OmegaConf.is_missing(typed, name) and OmegaConf.is_config(typed[name])
    ]
    for node in (typed, *groups):
        OmegaConf.set_readonly(node, False)
    settings: S = OmegaConf.to_object(OmegaConf.merge(typed, composed))  # type: ignore[assignment]
    return settings


def composed(words: Sequence[str]) -> DictConfig:
    """Compose what `pybrush train` would be run with, without a Hydra job.

    Raises:
        ConfigurationError: for options of Hydra's own, which belong to a job.
    """
    from hydra import compose, initialize_config_dir

    options = [word for word in words if word.startswith("-")]
    if options:
        raise ConfigurationError(
            f"{options[0]} is not for this command, which composes one training: KEY=VALUE only. Groups of your own "
            "are found with 'hydra.searchpath=[file:///path/to/folder]'."
        )
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("run", list(words))


def build(config: DictConfig, adapter: CommandAdapter) -> tuple[Any, Any, Any]:
    """Return runner, model and data as the configuration has them.

    Raises:
        ConfigurationError: where a part is missing, or the model is not one of the adapter's framework.
    """
    from hydra.utils import instantiate

    absent = [name for name in (*PARTS, adapter.runner) if config.get(name) is None]
    if absent:
        raise ConfigurationError(f"{_OF_ONE_FRAMEWORK}: adapter={config.adapter} and no {', '.join(absent)}.")
    adapter.begin(config.seed)
    data = instantiate(config.data, _convert_="all")
    model = instantiate(config.model, _convert_="all")
    if not adapter.claims(model):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise ConfigurationError(f"{_OF_ONE_FRAMEWORK}: adapter={config.adapter} does not train a {kind}.")
    callbacks = instantiate(config.callbacks, _convert_="all")
    # A partial, because objects that are passed through `instantiate` may be copied.
    make = instantiate(config[adapter.runner], _partial_=True, _convert_="all")
    return make(callbacks=[callback for callback in callbacks.values() if callback is not None]), model, data


def stored_config(record: Record, adapter: CommandAdapter, allowed: Sequence[str]) -> DictConfig:
    """Return the configuration in a record, its targets checked, its callback pointed to where the record lies."""
    from hydra.utils import get_object
    from omegaconf import DictConfig, OmegaConf

    path = record.folder / CONFIG
    config = OmegaConf.load(path)
    parts = (*PARTS, adapter.runner)
    if not isinstance(config, DictConfig) or any(config.get(name) is None for name in parts):
        raise ConfigurationError(f"{path} must have {', '.join(parts)}; restore the file that `pybrush train` wrote.")
    trust = Trust(["pybrush", *adapter.trusted], adapter.distrusted, allowed, adapter.builders)
    check_targets(OmegaConf.to_container(config, resolve=True), path, trust, get_object)
    record_keeper(config).record = str(record.folder)
    return config


def record_keeper(config: DictConfig) -> DictConfig:
    """Return the configuration of the one callback that keeps a record.

    Raises:
        ConfigurationError: where none or several do, and for ids that would be written down with it.
    """
    nodes = [node for node in (config.get("callbacks") or {}).values() if node is not None and "record" in node]
    if len(nodes) != 1:
        raise ConfigurationError(
            f"the command needs one callback that keeps a record, as callbacks=sisa; got {len(nodes)}."
        )
    for name in ("ids", "subjects", "times"):
        if isinstance(nodes[0].get(name), Sequence) and not isinstance(nodes[0].get(name), str):
            raise ConfigurationError(
                f"{name} of the callback lists {len(nodes[0][name])} entries, and a configuration is stored where no "
                "request erases it. Give the data set such a column and name the column."
            )
    keeper: DictConfig = nodes[0]
    return keeper


def conf_folder() -> Path:
    """Return the folder of our own configuration: in an installed wheel, or in a checkout."""
    package = Path(pybrush.__file__).resolve().parent
    installed = package / "conf"
    return (installed if installed.is_dir() else package.parent / "conf") / "pybrush"
