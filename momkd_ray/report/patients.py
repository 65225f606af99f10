"""Who was in the run: the flow of patients, Table 1, sites, and the calls that went wrong."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tableone import TableOne

from momkd_ray.cohort.known_columns import SITE_COLUMNS, is_known
from momkd_ray.cohort.table_files import texts
from momkd_ray.report.finished_run import FinishedRun
from momkd_ray.statistics.delong import delong

MOST_LEVELS = 12  # of a column of Table 1; one with more is a name or a free text
MOST_WRONG = 12  # calls shown in the page; the file has all
_IN_THE_FOLDS = ("in no test set of the split", "no omics, which omics.missing: drop")


@dataclass(frozen=True)
class Step:
    """A step of the flow: patients who reached it, and those who did not, by reason."""

    step: str
    patients: int
    left_out: dict[str, int]


def flow_of(run: FinishedRun) -> list[Step]:
    """Returns the flow of patients from all that the tables name to those tested."""
    of_patients = run.excluded[run.excluded["kind"] == "patient"]
    kept = of_patients["reason"].str.startswith(_IN_THE_FOLDS)
    reasons = Counter(of_patients.loc[~kept, "reason"])
    tested = int(run.figures["counts"]["patients"])
    never = int(of_patients["reason"].str.startswith(_IN_THE_FOLDS[0]).sum())
    left_out = sum(reasons.values())
    steps = [
        Step("named by the tables", tested + never + left_out, {}),
        Step("with a usable label and slide", tested + never, dict(reasons.most_common())),
        Step("tested, each by a model that did not train on them", tested, {_IN_THE_FOLDS[0]: never} if never else {}),
    ]
    return steps if left_out else steps[1:]


def described(run: FinishedRun) -> pd.DataFrame:
    """Returns the tested patients with the clinical table's columns that describe them.

    Returns:
        Index `patient_id`; `class` (categories in the order of the classes), `fold` (of the test), `slides`, and the
        clinical columns that are numbers or have few levels.
    """
    own = run.predictions.sort_values("fold").groupby("patient_id", sort=True).first()
    classes = pd.Categorical(own["label"].astype(str), run.classes)
    table = pd.DataFrame({"class": classes, "fold": [f"fold {fold}" for fold in own["fold"]]}, own.index)
    if len(run.slides):
        table["slides"] = _slides_of_patients(run).reindex(table.index)
    clinical, column = run.clinical, run.patient_column
    if clinical is None or column is None or column not in clinical.columns:
        return table
    clinical = clinical.set_index(pd.Index(texts(clinical[column]))).drop(columns=column)
    clinical = clinical[~clinical.index.duplicated()].reindex(table.index)
    for name in clinical.columns:
        values = clinical[name]
        if name in (run.label, *table.columns) or not values.notna().any():
            continue
        numbers = pd.to_numeric(values, errors="coerce")
        if numbers[values.notna()].notna().all() and numbers.nunique() > 5:
            table[str(name)] = numbers
        elif values.nunique() <= MOST_LEVELS:
            table[str(name)] = pd.Series(texts(values), table.index, dtype=object)
    return table


def _slides_of_patients(run: FinishedRun) -> pd.Series[int]:
    """Counts each tested patient's slides; a bag of all slides of a patient (`cohort.bag: patient`) names them all."""
    bags = run.slides.drop_duplicates(["patient_id", "slide_id"])
    joint = run.section("cohort").get("bag") == "patient"
    counts = bags["slide_id"].astype(str).str.count(", ") + 1 if joint else 1
    return bags.assign(slides=counts).groupby("patient_id")["slides"].sum()


