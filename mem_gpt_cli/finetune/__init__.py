"""Fine-tuning: the training step that the lenses look at, with data, checkpoints and a result."""
