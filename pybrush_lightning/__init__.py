"""PyBrush for Lightning: `SISA` in the callbacks, then `trainer.unlearn(...)`.

Importing this package gives every Trainer `unlearn` (see `pybrush_lightning.unlearn`).
"""

from pybrush_lightning import codec as _codec
from pybrush_lightning.export import load_export
from pybrush_lightning.replay import replay
from pybrush_lightning.sisa import SISA
from pybrush_lightning.unlearn import Trainer, attach, unlearn

_codec.register()
attach()

__all__ = ["SISA", "Trainer", "load_export", "replay", "unlearn"]
