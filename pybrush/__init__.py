"""PyBrush: machine unlearning that can be believed."""
