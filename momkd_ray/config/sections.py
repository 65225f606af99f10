"""The sections of the configuration: each key with its type, its default, and a description with the default's source.

`docs/configuration.md` is generated from the descriptions (`config/reference.py`), so they are written in Markdown.
"Released" is the value of the authors' released code; "paper" is arXiv 2602.21395.
"""

from momkd_ray.config.data_sections import (
    GENE_SELECTIONS,
    CohortConfig,
    FeaturesConfig,
    FoldsConfig,
    GenesConfig,
    OmicsConfig,
)
from momkd_ray.config.run_sections import ClusterConfig, CompareConfig, RunConfig, TuningConfig, WatchConfig
from momkd_ray.config.store_sections import StoreConfig
from momkd_ray.config.synthetic_section import SyntheticConfig
from momkd_ray.config.training_sections import LossConfig, MemoryConfig, ModelConfig, TrainConfig
from momkd_ray.config.values import Location, Positive, Seed, Share, resolve_location

__all__ = [
    "GENE_SELECTIONS",
    "ClusterConfig",
    "CohortConfig",
    "CompareConfig",
    "FeaturesConfig",
    "FoldsConfig",
    "GenesConfig",
    "Location",
    "LossConfig",
    "MemoryConfig",
    "ModelConfig",
    "OmicsConfig",
    "Positive",
    "RunConfig",
    "Seed",
    "Share",
    "StoreConfig",
    "SyntheticConfig",
    "TrainConfig",
    "TuningConfig",
    "WatchConfig",
    "resolve_location",
]