def table_one(table: pd.DataFrame, by: str) -> tuple[list[str], list[list[str]]]:
    """Describes the patients by a column, all and in each level: shares of categories, mean (SD) of numbers.

    Returns:
        The header and the rows as text.
    """
    names = [name for name in table.columns if name != by and (by == "fold" or name != "fold")]
    if not names:  # which tableone takes for a mistake
        counts = table[by].value_counts().sort_index()
        return ["", "Overall", *map(str, counts.index)], [["n", str(len(table)), *map(str, counts)]]
    categorical = [name for name in names if not pd.api.types.is_numeric_dtype(table[name])]
    data = table[[by, *names]].rename(columns=str)
    levels = {name: [*data[name].cat.categories] for name in data if isinstance(data[name].dtype, pd.CategoricalDtype)}
    data = data.astype(dict.fromkeys(levels, object))
    for name in categorical:
        data[name] = data[name].where(data[name].notna(), "missing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tableone about pandas' future
        options = {"categorical": categorical, "groupby": by, "pval": False, "missing": True, "order": levels}
        made = TableOne(data, columns=names, **options).tableone
    made.columns = made.columns.get_level_values(-1)
    rows, last = [], ""
    for (variable, level), cells in zip(made.index, made.to_numpy().tolist(), strict=True):
        shown = [str(cell) if cell is not None and cell == cell else "" for cell in cells]
        title = str(variable) if variable != last else ""
        last = variable
        rows.append([f"{title}: {level}" if title and level else str(title or f"· {level}"), *shown])
    return ["", *map(str, made.columns)], rows


def site_column(run: FinishedRun, table: pd.DataFrame) -> str | None:
    """Returns the column of sites: `folds.site`, or one that is called so; None if there is none."""
    configured = run.section("folds").get("site")
    if configured in table.columns:
        return str(configured)
    return next((str(name) for name in table.columns if is_known(str(name), SITE_COLUMNS)), None)


def group_rows(groups: dict[str, pd.DataFrame], classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns for each group of patients its counts and its AUC with DeLong's interval, if it has two of each class.

    The interval is None where DeLong's variance is 0.
    """
    rows: list[dict[str, Any]] = []
    for name, own in groups.items():
        y, p = (own["label"] == classes[1]).to_numpy(), own[f"p_{classes[1]}"].to_numpy(dtype=float)
        row: dict[str, Any] = {"name": name, "patients": len(own), "positives": int(y.sum()), "auc": None}
        if min(y.sum(), (~y).sum()) >= 2:
            result = delong(y, p)
            row |= {"auc": float(result.auc_M[0]), "interval": result.interval(0)}
        called = (own["predicted"] == classes[1]).to_numpy()
        row["sensitivity"] = float(called[y].mean()) if y.any() else None
        row["specificity"] = float((~called[~y]).mean()) if (~y).any() else None
        rows.append(row)
    return rows


def wrong_calls(run: FinishedRun) -> pd.DataFrame:
    """Lists the wrongly called test patients, those farthest from their fold's threshold first.

    Returns:
        `patient_id, fold, label, predicted, p_<positive>, threshold, margin, slides`.
    """
    positive = f"p_{run.classes[1]}"
    wrong = run.predictions[run.predictions["label"] != run.predictions["predicted"]]
    table = wrong[["patient_id", "fold", "label", "predicted", positive]].copy()
    table["threshold"] = table["fold"].map(run.thresholds)
    # the way to the threshold as a share of all there is on that side
    above = table[positive] >= table["threshold"]
    room = np.where(above, 1 - table["threshold"], table["threshold"])
    table["margin"] = np.abs(table[positive] - table["threshold"]) / np.maximum(room, 1e-9)
    slides: dict[Any, str] = {}
    if len(run.slides):
        by_patient = run.slides.sort_values("slide_id").groupby(["patient_id", "fold"])
        slides = {key: _slides(own, positive) for key, own in by_patient}
    table["slides"] = [slides.get((p, f), "") for p, f in zip(table["patient_id"], table["fold"], strict=True)]
    return table.sort_values(["margin", "patient_id"], ascending=[False, True]).reset_index(drop=True)


def _slides(own: pd.DataFrame, positive: str) -> str:
    return ", ".join(f"{slide} ({p:.3f})" for slide, p in zip(own["slide_id"], own[positive], strict=True))
