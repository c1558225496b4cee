"""The shipped groups of the configuration, for the tests of each framework: composing, building, listing them."""

import inspect
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).resolve().parents[2] / "conf" / "pybrush"
GROUP_FILES = sorted(path.relative_to(CONF) for path in CONF.glob("*/*.yaml"))
EXPERIMENTS = sorted(path.stem for path in GROUP_FILES if path.parent.name == "experiment")

NOT_OFFERED = {"SISA": {"rebuild_all"}, "Fit": {"callbacks"}}
"""Arguments that this version only takes at their default, and those which the command passes."""


def parts(framework):
    """Return the group files that build something of a framework."""
    return [
        path
        for path in GROUP_FILES
        if path.parent.name not in ("experiment", "framework")
        and ("keras" in path.stem or path.parent.name == "fit") == (framework == "keras")
    ]


def composed(*overrides):
    """Compose what `pybrush train` is run with."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("run", list(overrides))


def nodes(path):
    """Return what a group file describes with a target: itself, or each entry of a group of several."""
    config = OmegaConf.load(CONF / path)
    return [config] if "_target_" in config else [node for node in config.values() if isinstance(node, DictConfig)]


def check_options(path):
    """Check that a group file gives every option of our own classes and functions, and no other."""
    for node in nodes(path):
        target = get_object(node["_target_"])
        options = set(inspect.signature(target).parameters) - NOT_OFFERED.get(target.__name__, set())
        given = set(node) - {"_target_"}
        assert given <= options
        assert given == options or not target.__module__.startswith("pybrush")
