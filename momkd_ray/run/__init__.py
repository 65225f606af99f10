"""The run directory and the inputs of a run."""
