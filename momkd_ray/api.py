"""The Python API: `cross_validate` and `predict_slides`, which do what the commands `crossval` and `predict` do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd

from momkd_ray.config.load import Config
from momkd_ray.config.sections import resolve_location
from momkd_ray.progress import ProgressReporter


def cross_validate(
    config: Config, *, address: str | None = None, on_error: Literal["stop", "skip"] = "stop"
) -> dict[str, Any]:
    """Trains and tests every fold, and writes metrics, predictions and report into `run.dir`.

    An interrupted run is resumed: finished folds are kept.

    Args:
        config: the configuration, as `load_config` reads it.
        address: address of a running Ray cluster; by default one is started on this machine for the call.
        on_error: whether bad inputs end it, or are left out and listed in `rejected.csv`.

    Returns:
        The content of `metrics.json`, such as `["metrics"]["auc"]["mean"]`.

    Raises:
        InputError: an input is bad; the message names it and its remedy.
        RunError: a fold failed or diverged, or another process works in the run directory.
        StoppedError: the user stopped it.
    """
    from momkd_ray.crossval.cross_validate import cross_validate_inputs
    from momkd_ray.crossval.open_run import open_run
    from momkd_ray.report.page import write_report

    with open_run(config, address, on_error) as run:
        metrics = cross_validate_inputs(run.inputs, run.progress, own_cluster=run.own_cluster)
        write_report(config.run.dir)
    return metrics


def predict_slides(
    models: Sequence[str],
    features: str,
    out: str,
    *,
    slides: str | None = None,
    by_patient: bool = False,
    gpus: float = 0,
    address: str | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    patient_column: str | None = None,
    slide_column: str | None = None,
) -> pd.DataFrame:
    """Predicts every feature file of a folder from histology alone, and writes the predictions.

    Args:
        models: locations of model bundles, such as `runs/pr/fold=0/model`, or of a finished run, such as `runs/pr`, for
            the models of all its folds; several are averaged.
        features: the folder of the feature files, local or `s3://`.
        out: the file to write, `.csv` or `.parquet`.
        slides: a table of patients and slides; without it every slide is its own patient.
        by_patient: one row per patient, the mean of its slides, instead of one row per slide.
        gpus: number of GPUs of each task; it may be a fraction.
        address: address of a running Ray cluster; by default one is started on this machine if the slides take long.
        on_error: whether bad feature files end it, or are left out and listed in `<out>.rejected.csv`.
        patient_column: the column of patients in `slides`; by default it is recognised.
        slide_column: the column of slides in `slides`; by default it is recognised.

    Returns:
        The written table: `slide_id` (not by patient), `patient_id`, `p_<class>` of each, `predicted`, of a regression
        `score` and, if the bundles tell, `trained_on`, the number of models that learnt from the patient. If `slides`
        has the label, `<out>.metrics.json` is written, too.

    Raises:
        InputError: a model or feature file is bad; the message names it and its remedy.
        RunError: a task failed.
    """
    from momkd_ray.predict.ensemble import predict_folder
    from momkd_ray.predict.run_models import named_bundles
    from momkd_ray.ray_runtime.small_work import connect_if_named

    with connect_if_named(address), ProgressReporter() as progress:
        bundles = named_bundles([resolve_location(model) for model in models], progress.info)
        if slides is None:
            progress.info("No table of slides is given: every slide is taken for a patient of its own")
        return predict_folder(
            bundles,
            resolve_location(features),
            resolve_location(out),
            progress,
            slides=resolve_location(slides) if slides else None,
            by_patient=by_patient,
            gpus=gpus,
            on_error=on_error,
            patient_column=patient_column,
            slide_column=slide_column,
        )
