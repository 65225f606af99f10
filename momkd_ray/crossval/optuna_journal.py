"""A finished search as an Optuna study, which Optuna's dashboard and plots open."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from momkd_ray import storage
from momkd_ray.config.load import Config
from momkd_ray.crossval.search import distributions


def write_study(config: Config, report: Mapping[str, Any], folds: Sequence[int], location: str) -> None:
    """Writes the settings of a search, and their mean validation metrics, as the journal of an Optuna study.

    Args:
        config: the configuration, with the search.
        report: of the search, as in `metrics.json`.
        folds: the folds that `report["scores"]` is in the order of.
        location: the file to write.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = distributions(config)
    stopped = {one["setting"]: one for one in report["stopped"]}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "study.log")
        journal = JournalStorage(JournalFileBackend(path))
        study = optuna.create_study(storage=journal, study_name=config.cohort.label, direction="maximize")
        study.set_user_attr("fingerprint", config.answer_fingerprint())
        title = f"validation {report['criterion']} of fold"
        for number, (setting, by_fold) in enumerate(zip(report["settings"], report["scores"], strict=True)):
            of_folds = {fold: score for fold, score in zip(folds, by_fold, strict=True) if score is not None}
            stop = stopped.get(number)
            complete = stop is None and len(of_folds) == len(folds)
            state = "COMPLETE" if complete else "FAIL" if stop is None else "PRUNED"
            trial = optuna.trial.create_trial(
                state=optuna.trial.TrialState[state],
                params=dict(setting),
                distributions=space,
                value=float(np.mean(list(of_folds.values()))) if complete else None,
                intermediate_values={} if stop is None else {stop["epoch"]: stop["score"]},
                user_attrs={f"{title} {fold}": score for fold, score in of_folds.items()}
                | {"chosen by folds": [int(fold) for fold, chosen in report["chosen"].items() if chosen == number]},
            )
            study.add_trial(trial)
        with open(path, "rb") as file:
            storage.write_bytes(location, file.read())
