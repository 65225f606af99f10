"""Predictions of trained models for new slides, from histology alone."""
