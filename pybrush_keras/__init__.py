"""PyBrush for Keras: `SISA` in the callbacks of `model.fit`, then `sisa.unlearn(...)`."""
