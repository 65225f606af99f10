"""Histology alone: predictions of trained models."""
