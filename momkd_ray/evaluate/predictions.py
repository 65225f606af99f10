"""The probabilities of an external cohort's patients: by the folds' models, or from a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from momkd_ray.cohort import columns
from momkd_ray.cohort.feature_files import FeatureFile, find_features
from momkd_ray.cohort.identifiers import barcode_patient, join_patients, match_identifiers, person
from momkd_ray.cohort.option_names import told_as_options
from momkd_ray.cohort.patient_mean import patient_mean
from momkd_ray.cohort.table_files import data_rows, read_table, rows_by_value, texts
from momkd_ray.crossval.classes_run import ClassesRun
from momkd_ray.crossval.trained_run import TrainedRun
from momkd_ray.errors import InputError
from momkd_ray.evaluate.cohort import OPTIONS, ExternalCohort, Labels
from momkd_ray.input_faults import OnError, record_faults
from momkd_ray.model.expected_score import SCORE
from momkd_ray.predict.ensemble import check_ensemble, other_formats, predict_bags
from momkd_ray.predict.slides import group_bags, list_slides
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.small_work import connect_if_named

FOLD = "fold="  # a column with the probability by one fold's model


def predicted_cohort(
    run: TrainedRun | ClassesRun,
    cohort: ExternalCohort,
    labels: Labels,
    rejected: str,
    progress: ProgressReporter,
    *,
    features: str | None,
    predictions: str | None,
    gpus: float,
    address: str | None,
    on_error: OnError,
) -> tuple[ExternalCohort, pd.DataFrame]:
    """Predicts the labelled patients, or reads their predictions from a file.

    Args:
        run: whose folds' models predict.
        cohort: the labelled patients.
        labels: where the slides of each patient are named.
        rejected: where bad rows and files are listed.
        progress: receives the count of bags.
        features: folder of feature files; or else
        predictions: a file of predictions.
        gpus: number of GPUs of each task of prediction.
        address: of a running Ray cluster; by default one is started if the predictions take long.
        on_error: whether bad rows and files end it, or are left out.

    Returns:
        As `predict_cohort`.

    Raises:
        InputError: as `predict_cohort` and `read_predictions`; or neither features nor predictions are given.
    """
    if features is not None:
        with connect_if_named(address):
            return predict_cohort(run, cohort, labels, features, rejected, progress, gpus=gpus, on_error=on_error)
    if predictions is not None:
        record_faults(cohort.faults, f"the patients of {labels.clinical}", rejected, on_error)
        if isinstance(run, ClassesRun) and run.predicts_number:
            given = read_scores(predictions, cohort)
        else:
            given = read_predictions(predictions, run.classes, run.label, cohort)
        return join_predictions(cohort, given, predictions)
    raise InputError("neither features nor predictions are given: name the folder, or the file")


def predict_cohort(
    run: TrainedRun | ClassesRun,
    cohort: ExternalCohort,
    labels: Labels,
    features: str,
    rejected: str,
    progress: ProgressReporter,
    *,
    gpus: float = 0,
    on_error: OnError = "stop",
) -> tuple[ExternalCohort, pd.DataFrame]:
    """Predicts the labelled patients that have feature files.

    Args:
        run: whose folds' models predict.
        cohort: the labelled patients.
        labels: where the slides of each patient are named.
        features: folder of the feature files.
        rejected: where bad rows and files are listed.
        progress: receives the count of bags.
        gpus: number of GPUs of each task.
        on_error: whether bad rows and files end it, or are left out.

    Returns:
        The cohort without those who cannot be predicted, and a table with the index `patient_id`: `p` of the positive
        class, the mean over the models, and `fold=<k>`, each model's; of more than two classes `p_<class>` of each; of
        a number also `score`.

    Raises:
        InputError: a model or feature file is bad, or nobody can be predicted.
    """
    card = check_ensemble(run.models)[0]
    files, faults = feature_files_of(features, cohort), list(cohort.faults)
    cohort, patients, own = _with_files(cohort, files)
    record_faults(faults, f"the tables and {len(files)} feature files", rejected, on_error)
    bags = group_bags(own, patients, joint=card.bag == "patient") if len(own) else own
    rows: list[dict[str, Any]] = []
    for row in predict_bags(bags, run.models, gpus) if len(own) else ():
        rows.append(row)
        progress.update("predict", len(rows), len(bags), "bags")
    for sentence in other_formats(rows, card):
        progress.info(sentence)
    faults += [fault for row in rows for fault in row["faults"]]
    predicted = [row for row in rows if row["p"] is not None]
    total = f"the tables and {len(files)} feature files"
    record_faults(faults, total, rejected, on_error, some_left=bool(predicted))
    if faults:
        progress.info(f"{len(faults)} bad rows or files are left out; {rejected} lists them with the reason")
    reasons = _unpredicted(cohort, patients, own, rows, bags)
    cohort = cohort.without(reasons, "with features that can be read")
    if not predicted:
        labelled = "a number" if labels.number else "the label of a class"
        raise InputError(
            f"no patient of {labels.clinical} with {labelled} has a feature file in {features}: compare the "
            "names of files, slides and patients, or give --slides"
        )
    return cohort, _of_patients(run, predicted, bags)


def _of_patients(run: TrainedRun | ClassesRun, predicted: Sequence[dict[str, Any]], bags: pd.DataFrame) -> pd.DataFrame:
    """Averages the predictions of bags over each patient's bags; index `patient_id`."""
    table = pd.DataFrame(
        [{"bag_id": row["bag_id"], **_probabilities(run, row["p"], row["members"]), **_score(row)} for row in predicted]
    )
    table = table.merge(bags[["bag_id", "patient_id"]], on="bag_id").rename(columns={"bag_id": "slide_id"})
    probabilities = [name for name in table.columns if name in ("p", SCORE) or name.startswith((FOLD, "p_"))]
    return patient_mean(table, probabilities).set_index("patient_id")


