"""The project's own code: it knows nothing of PyBrush."""
