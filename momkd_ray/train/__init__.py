"""One fold, in one process or distributed."""
