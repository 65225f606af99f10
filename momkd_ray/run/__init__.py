"""The run directory and what a run works on."""
