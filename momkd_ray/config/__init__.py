"""The configuration: a tree of typed sections, read from YAML and refused with a sentence where it is wrong."""

from momkd_ray.config.load import Config, load_config

__all__ = ["Config", "load_config"]
