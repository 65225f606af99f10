"""Training of one fold, in one process or distributed."""

from momkd_ray.ray_runtime import environment

environment.set_defaults(environment.COMPUTE)  # before any module here imports PyTorch
