"""Generates a cohort of random feature files of any size for the benchmarks."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd


def write_cohort(
    folder: Path,
    slides: int,
    patches: int,
    width: int,
    dtype: str = "float32",
    chunked: bool = True,
    signal: float = 0.0,
) -> pd.DataFrame:
    """Writes feature files as TRIDENT does, and returns the cohort's slides as `ingest` takes them.

    Args:
        folder: is created; holds `features/`, `clinical.csv` and `slides.csv`.
        slides: number of slides, one a patient.
        patches: of a slide, give or take a tenth.
        width: D.
        dtype: of the features.
        chunked: a chunk a patch, as TRIDENT writes; else contiguous.
        signal: shift of the first features of every patch of a positive slide.
    """
    (folder / "features").mkdir(parents=True)
    rng = np.random.default_rng(0)
    random_ND = rng.normal(size=(int(1.1 * patches) + 1, width)).astype(dtype)  # drawn once: drawing is the slow part
    rows = []
    for i in range(slides):
        n = int(patches * rng.uniform(0.9, 1.1))
        path = folder / "features" / f"slide-{i:05d}.h5"
        features_PD = random_ND[:n].copy()
        features_PD[:, 0] = i / slides  # no two slides are equal
        features_PD[:, 1:17] += signal * (i % 2)
        side = int(np.ceil(n**0.5))
        coords_P2 = np.stack(np.divmod(np.arange(n), side), 1) * 256
        with h5py.File(path, "w") as file:
            file.create_dataset("features", data=features_PD, chunks=(1, width) if chunked else None)
            file.create_dataset("coords", data=coords_P2, chunks=(1, 2) if chunked else None)
        stat = path.stat()
        rows.append((path.stem, f"P{i:05d}", str(path), f"{stat.st_size}-{stat.st_mtime_ns}", stat.st_size))
    table = pd.DataFrame(rows, columns=["slide_id", "patient_id", "path", "file", "bytes"])
    labels = ["positive" if i % 2 else "negative" for i in range(slides)]
    pd.DataFrame({"PATIENT": table["patient_id"], "LABEL": labels}).to_csv(folder / "clinical.csv", index=False)
    names = table["slide_id"] + ".h5"
    pd.DataFrame({"PATIENT": table["patient_id"], "FILENAME": names}).to_csv(folder / "slides.csv", index=False)
    return table


def config_of(folder: Path, **sections: dict[str, object]) -> dict[str, object]:
    """Returns a configuration of that cohort."""
    return {
        "cohort": {"clinical": str(folder / "clinical.csv"), "slides": str(folder / "slides.csv"), "label": "LABEL"},
        "features": {"dir": str(folder / "features")},
        "store": {"uri": str(folder / "bags")},
        "run": {"dir": str(folder / "run")},
    } | sections
