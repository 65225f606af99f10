"""The configuration of the generated cohort of a test session."""

from __future__ import annotations

from pathlib import Path

from momkd_ray.config.load import Config


def config_of(cohort: Path, run: Path) -> Config:
    """Two folds of two epochs of a small network on a generated cohort."""
    return Config.model_validate(
        {
            "cohort": {
                "clinical": str(cohort / "clinical.csv"),
                "slides": str(cohort / "slides.csv"),
                "omics": str(cohort / "rna.parquet"),
                "label": "LABEL",
            },
            "features": {"dir": str(cohort / "features")},
            "folds": {"n": 2},
            "genes": {"select": "anova", "n": 10},
            "model": {
                "hidden": 16,
                "heads": 2,
                "shared": 8,
                "omics_hidden": 16,
                "omics_embedding": 16,
                "classifier_hidden": 8,
            },
            "memory": {"components": 4},
            "train": {"epochs": 2, "precision": "fp32"},  # in which results agree between ways to 1e-5
            "run": {"dir": str(run)},
        }
    )
