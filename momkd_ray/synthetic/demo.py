"""The configuration of `momkd-ray demo`."""

from __future__ import annotations

from momkd_ray.config.load import Config


def demo_config(out: str) -> Config:
    """Returns the configuration of a generated cohort under `<out>/cohort`, cross-validated in minutes on a laptop."""
    cohort = f"{out}/cohort"
    return Config.model_validate(
        {
            "synthetic": {"dir": cohort},
            "cohort": {
                "clinical": f"{cohort}/clinical.csv",
                "slides": f"{cohort}/slides.csv",
                "omics": f"{cohort}/rna.parquet",
                "label": "LABEL",
            },
            "features": {"dir": f"{cohort}/features"},
            "store": {"uri": f"{out}/bags"},
            "genes": {"n": 64},
            "model": {
                "hidden": 64,
                "shared": 32,
                "dropout": 0.25,
                "omics_hidden": 128,
                "omics_embedding": 64,
                "classifier_hidden": 32,
            },
            "memory": {"components": 8},
            "train": {"epochs": 10, "bags_per_step": 4},
            "run": {"dir": f"{out}/run"},
        }
    )
