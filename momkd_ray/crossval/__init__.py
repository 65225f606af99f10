"""Folds and hyper-parameters: what runs, and what its scores are."""
