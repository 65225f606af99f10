"""Patient-level folds, drawn or imported, each with a validation set cut from its training patients."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from momkd_ray import storage
from momkd_ray.cohort.formats import first_duplicate, identifiers, read_table, require_columns, texts
from momkd_ray.cohort.tables import Cohort
from momkd_ray.config import Config, FoldsConfig
from momkd_ray.errors import InputError

ROLES = ("train", "val", "test")

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FoldPlan:
    """Who is trained on, validated on and tested on in each fold.

    table: index `patient_id`; `fold` (the fold the patient is tested in) and a column `role_<fold>` per fold.
    """

    table: pd.DataFrame

    @property
    def folds(self) -> list[int]:
        """The fold numbers, sorted."""
        return sorted(int(fold) for fold in self.table["fold"].unique())

    def roles(self, fold: int) -> pd.Series[str]:
        """patient_id -> 'train', 'val' or 'test' in this fold."""
        return self.table[f"role_{fold}"]

    def to_csv(self, location: str, patient_column: str) -> None:
        """Write the plan whole."""
        storage.write_text(location, self.table.to_csv(index_label=patient_column, lineterminator="\n"))


def make_folds(config: Config, cohort: Cohort) -> FoldPlan:
    """Draw the folds, or take them from `folds.file`, and cut each fold's validation set.

    The result depends on the patients, their labels and `folds.seed`, never on the order of the tables' rows.

    Raises:
        InputError: too few patients of a class; an imported fold is missing, doubled or not a number; or a
            part of a fold would lack a class.
    """
    patients = cohort.patients.sort_index()
    names = [str(name) for name in patients.index]
    y_N = patients["y"].to_numpy(dtype=np.int64)
    if config.folds.file is None:
        fold_N = _drawn_folds(config.folds, y_N, cohort.classes)
    else:
        fold_N = _imported_folds(config.folds.file, config.folds.column, config.cohort.patient_column, names)
    _check_test_classes(fold_N, y_N, cohort.classes)
    roles = {f"role_{fold}": _roles(config.folds, fold, fold_N, y_N, cohort.classes) for fold in _distinct(fold_N)}
    plan = FoldPlan(_plan_table(names, fold_N.tolist(), roles))
    check_disjoint(plan)
    return plan


def check_disjoint(plan: FoldPlan) -> None:
    """Assert that no patient is on two sides of a split and that each is tested in exactly one fold.

    Raises:
        InputError: naming the patient.
    """
    table = plan.table
    twice = first_duplicate(str(name) for name in table.index)
    if twice is not None:
        parts = ", ".join(f"fold {fold}" for fold in table.loc[[twice], "fold"])
        raise InputError(f"patient '{twice}' is in the folds twice ({parts}): a patient must be on one side of a split")
    for fold in plan.folds:
        roles = plan.roles(fold)
        strange = roles[~roles.isin(ROLES)]
        if len(strange):
            raise InputError(f"patient '{strange.index[0]}' has role '{strange.iloc[0]}' in fold {fold}")
        crossed = table.index[(roles == "test") != (table["fold"] == fold)]
        if len(crossed):
            name, own = crossed[0], table.loc[crossed[0], "fold"]
            raise InputError(
                f"patient '{name}' is tested in fold {own} but has role '{roles[name]}' in fold {fold}: "
                "each patient must be tested in exactly one fold"
            )


def _plan_table(patients: list[str], folds: list[int], roles: dict[str, list[str]]) -> pd.DataFrame:
    columns: dict[str, object] = {"fold": np.asarray(folds, np.int64)}
    columns |= {name: pd.array(values, dtype="str") for name, values in roles.items()}
    return pd.DataFrame(columns, index=pd.Index(patients, name="patient_id", dtype="str"))


def _distinct(fold_N: Integers) -> list[int]:
    return [int(fold) for fold in np.unique(fold_N)]


def _drawn_folds(settings: FoldsConfig, y_N: Integers, classes: tuple[str, str]) -> Integers:
    from sklearn.model_selection import KFold, StratifiedKFold

    for y, name in enumerate(classes):
        count = int((y_N == y).sum())
        if count < settings.n:
            remedy = f"set folds.n to {count} or fewer" if count > 1 else "two is the least"
            raise InputError(f"class '{name}' has {count} patients, too few for {settings.n} folds: {remedy}")
    splitter = StratifiedKFold if settings.stratify else KFold
    fold_N = np.empty(len(y_N), np.int64)
    splits = splitter(settings.n, shuffle=True, random_state=settings.seed % 2**32).split(y_N[:, None], y_N)
    for fold, (_, tested) in enumerate(splits):
        fold_N[tested] = fold
    return fold_N


def _imported_folds(path: str, column: str, patient_column: str, patients: Iterable[str]) -> Integers:
    """The fold of each of these patients, in their order; other patients of the file are of no concern."""
    frame = read_table(path)
    require_columns(list(frame.columns), path, patient_column, column)
    by_patient: dict[str, str | None] = {}
    for patient, fold in zip(identifiers(frame, patient_column, path), texts(frame[column]), strict=True):
        if patient in by_patient:
            before = by_patient[patient]
            where = f"folds {before} and {fold}" if before != fold else f"fold {fold} twice"
            raise InputError(f"{path}: patient {patient} is in {where}: keep one row")
        by_patient[patient] = fold
    names = list(patients)
    without = [name for name in names if by_patient.get(name) is None]
    if without:
        raise InputError(
            f"{path} gives no '{column}' to {len(without)} of the {len(names)} patients of the cohort, "
            f"such as '{without[0]}'"
        )
    fold_N = np.asarray([_fold_number(by_patient[name], name, path) for name in names], np.int64)
    if len(_distinct(fold_N)) < 2:
        raise InputError(f"{path}: every patient of the cohort is in fold {fold_N[0]} of '{column}': give two or more")
    return fold_N


def _fold_number(text: str | None, patient: str, path: str) -> int:
    if text is None or not re.fullmatch(r"\d{1,9}(\.0+)?", text.strip()):
        raise InputError(f"{path}: the fold of patient '{patient}' is '{text or ''}': it must be a whole number")
    return int(text.strip().partition(".")[0])


def _check_test_classes(fold_N: Integers, y_N: Integers, classes: tuple[str, str]) -> None:
    for fold in _distinct(fold_N):
        for y, name in enumerate(classes):
            if not np.any((fold_N == fold) & (y_N == y)):
                raise InputError(
                    f"fold {fold} would test no patient of class '{name}': "
                    "use fewer or stratified folds, or mend folds.file"
                )


def _roles(settings: FoldsConfig, fold: int, fold_N: Integers, y_N: Integers, classes: tuple[str, str]) -> list[str]:
    """Each patient's role in one fold; the validation patients are drawn class by class."""
    role_N = np.where(fold_N == fold, "test", "train").astype(object)
    for y, name in enumerate(classes):
        members = np.flatnonzero((fold_N != fold) & (y_N == y))
        if len(members) < 2:
            raise InputError(
                f"fold {fold} leaves {len(members)} patients of class '{name}' outside its test set: "
                "training and validation need one each"
            )
        share = min(max(1, round(settings.validation * len(members))), len(members) - 1)
        rng = np.random.default_rng([settings.seed, fold, y])
        role_N[rng.permutation(members)[:share]] = "val"
    return [str(role) for role in role_N]