def _with_files(cohort: ExternalCohort, files: pd.DataFrame) -> tuple[ExternalCohort, dict[str, str], pd.DataFrame]:
    """Finds the files of labelled patients.

    Returns:
        The cohort, which notes files without a patient and slides without a file; the patient of each slide; and the
        files of patients with a label.
    """
    patients = cohort.slides
    if patients is None:  # each file is a patient's, by its name
        patients = dict(match_identifiers(files["slide_id"].tolist(), _everybody(cohort)).own)
    here, listed = set(cohort.patients.index), set(files["slide_id"])
    unnamed = [slide for slide in files["slide_id"] if slide not in patients]
    cohort = cohort.noting(
        [("slide", slide, "a feature file of no patient of the clinical table") for slide in unnamed]
    )
    missing = [slide for slide, patient in sorted(patients.items()) if patient in here and slide not in listed]
    cohort = cohort.noting([("slide", slide, "no feature file") for slide in missing])
    return cohort, patients, files[[patients.get(slide) in here for slide in files["slide_id"]]]


def patients_of_run(names: Iterable[str], run: TrainedRun | ClassesRun) -> list[str]:
    """Returns the patients who are in a run's folds, however both spell them, sorted."""
    known = set(map(person, run.patients))
    return sorted(name for name in map(str, names) if person(name) in known)


def overlap_notes(evaluation: Mapping[str, Any]) -> list[str]:
    """Says that patients of the cohort are also in the run's folds; [] if none is."""
    cohort, overlap = evaluation["cohort"], evaluation["cohort"]["also_in_the_run"]
    if not overlap["patients"]:
        return []
    more = ", ..." if overlap["patients"] > len(overlap["examples"]) else ""
    return [
        f"{overlap['patients']} of the {cohort['patients']} patients are also in the run's folds "
        f"({', '.join(overlap['examples'])}{more}): models were trained on them, so these figures are not of new "
        "patients. Leave them out for an external evaluation."
    ]


def feature_files_of(features: str, cohort: ExternalCohort) -> pd.DataFrame:
    """Lists the feature files as `slide_id, path, bytes`; those of the table's slides under its names for them."""
    files = list_slides(features)
    if cohort.slides is None:
        return files
    rows = list(zip(files["slide_id"].tolist(), files["path"].tolist(), files["bytes"].tolist(), strict=True))
    listed = {slide: FeatureFile(slide, path, "listed", size) for slide, path, size in rows}
    with told_as_options(OPTIONS):
        found = find_features(features, cohort.slide_names, listed)
    if found.elsewhere:
        raise InputError(found.elsewhere)
    matched = [(slide, file.path, file.size) for slide, file in found.files.items() if file.stamp]
    used = {path for _, path, _ in matched}
    others = [row for row in rows if row[1] not in used]
    table = pd.DataFrame(sorted(matched + others), columns=["slide_id", "path", "bytes"])
    return table.astype({"slide_id": "str", "path": "str"})


