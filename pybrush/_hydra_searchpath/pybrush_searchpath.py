"""Lets any Hydra application compose the groups of PyBrush, as in `defaults: [pybrush/method: sisa]`.

It is installed as `hydra_plugins/pybrush_searchpath.py`, the place where Hydra looks for plug-ins by
itself, and appends the folder that holds the group `pybrush`: `pybrush/conf` in an installed wheel,
`conf` in a checkout. Appended, so that a user's own file of the same name comes first.
"""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

import pybrush


class PyBrushSearchPath(SearchPathPlugin):
    """Appends PyBrush's configuration folder to the search path of the running application."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder; Hydra itself warns where it does not exist."""
        search_path.append(provider="pybrush", path=f"file://{_conf_root()}")


def _conf_root() -> Path:
    """Return the folder that holds the group `pybrush`."""
    package = Path(pybrush.__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"
