"""Intervals and tests for comparing classifiers on the same patients; knows nothing of models or runs."""