def _probabilities(run: TrainedRun | ClassesRun, p: Any, members: Sequence[Any]) -> dict[str, float]:
    if isinstance(run, ClassesRun):
        return {f"p_{name}": own for name, own in zip(run.classes, p, strict=True)}
    return {"p": p, **{f"{FOLD}{fold}": own for fold, own in zip(run.thresholds, members, strict=True)}}


def _score(row: dict[str, Any]) -> dict[str, float]:
    return {SCORE: row[SCORE]} if SCORE in row else {}


def _unpredicted(
    cohort: ExternalCohort,
    patients: dict[str, str],
    files: pd.DataFrame,
    rows: Sequence[dict[str, Any]],
    bags: pd.DataFrame,
) -> dict[str, str]:
    """Returns why patients have no probability."""
    with_slide = set(patients.values())
    with_file = {patients[slide] for slide in files["slide_id"]}
    good = {row["bag_id"] for row in rows if row["p"] is not None}
    predicted = set(bags.loc[bags["bag_id"].isin(good), "patient_id"]) if len(files) else set()
    reasons = {}
    for patient in cohort.patients.index:
        if patient not in with_slide:
            reasons[patient] = "no slide"
        elif patient not in with_file:
            reasons[patient] = "no feature file"
        elif patient not in predicted:
            reasons[patient] = "no feature file that can be read"
    return reasons


def read_predictions(
    path: str, classes: tuple[str, ...], label: str, cohort: ExternalCohort, patient_column: str | None = None
) -> pd.DataFrame:
    """Reads a file of predictions: of `predict`, of a run, of an earlier evaluation, or STAMP's.

    The column with the probability of the positive class is `p_<positive>`, or `<label>_<positive>` as STAMP writes; of
    more than two classes each has one.

    Args:
        path: `.csv`, `.tsv`, `.parquet` or `.xlsx`.
        classes: names of the classes; of two, the positive one is the second.
        label: name of the label.
        cohort: whose patients it is joined with, however the file spells them.
        patient_column: None to find it by name.

    Returns:
        The index `patient_id`, sorted: `p`, and `fold=<k>` where the file has each fold's; of more than two classes
        `p_<class>` of each. Slides of a patient are averaged.

    Raises:
        InputError: a column is missing, a row has no probability, or a patient has two rows that are no slides.
    """
    frame = read_table(path)
    two = len(classes) == 2
    renamed = {
        _probability_column(frame, path, name, label): "p" if two else f"p_{name}"
        for name in (classes[1:] if two else classes)
    }
    own = [*renamed, *(name for name in frame.columns if two and str(name).startswith(FOLD))]
    numbers = frame[own].apply(pd.to_numeric, errors="coerce")
    bad = (~((numbers >= 0) & (numbers <= 1))).any(axis=1)
    _refuse_rows(path, bad, "probability between 0 and 1")
    return _by_patient(path, frame, numbers.rename(columns=renamed).astype(float), cohort, patient_column)


def read_scores(path: str, cohort: ExternalCohort, patient_column: str | None = None) -> pd.DataFrame:
    """Reads a file of predicted numbers, in the column `score`: of `predict`, of a run, or of an earlier evaluation.

    Args:
        path: `.csv`, `.tsv`, `.parquet` or `.xlsx`.
        cohort: whose patients it is joined with, however the file spells them.
        patient_column: None to find it by name.

    Returns:
        The index `patient_id`, sorted: `score`. Slides of a patient are averaged.

    Raises:
        InputError: the column is missing, a row has no number, or a patient has two rows that are no slides.
    """
    frame = read_table(path)
    if SCORE not in frame.columns:
        shown = ", ".join(f"'{one}'" for one in list(frame.columns)[:12])
        raise InputError(
            f"{path} has no column '{SCORE}' with the predicted number; its columns are {shown}: give the file that "
            "momkd-ray predict wrote, or rename the column"
        )
    numbers = frame[[SCORE]].apply(pd.to_numeric, errors="coerce").astype(float)
    _refuse_rows(path, ~np.isfinite(numbers).all(axis=1), f"number in '{SCORE}'")
    return _by_patient(path, frame, numbers, cohort, patient_column)


