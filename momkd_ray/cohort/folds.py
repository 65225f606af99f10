"""Patient-level folds, drawn or imported, each with its own validation set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from momkd_ray import storage
from momkd_ray.cohort.cohort import Cohort
from momkd_ray.cohort.exclusions import NEVER_TESTED, NOT_TRAINED, UNKNOWN_IN_SPLIT, UNLISTED, LeftOut
from momkd_ray.cohort.identifiers import nearest
from momkd_ray.cohort.splits import ROLES, Split, read_split
from momkd_ray.cohort.table_files import first_duplicate
from momkd_ray.cohort.text_encoding import assumed_encoding
from momkd_ray.cohort.understood import Understood
from momkd_ray.config.load import Config
from momkd_ray.config.sections import FoldsConfig
from momkd_ray.errors import InputError
from momkd_ray.input_faults import Fault, FaultsError

ROLE = "role_"

Integers = npt.NDArray[np.int64]
RoleNames = npt.NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class FoldPlan:
    """The role of every patient in every fold.

    Attributes:
        table: index `patient_id`; a column `role_<fold>` per fold with 'train', 'val', 'test' or, for a patient that is
            not in the fold, ''. If each patient is tested exactly once, that fold is in a column `fold` before them.
        left_out: rows for a cohort's `excluded`: names of the split that are not in the cohort, patients in none of its
            lists (they are not in the table), patients that are never tested, and patients that do not train.
        understood: as what an imported split was read, or the sites of the folds.
    """

    table: pd.DataFrame
    left_out: LeftOut = ()
    understood: tuple[Understood, ...] = ()

    @property
    def folds(self) -> list[int]:
        """The numbers of the folds, sorted."""
        return sorted(int(name.removeprefix(ROLE)) for name in self.table.columns if name.startswith(ROLE))

    def roles(self, fold: int) -> pd.Series[str]:
        """Returns patient_id -> 'train', 'val', 'test' or '' in this fold."""
        return self.table[f"{ROLE}{fold}"]

    def to_csv(self, location: str, patient_column: str) -> None:
        """Writes the plan to a CSV file."""
        storage.write_text(location, self.to_text(patient_column))

    def to_text(self, patient_column: str) -> str:
        """Returns the plan as the text of a CSV file."""
        return self.table.to_csv(index_label=patient_column, lineterminator="\n")


def make_folds(config: Config, cohort: Cohort) -> FoldPlan:
    """Draws the folds, or imports them from `folds.file`, and cuts a validation set where none is given.

    Patients in no list of an imported split are left out.

    The result depends on the patients, their labels and sites and `folds.seed`, never on the order of the tables' rows.

    Args:
        config: the resolved configuration.
        cohort: the patients.

    Raises:
        InputError: too few patients or sites; an imported split is missing or damaged; or a part of a fold would lack
            a class.
        FaultsError: an imported split has patients on two sides.
    """
    patients = cohort.patients.sort_index()
    unlisted: LeftOut = ()
    if config.folds.file is None:
        split, remedy = _draw_folds(config.folds, patients, cohort.classes)
    else:
        with assumed_encoding(config.cohort.encoding):
            split, remedy = read_split(config, cohort), f"mend {config.folds.file}"
        _refuse_leaks(split.leaks, config.folds.file)
        unlisted, few = _unlisted(split, patients, config.folds.file)
        split = replace(split, understood=(*few, *split.understood))
        patients = patients.drop([name for _, name, _, _ in unlisted])
        unlisted = (*_unknown_in_split(split, cohort), *unlisted)
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
    left_out = (*unlisted, *_never_tested(table), *_not_trained(config, cohort, table))
    plan = FoldPlan(table, left_out, split.understood)
    check_disjoint(plan)
    return plan


def check_disjoint(plan: FoldPlan) -> None:
    """Raises if a patient is on two sides of a split, or the column `fold` disagrees with the roles.

    Raises:
        InputError: names the patient.
    """
    table = plan.table
    twice = first_duplicate(str(name) for name in table.index)
    if twice is not None:
        raise InputError(f"patient '{twice}' is in the folds twice: a patient must be on one side of a split")
    for fold in plan.folds:
        roles = plan.roles(fold)
        invalid = roles[~roles.isin([*ROLES, ""])]
        if len(invalid):
            raise InputError(f"patient '{invalid.index[0]}' has role '{invalid.iloc[0]}' in fold {fold}")
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


def _unlisted(split: Split, patients: pd.DataFrame, path: str) -> tuple[LeftOut, list[Understood]]:
    """Lists the patients of the cohort that no fold of the split mentions, with a warning if they are most.

    Raises:
        InputError: it mentions none.
    """
    mentioned = set().union(*split.roles.values())
    without = [str(name) for name in patients.index if name not in mentioned]
    if not without:
        return (), []
    names = sorted(name for _, name in split.named)
    near = nearest(names, patients.index)
    if len(without) == len(patients):
        hint = (
            f"'{near[0]}' is nearest to '{near[1]}'" if near else f"such as '{names[0]}'" if names else "there is none"
        )
        raise InputError(
            f"{path} gives no fold to any of the {len(patients)} patients of the cohort, such as '{without[0]}' "
            f"(its names: {hint}): write its names as in the clinical table or the table of slides"
        )
    warning = []
    if len(without) > len(patients) / 2:
        hint = f"; '{near[0]}' is nearest to '{near[1]}'" if near and near[1] in without else ""
        what = (
            f"only {len(patients) - len(without)} of the {len(patients)} patients of the cohort are in its lists{hint}"
        )
        warning.append(Understood(path, "split", what, len(without), warning=True))
    return tuple(("patient", name, UNLISTED, "unmatched") for name in without), warning


def _refuse_leaks(leaks: Sequence[Fault], path: str) -> None:
    if leaks:
        patients = len({fault.id for fault in leaks})
        several = f"{patients} patients cannot be on one side of {path}, the first: " if patients > 1 else ""
        raise FaultsError(f"{several}{leaks[0].reason}", leaks)


def _unknown_in_split(split: Split, cohort: Cohort) -> LeftOut:
    """Lists the names of the split that no table has; excluded ones already have their reason."""
    known = {("patient", str(name)) for name in cohort.patients.index}
    known |= {("slide", str(name)) for name in cohort.slides["slide_id"]}
    known |= set(zip(cohort.excluded["kind"], cohort.excluded["id"], strict=True))
    known |= {(fault.kind, fault.id) for fault in cohort.rejected}
    return tuple((kind, name, UNKNOWN_IN_SPLIT, "unmatched") for kind, name in sorted(split.named - known))


def _never_tested(table: pd.DataFrame) -> LeftOut:
    tested = (_roles_of(table) == "test").any(axis=1)
    return tuple(("patient", str(name), NEVER_TESTED, "unmatched") for name in table.index[~tested])


def _not_trained(config: Config, cohort: Cohort, table: pd.DataFrame) -> LeftOut:
    """Lists the training patients that do not train because `omics.missing: drop` requires omics."""
    if cohort.omics is None or config.omics.missing == "keep":
        return ()
    asked = (_roles_of(table) == "train").any(axis=1) & ~table.index.isin(cohort.omics.index)
    return tuple(("patient", str(name), NOT_TRAINED, "") for name in table.index[asked])


def _roles_of(table: pd.DataFrame) -> pd.DataFrame:
    return table[[name for name in table.columns if name.startswith(ROLE)]]


def _draw_folds(settings: FoldsConfig, patients: pd.DataFrame, classes: tuple[str, ...]) -> tuple[Split, str]:
    """Draws folds in which every patient is tested once; returns them with the remedy if one lacks a class."""
    if settings.kind == "leave_one_site_out":
        return _leave_one_site_out(settings, patients)
    from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold

    y_N = patients["y"].to_numpy(dtype=np.int64)
    count, name = min((int((y_N == y).sum()), name) for y, name in enumerate(classes))
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
        # with a single class it balances the folds' sizes only
        stratum_N = y_N if settings.stratify else np.zeros_like(y_N)
        splits = StratifiedGroupKFold(settings.n, **options).split(y_N[:, None], stratum_N, site_N)
        remedy = f"use fewer folds, or a column with more sites than '{settings.site}'"
    roles = {}
    for fold, (_, tested) in enumerate(splits):
        role_N = np.full(len(y_N), "train", object)
        role_N[tested] = "test"
        roles[fold] = dict(zip(map(str, patients.index), role_N, strict=True))
    return Split(roles, frozenset()), remedy


def _leave_one_site_out(settings: FoldsConfig, patients: pd.DataFrame) -> tuple[Split, str]:
    """Tests the patients of each site in a fold of their own."""
    sites = sorted(set(patients["site"]))
    if len(sites) < 2:
        raise InputError(
            f"the cohort's patients are of one site ('{settings.site}'), of which none can be left out: set folds.kind "
            "to k_fold and folds.site to null"
        )
    roles = {
        fold: {str(name): "test" if own == site else "train" for name, own in patients["site"].items()}
        for fold, site in enumerate(sites)
    }
    counts = patients["site"].value_counts()
    shown = [f"fold {fold} tests '{site}' ({counts[site]} patients)" for fold, site in enumerate(sites[:12])]
    more = f" and so on to fold {len(sites) - 1}" if len(sites) > 12 else ""
    what = f"each of the {len(sites)} sites is left out once: {', '.join(shown)}{more}"
    remedy = f"set folds.kind to k_fold, which tests several values of '{settings.site}' together"
    understood = (Understood(settings.site or "", "split", what, len(sites)),)
    return Split(roles, frozenset(), understood=understood), remedy


def _check_sites(settings: FoldsConfig, sites: int) -> None:
    if sites < settings.n:
        remedy = f"set folds.n to {sites} or fewer" if sites > 1 else "leave folds.site out"
        raise InputError(
            f"the cohort's patients are of {sites} sites ('{settings.site}'), too few for {settings.n} folds: {remedy}"
        )


def _check_part(fold: int, role: str, role_N: RoleNames, y_N: Integers, classes: tuple[str, ...], remedy: str) -> None:
    verb = {"train": "train on", "val": "validate on", "test": "test"}[role]
    for y, name in enumerate(classes):
        if not np.any((role_N == role) & (y_N == y)):
            raise InputError(f"fold {fold} would {verb} no patient of class '{name}': {remedy}")


def _cut_validation(
    settings: FoldsConfig, fold: int, role_N: RoleNames, y_N: Integers, classes: tuple[str, ...]
) -> None:
    """Moves some of a fold's training patients to its validation set, drawn class by class."""
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
