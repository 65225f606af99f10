"""Training of one fold, in one process or distributed."""