def _refuse_rows(path: str, bad_R: pd.Series[bool], what: str) -> None:
    if bad_R.any():
        where = [int(row) + 1 for row in bad_R.to_numpy().nonzero()[0]]
        raise InputError(f"{path}: {data_rows(where)} has no {what}: predict again, or remove the row")


def _by_patient(
    path: str, frame: pd.DataFrame, table: pd.DataFrame, cohort: ExternalCohort, patient_column: str | None
) -> pd.DataFrame:
    """Returns the means of a table's columns for each patient of a file; see `read_predictions`."""
    with told_as_options(OPTIONS):
        patient = columns.patient_column(frame.columns, path, patient_column)
    rows, blank = rows_by_value(frame[patient])
    if blank:
        raise InputError(f"{path}: '{patient}' is blank in {data_rows(blank)}: fill it in or remove the row")
    table["patient_id"] = texts(frame[patient])
    slides = columns.has_row_per_slide(frame.columns, None)
    twice = [patient for patient, of in rows.items() if len(of) > 1]
    if twice and not slides:
        raise InputError(
            f"{path}: patient '{twice[0]}' has more than one row ({data_rows(rows[twice[0]])}), but no column names "
            "slides: keep one row per patient"
        )
    table["slide_id"] = range(len(table))
    table["patient_id"] = table["patient_id"].map(_meant_patients(path, list(rows), cohort, slides=slides))
    return patient_mean(table, [name for name in table.columns if name not in ("patient_id", "slide_id")]).set_index(
        "patient_id"
    )


def _meant_patients(path: str, names: Sequence[str], cohort: ExternalCohort, *, slides: bool) -> dict[str, str]:
    """Returns the patient of the clinical table that each identifier of a file means; itself if it means none.

    Several barcodes of a patient may mean it if the file has a row a slide (`slides`).

    Raises:
        InputError: two others mean one patient.
    """
    own_names = join_patients(path, names, _everybody(cohort), "the clinical table").own
    meant = {name: own_names.get(name, name) for name in names}
    counts = Counter(meant.values())
    alone = [name for name in names if not (slides and barcode_patient(name))]
    if other := next((name for name in alone if counts[meant[name]] > 1), None):
        raise InputError(
            f"{path}: two identifiers mean the patient '{meant[other]}', one is '{other}': keep one of them"
        )
    return meant


def _everybody(cohort: ExternalCohort) -> list[str]:
    """Returns the patients of the clinical table, those who are left out too."""
    return [*cohort.patients.index, *cohort.excluded.loc[cohort.excluded["kind"] == "patient", "id"]]


def _probability_column(frame: pd.DataFrame, path: str, name: str, label: str) -> str:
    """Finds the column with the probability of a class.

    Raises:
        InputError: there is none.
    """
    names = [f"p_{name}", f"{label}_{name}"]
    column = next((one for one in names if one in frame.columns), None)
    if column is None:
        shown = ", ".join(f"'{one}'" for one in list(frame.columns)[:12])
        raise InputError(
            f"{path} has no column '{names[0]}' with the probability of '{name}'; its columns are {shown}: give "
            "the file that momkd-ray predict wrote, or rename the column"
        )
    return column


def join_predictions(
    cohort: ExternalCohort, predictions: pd.DataFrame, path: str
) -> tuple[ExternalCohort, pd.DataFrame]:
    """Leaves out the patients without a prediction, and notes predictions of others.

    Raises:
        InputError: no patient has one.
    """
    own = predictions.index.intersection(cohort.patients.index)
    if own.empty:
        raise InputError(f"{path} has none of the labelled patients: compare the names of the patients in both tables")
    known = set(cohort.patients.index) | set(cohort.excluded["id"])
    others = [name for name in predictions.index if name not in known]
    cohort = cohort.noting(
        [("prediction", name, "a prediction of no patient of the clinical table") for name in others]
    )
    reasons = {name: "no prediction" for name in cohort.patients.index if name not in predictions.index}
    return cohort.without(reasons, f"with a prediction in {path}"), predictions.loc[sorted(own)]
