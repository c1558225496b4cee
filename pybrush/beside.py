"""What training must leave as it is, since no stage stores it: read before a stage, and compared after it."""

from __future__ import annotations

from dataclasses import dataclass

from pybrush.attributes import check_opaque
from pybrush.hidden import Digests, check_generators, found_changed
from pybrush.randomness import Randomness
from pybrush.readings import check_unchanged


@dataclass(frozen=True)
class Beside:
    """Digests of what no stage stores.

    Attributes:
        opaque: attributes and hyperparameters.
        rows: some rows of the training data; None where they cannot be compared.
        generators: random generators beside the global ones.
        values: variables of the user's functions and classes.
    """

    opaque: dict[str, str]
    rows: str | None
    generators: Digests
    values: Digests

    def check(self, after: Beside, randomness: Randomness, remedy: str) -> list[dict[str, str]]:
        """Refuse what a stage may not change, and return an assumption for each other change.

        Args:
            after: the same, read after the stage.
            randomness: the global generators.
            remedy: where the framework's users keep state that a stage must store.

        Raises:
            TrainingError: naming what changed.
        """
        check_opaque(self.opaque, after.opaque, remedy)
        check_generators(self.generators, after.generators, randomness)
        check_unchanged(self.rows, after.rows)
        return found_changed(self.values, after.values)
