"""Maps of what a model makes of each patch, over the slide: pictures, GeoJSON for QuPath, CSV, cut-out tiles."""

from momkd_ray.ray_runtime import environment

environment.set_defaults(environment.COMPUTE)  # before any module here imports PyTorch
