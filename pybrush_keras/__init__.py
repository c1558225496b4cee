"""PyBrush for Keras."""
