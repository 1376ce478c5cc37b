"""One training loop, its optimiser, checkpoints and recovery, on Ray Train."""
