"""Cross-validation: folds and settings as Ray Tune trials, the search of settings, thresholds and metrics."""
