"""Predictions of trained models for new slides, from histology alone."""

from momkd_ray.ray_runtime import environment

environment.set_defaults(environment.COMPUTE)  # before any module here imports PyTorch
