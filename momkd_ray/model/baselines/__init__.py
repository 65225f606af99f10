"""Baselines to compare MoMKD with, behind the same interface: one file each, written from the papers' equations."""
