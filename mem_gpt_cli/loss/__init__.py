"""The loss of a training step, and what it costs."""
