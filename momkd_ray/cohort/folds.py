"""Patient-level folds, drawn or imported, each with a validation set of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from momkd_ray import storage
from momkd_ray.cohort.cohort import NEVER_TESTED, NOT_TRAINED, STRANGER, Cohort, LeftOut
from momkd_ray.cohort.splits import ROLES, Split, read_split
from momkd_ray.cohort.table_files import first_duplicate
from momkd_ray.config.load import Config
from momkd_ray.config.sections import FoldsConfig
from momkd_ray.errors import InputError
from momkd_ray.input_faults import Fault, FaultsError, OnError

ROLE = "role_"

Integers = npt.NDArray[np.int64]
RoleNames = npt.NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class FoldPlan:
    """Who is trained on, validated on and tested on in each fold.

    table: index `patient_id`; a column `role_<fold>` per fold, 'train', 'val', 'test' or, where the patient is not in
        it, ''. Where each patient is tested exactly once, that fold stands in a column `fold` before them.
    rejected: patients of the cohort that the imported split does not mention; they are not in the table.
    left_out: rows of a cohort's `excluded`: whom the split names in vain or never tests, and who does not train.
    """

    table: pd.DataFrame
    rejected: tuple[Fault, ...] = ()
    left_out: LeftOut = ()

    @property
    def folds(self) -> list[int]:
        """The fold numbers, sorted."""
        return sorted(int(name.removeprefix(ROLE)) for name in self.table.columns if name.startswith(ROLE))

    def roles(self, fold: int) -> pd.Series[str]:
        """patient_id -> 'train', 'val', 'test' or '' in this fold."""
        return self.table[f"{ROLE}{fold}"]

    def to_csv(self, location: str, patient_column: str) -> None:
        """Write the plan whole."""
        storage.write_text(location, self.table.to_csv(index_label=patient_column, lineterminator="\n"))


def make_folds(config: Config, cohort: Cohort, on_error: OnError = "stop") -> FoldPlan:
    """Draw the folds, or take them from `folds.file`, and cut a validation set where none is given.

    The result depends on the patients, their labels and sites and `folds.seed`, never on the order of the tables' rows.

    Args:
        config: the whole tree.
        cohort: whose patients get roles.
        on_error: `skip` leaves out the patients of the cohort that an imported split does not mention.

    Raises:
        InputError: too few patients or sites; an imported split is missing or damaged; or a part of a fold would lack
            a class.
        FaultsError: an imported split has patients on two sides.
    """
    patients = cohort.patients.sort_index()
    rejected: tuple[Fault, ...] = ()
    strangers: LeftOut = ()
    if config.folds.file is None:
        split, remedy = _drawn(config.folds, patients, cohort.classes)
    else:
        split, remedy = read_split(config, cohort), f"mend {config.folds.file}"
        _refuse_leaks(split.leaks, config.folds.file)
        strangers = _strangers(split, cohort)
        rejected = _unmentioned(split, patients, config.folds.file, on_error)
        patients = patients.drop([fault.id for fault in rejected])
        if len(split.roles) < 2:
            raise InputError(f"{config.folds.file} gives one fold only: give two or more")
    y_N = patients["y"].to_numpy(dtype=np.int64)
    names = [str(name) for name in patients.index]
    roles = {
        fold: np.asarray([own.get(name, "") for name in names], object) for fold, own in sorted(split.roles.items())
    }
    for fold, role_N in roles.items():
        for part in ROLES if fold in split.validated else ("test",):
            _check_part(fold, part, role_N, y_N, cohort.classes, remedy)
    for fold in sorted(roles.keys() - split.validated):
        _cut_validation(config.folds, fold, roles[fold], y_N, cohort.classes)
    table = _plan_table(names, roles)
    plan = FoldPlan(table, rejected, (*strangers, *_never_tested(table), *_not_trained(config, cohort, table)))
    check_disjoint(plan)
    return plan


def check_disjoint(plan: FoldPlan) -> None:
    """Assert that no patient is on two sides of a split, and that `fold`, if there, is where each is tested.

    Raises:
        InputError: naming the patient.
    """
    table = plan.table
    twice = first_duplicate(str(name) for name in table.index)
    if twice is not None:
        raise InputError(f"patient '{twice}' is in the folds twice: a patient must be on one side of a split")
    for fold in plan.folds:
        roles = plan.roles(fold)
        strange = roles[~roles.isin([*ROLES, ""])]
        if len(strange):
            raise InputError(f"patient '{strange.index[0]}' has role '{strange.iloc[0]}' in fold {fold}")
        if "fold" not in table.columns:
            continue
        crossed = table.index[(roles == "test") != (table["fold"] == fold)]
        if len(crossed):
            name, own = crossed[0], table.loc[crossed[0], "fold"]
            raise InputError(
                f"patient '{name}' is tested in fold {own} but has role '{roles[name]}' in fold {fold}: "
                "each patient must be tested in exactly one fold"
            )


def _plan_table(patients: list[str], roles: Mapping[int, RoleNames]) -> pd.DataFrame:
    index = pd.Index(patients, name="patient_id", dtype="str")
    columns = {f"{ROLE}{fold}": pd.array(role_N.tolist(), dtype="str") for fold, role_N in roles.items()}
    table = pd.DataFrame(columns, index=index)
    tested_NF = table.to_numpy() == "test"
    if (tested_NF.sum(axis=1) == 1).all():
        table.insert(0, "fold", np.asarray(list(roles), np.int64)[tested_NF.argmax(axis=1)])
    return table


def _unmentioned(split: Split, patients: pd.DataFrame, path: str, on_error: OnError) -> tuple[Fault, ...]:
    """The patients of the cohort that the split says nothing of."""
    mentioned = set().union(*split.roles.values())
    without = [str(name) for name in patients.index if name not in mentioned]
    remedy = "add them to it, or take them out of the clinical table"
    if without and (on_error == "stop" or len(without) == len(patients)):
        raise InputError(
            f"{path} gives no fold to {len(without)} of the {len(patients)} patients of the cohort, "
            f"such as '{without[0]}': {remedy}"
        )
    return tuple(
        Fault("patient", name, "unmatched", path, f"{path} gives no fold to patient '{name}': {remedy}")
        for name in without
    )


def _refuse_leaks(leaks: Sequence[Fault], path: str) -> None:
    if leaks:
        patients = len({fault.id for fault in leaks})
        several = f"{patients} patients cannot be on one side of {path}, the first: " if patients > 1 else ""
        raise FaultsError(f"{several}{leaks[0].reason}", leaks)


def _strangers(split: Split, cohort: Cohort) -> LeftOut:
    """Whom the split names although the tables do not; whoever the cohort leaves out has its reason there."""
    known = {("patient", str(name)) for name in cohort.patients.index}
    known |= {("slide", str(name)) for name in cohort.slides["slide_id"]}
    known |= set(zip(cohort.excluded["kind"], cohort.excluded["id"], strict=True))
    known |= {(fault.kind, fault.id) for fault in cohort.rejected}
    return tuple((kind, name, STRANGER, "unmatched") for kind, name in sorted(split.named - known))


def _never_tested(table: pd.DataFrame) -> LeftOut:
    tested = (_roles_of(table) == "test").any(axis=1)
    return tuple(("patient", str(name), NEVER_TESTED, "unmatched") for name in table.index[~tested])


def _not_trained(config: Config, cohort: Cohort, table: pd.DataFrame) -> LeftOut:
    """Who has the role of a training patient somewhere, but no omics to train with where they are asked for."""
    if cohort.omics is None or config.omics.missing == "keep":
        return ()
    asked = (_roles_of(table) == "train").any(axis=1) & ~table.index.isin(cohort.omics.index)
    return tuple(("patient", str(name), NOT_TRAINED, "") for name in table.index[asked])


def _roles_of(table: pd.DataFrame) -> pd.DataFrame:
    return table[[name for name in table.columns if name.startswith(ROLE)]]


def _drawn(settings: FoldsConfig, patients: pd.DataFrame, classes: tuple[str, str]) -> tuple[Split, str]:
    """Folds in which every patient is tested once, and what to do where one lacks a class."""
    from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold

    y_N = patients["y"].to_numpy(dtype=np.int64)
    for y, name in enumerate(classes):
        count = int((y_N == y).sum())
        if count < settings.n:
            remedy = f"set folds.n to {count} or fewer" if count > 1 else "two is the least"
            raise InputError(f"class '{name}' has {count} patients, too few for {settings.n} folds: {remedy}")
    options = {"shuffle": True, "random_state": settings.seed % 2**32}
    if settings.site is None:
        splitter = StratifiedKFold if settings.stratify else KFold
        splits = splitter(settings.n, **options).split(y_N[:, None], y_N)
        remedy = "use fewer or stratified folds"
    else:
        site_N = patients["site"].to_numpy()
        _check_sites(settings, len(set(site_N)))
        # of one class it evens out the sizes of the folds alone
        spread_N = y_N if settings.stratify else np.zeros_like(y_N)
        splits = StratifiedGroupKFold(settings.n, **options).split(y_N[:, None], spread_N, site_N)
        remedy = f"use fewer folds, or a column with more sites than '{settings.site}'"
    roles = {}
    for fold, (_, tested) in enumerate(splits):
        role_N = np.full(len(y_N), "train", object)
        role_N[tested] = "test"
        roles[fold] = dict(zip(map(str, patients.index), role_N, strict=True))
    return Split(roles, frozenset()), remedy


def _check_sites(settings: FoldsConfig, sites: int) -> None:
    if sites < settings.n:
        remedy = f"set folds.n to {sites} or fewer" if sites > 1 else "leave folds.site out"
        raise InputError(
            f"the cohort's patients are of {sites} sites ('{settings.site}'), too few for {settings.n} folds: {remedy}"
        )


def _check_part(fold: int, role: str, role_N: RoleNames, y_N: Integers, classes: tuple[str, str], remedy: str) -> None:
    verb = {"train": "train on", "val": "validate on", "test": "test"}[role]
    for y, name in enumerate(classes):
        if not np.any((role_N == role) & (y_N == y)):
            raise InputError(f"fold {fold} would {verb} no patient of class '{name}': {remedy}")


def _cut_validation(
    settings: FoldsConfig, fold: int, role_N: RoleNames, y_N: Integers, classes: tuple[str, str]
) -> None:
    """Make some of a fold's training patients its validation patients, drawn class by class."""
    for y, name in enumerate(classes):
        members = np.flatnonzero((role_N == "train") & (y_N == y))
        if len(members) < 2:
            raise InputError(
                f"fold {fold} leaves {len(members)} patients of class '{name}' beside its test set: "
                "training and validation need one each"
            )
        share = min(max(1, round(settings.validation * len(members))), len(members) - 1)
        rng = np.random.default_rng([settings.seed, fold, y])
        role_N[rng.permutation(members)[:share]] = "val"
