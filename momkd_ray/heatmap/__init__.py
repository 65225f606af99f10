"""Heatmaps of each patch's attention, contribution and memory component: pictures, GeoJSON, CSV, cut-out tiles."""

from momkd_ray.ray_runtime import environment

environment.set_defaults(environment.COMPUTE)  # before any module here imports PyTorch
