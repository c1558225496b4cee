"""PyBrush for Keras: a callback that makes training forgettable, under every backend of Keras 3.

    model.fit(x, y, epochs=20, callbacks=[SISA(shards=4, slices=3, record="records/faces")])

Importing this package wraps `keras.Model.fit` once; a fit without a SISA callback goes straight through.
"""

from pybrush_keras.export import load_export
from pybrush_keras.patches import attach
from pybrush_keras.replay import replay
from pybrush_keras.sisa import SISA
from pybrush_keras.source import Source
from pybrush_keras.unlearn import unlearn

attach(SISA)

__all__ = ["SISA", "Source", "load_export", "replay", "unlearn"]
