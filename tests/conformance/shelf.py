"""Records that are fitted once: to be copied and asked, or to be compared with."""

import shutil
from pathlib import Path

from tests.conformance.harness import Framework, Setup, Table, table


class Shelf:
    """Fits each setup with each set of rows once.

    Args:
        framework: what is tested.
        folder: an empty folder.
    """

    def __init__(self, framework: Framework, folder: Path):
        self._framework, self._folder = framework, folder
        self._held: dict[tuple, Path] = {}

    def fitted(self, setup: Setup, rows: Table | None = None) -> Path:
        """Return the folder of a fit, which nobody may change."""
        rows = table() if rows is None else rows
        named = setup, rows.ids, rows.subjects, rows.days, rows.x.tobytes(), rows.y.tobytes()
        if named not in self._held:
            folder = self._folder / str(len(self._held))
            folder.mkdir()
            self._framework.training(folder, setup, rows).fit()
            self._held[named] = folder
        return self._held[named]

    def copy(self, folder: Path, setup: Setup, rows: Table | None = None) -> Path:
        """Copy the record of a fit, to be changed; return the folder."""
        shutil.copytree(self.fitted(setup, rows) / "record", folder / "record")
        keys = self.fitted(setup, rows) / "record.keys"
        if keys.exists():
            shutil.copytree(keys, folder / "record.keys")
        return folder
