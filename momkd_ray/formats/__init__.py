"""Readers of feature files, one per format."""
