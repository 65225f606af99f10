"""Cross-validation: folds and settings as Ray Tune trials, the search of settings, thresholds and metrics."""

from momkd_ray.ray_runtime import environment

environment.set_defaults(environment.COMPUTE)  # before any module here imports PyTorch
