"""The global random generators that user code draws from: seeding them, and leaving them as they were.

Those of Python and NumPy are known here; an adapter adds those of its framework, and all of them are one
`Randomness` from then on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Randomness:
    """The global generators of Python, NumPy and a framework.

    Attributes:
        framework: the name under which users know its generators, for messages.
        seed: seeds those of the framework from 64 bits.
        read: returns their state.
        write: puts them back into a state that `read` returned.

    Example:
        >>> own = Randomness("nothing", seed=lambda seed: None, read=lambda: None, write=lambda state: None)
        >>> with own.kept():
        ...     own.seed_all(5)
        ...     first = np.random.rand()
        >>> with own.kept():
        ...     own.seed_all(5)
        ...     first == np.random.rand()
        True
    """

    framework: str
    seed: Callable[[int], None]
    read: Callable[[], Any]
    write: Callable[[Any], None]

    @property
    def names(self) -> str:
        """Whose generators they are, as messages say it."""
        return f"random, numpy and {self.framework}"

    def seed_all(self, seed: int) -> None:
        """Seed all of them from 64 bits; NumPy takes the low half."""
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 (user code draws from the global generator)
        self.seed(seed)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Save all of them, and restore them at the end."""
        python, numpy, own = random.getstate(), np.random.get_state(), self.read()  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            self.write(own)
