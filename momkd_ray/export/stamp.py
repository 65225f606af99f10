"""Predictions of a run as STAMP's `patient-preds.csv`, which `stamp statistics` reads."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import yaml

from momkd_ray import storage
from momkd_ray.errors import InputError
from momkd_ray.run.layout import RunDirectory


def stamp_table(predictions: pd.DataFrame, patient_column: str, label: str, classes: tuple[str, ...]) -> pd.DataFrame:
    """Returns predictions in STAMP's columns, sorted by the loss as STAMP does.

    Args:
        predictions: one row per patient: `patient_id, label, predicted, p_<class>`.
        patient_column: the name of the user's column of patients.
        label: the name of the label.
        classes: names of the classes.

    Returns:
        `<patient column>, <label>, pred, <label>_<class>` for each class, and `loss`, the cross-entropy.
    """
    probabilities = predictions[[f"p_{name}" for name in classes]].to_numpy()
    own = [classes.index(name) for name in predictions["label"]]
    tiny = np.finfo(np.float64).tiny
    table = pd.DataFrame(
        {
            patient_column: predictions["patient_id"],
            label: predictions["label"],
            "pred": predictions["predicted"],
            **{f"{label}_{name}": probabilities[:, y] for y, name in enumerate(classes)},
            "loss": -np.log(np.maximum(probabilities[np.arange(len(own)), own], tiny)),
        }
    )
    return table.sort_values(["loss", patient_column], kind="stable").reset_index(drop=True)


def write_stamp(run: str, out: str) -> list[str]:
    """Writes `split-<fold>/patient-preds.csv` for each fold of a finished cross-validation.

    Raises:
        InputError: the run is not finished.
    """
    directory = RunDirectory(run)
    try:
        predictions = pd.read_parquet(io.BytesIO(storage.read_bytes(directory.predictions)))
        cohort = yaml.safe_load(storage.read_text(directory.configuration))["cohort"]
        header = storage.read_text(directory.folds).splitlines()[0]
    except FileNotFoundError as error:
        raise InputError(f"{run} holds no finished cross-validation: run momkd-ray crossval first") from error
    patient_column = str(pd.read_csv(io.StringIO(header)).columns[0])
    columns = [str(name)[2:] for name in predictions.columns if str(name).startswith("p_")]
    locations = []
    for fold, rows in predictions.groupby("fold", sort=True):
        table = stamp_table(rows, patient_column, str(cohort["label"]), tuple(columns))
        location = storage.join(out, f"split-{fold}", "patient-preds.csv")
        with storage.atomic_writer(location) as stream:
            table.to_csv(stream, index=False)
        locations.append(location)
    return locations
