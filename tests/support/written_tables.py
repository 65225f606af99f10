"""Small tables written for a test, the configuration that names them, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from momkd_ray.cohort.cohort import Cohort, load_cohort
from momkd_ray.config.load import Config
from momkd_ray.errors import InputError

CLINICAL = "PATIENT,PR\nP2,negative\nP1,positive\nP3,positive\nP4,negative\n"
SLIDES = "PATIENT,FILENAME\nP1,S1.h5\nP2,S2.h5\nP3,S3.h5\nP4,S4.h5\n"
OMICS = "PATIENT,A,B\nP3,3,30\nP1,1,10\n"


def config_for(folder: Path, **sections: dict[str, Any]) -> Config:
    cohort = {"clinical": str(folder / "clinical.csv"), "slides": str(folder / "slides.csv"), "label": "PR"}
    tree = {"cohort": cohort | sections.pop("cohort", {}), "features": {"dir": "/features"}} | sections
    return Config.model_validate(tree)


def write(folder: Path, clinical: str = CLINICAL, slides: str = SLIDES, omics: str | None = None) -> Config:
    (folder / "clinical.csv").write_text(clinical)
    (folder / "slides.csv").write_text(slides)
    if omics is None:
        return config_for(folder)
    (folder / "omics.csv").write_text(omics)
    return config_for(folder, cohort={"omics": str(folder / "omics.csv")})


def fails(config: Config, *fragments: str) -> str:
    with pytest.raises(InputError) as caught:
        load_cohort(config)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message
    return message


def reasons(cohort: Cohort) -> dict[tuple[str, str], str]:
    return {(row.kind, row.id): row.reason for row in cohort.excluded.itertuples()}


def cohort_of(labels: Sequence[int], order: Sequence[int] | None = None) -> Cohort:
    names = [f"P{i:04d}" for i in range(len(labels))]
    patients = pd.DataFrame(
        {"label": [("neg", "pos")[y] for y in labels], "y": list(labels)},
        index=pd.Index(names, name="patient_id"),
    )
    if order is not None:
        patients = patients.iloc[list(order)]
    empty = pd.DataFrame(columns=["kind", "id", "reason", "problem"])
    return Cohort(patients, pd.DataFrame(columns=["slide_id", "patient_id", "path"]), None, ("neg", "pos"), empty)
