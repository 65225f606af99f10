"""Finds the columns of the omics that are no genes: row numbers, identifiers, dates, the label, clinical facts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from momkd_ray.cohort.gene_scale import FEW_PATIENTS, tag_of
from momkd_ray.cohort.known_columns import normalised
from momkd_ray.cohort.table_files import PANDAS_INDEX

Values = npt.NDArray[np.float32] | npt.NDArray[np.float64]

INDEX = re.compile(rf"(Unnamed: \d+(_level_\d+)?|\.\.\.\d+|level_\d+|{PANDAS_INDEX}\d*_*|)", re.IGNORECASE)

# compared in lower case without punctuation; none is the symbol of a gene
_CLINICAL = frozenset(
    re.findall(
        r"\w+",
        """age agey ageyears ageatdiagnosis agediagnosis ageatinitialpathologicdiagnosis sex gender isfemale ismale
        female male race ethnicity bmi bodymassindex height weight stage ajccstage pathologicstage clinicalstage
        tumorstage tumourstage grade tumorgrade tumourgrade histologicalgrade nottinghamgrade ecog os pfs dfs survival
        overallsurvival survivaltime survivalmonths survivaldays survivalyears survivalstatus futime fustat followup
        followupmonths followupdays vitalstatus status event censor censored censorship dead death deceased alive time
        timetoevent year yearofdiagnosis label labels class target outcome y fold folds split train val validation test
        cohort site center centre hospital batch plate nslides nslide numslides npatches tumorpurity tumourpurity purity
        tmb msiscore ploidy smoker smoking packyears lymphnodes lymphnodespositive nodespositive tumorsize tumoursize
        oncotreecode""",
    )
)
_IDENTIFIERS = frozenset(
    re.findall(
        r"\w+",
        """id case filename caseid patient patientid patientnumber sample sampleid slide slideid subject subjectid
        participant barcode aliquot uuid mrn accession accessionnumber index rowindex rownumber rowid rownames""",
    )
)
_CLINICAL_PATTERNS = (
    re.compile(
        r"(os|pfs|dfs|dss|pfi|dfi|rfs|efs|ttp|survival)[._ -]?(time|months?|days?|years?|status|events?|censor\w*)",
        re.I,
    ),
    re.compile(r"days[._ -]?to[._ -]\w+|(age|year)[._ -](at|of)[._ -]\w+|(is|has)[._ ]\w+", re.I),
)
_IDENTIFIER_PATTERN = re.compile(
    r"(case|patient|sample|slide|subject|participant|aliquot|file|study|hospital)[._ ]?(id|uuid|barcode|number|no)",
    re.I,
)
_DATE_NAME = re.compile(r"(date|datum)([._ -]\w+)?|\w+[._ -](date|datum)", re.I)
_MOSTLY = 0.9  # share of columns with a tag beside which a column without one is no gene


@dataclass(frozen=True)
class Label:
    """What is to be predicted.

    Attributes:
        column: name of its column in the clinical table.
        written: of each patient as written, None if blank.
        classes: of each patient of the cohort.
    """

    column: str = ""
    written: Mapping[str, str | None] = field(default_factory=dict)
    classes: Mapping[str, str] = field(default_factory=dict)


def no_genes(values: pd.DataFrame, row_numbers: frozenset[str], label: Label) -> dict[str, str]:
    """Finds the columns that are no genes.

    Args:
        values: (n, columns) of the cohort's patients, index the patients, NaN where blank.
        row_numbers: columns that count the rows of the file.
        label: what is to be predicted.

    Returns:
        Columns, each with what it is, the label and its copies first.
    """
    names = [str(name) for name in values.columns]
    values_NG = values.to_numpy()
    found: dict[str, str] = {}

    def note(flags: Iterable[bool], what: str) -> None:
        for name, flag in zip(names, flags, strict=True):
            if flag:
                found.setdefault(name, what)

    note((name == label.column for name in names), "has the name of the label")
    for meaning in (label.written, label.classes):
        copies = _copies(values_NG, [meaning.get(str(patient)) for patient in values.index])
        note(copies, f"is a copy of the label '{label.column}'")
    note((not name for name in names), "has no name")
    note((bool(INDEX.fullmatch(name)) or name in row_numbers for name in names), "counts the rows")
    for name in names:
        if what := _by_name(name):
            found.setdefault(name, what)
    note(_dates(values_NG), "holds dates")
    tagged = [bool(tag_of(name)) for name in names]
    if len(names) >= 10 and sum(tagged) >= _MOSTLY * (len(names) - len(found)):
        note((not has_tag for has_tag in tagged), "lacks the mark of the other columns")
    return found


def _by_name(name: str) -> str:
    """Says what a column is, if its name tells that it is no gene; otherwise returns ''."""
    plain = normalised(name)
    if plain in _IDENTIFIERS or _IDENTIFIER_PATTERN.fullmatch(name):
        return "is an identifier by its name"
    if _DATE_NAME.fullmatch(name):
        return "is a date by its name"
    if plain in _CLINICAL or any(pattern.fullmatch(name) for pattern in _CLINICAL_PATTERNS):
        return "is a clinical fact by its name"
    return ""


def _copies(values_NG: Values, labels: list[str | None]) -> npt.NDArray[np.bool_]:
    """Returns the columns whose values are the label: a number for each of its values, or the label's own numbers.

    A gene of two values is a copy by chance in one of 2^n columns, so that few patients decide nothing.
    """
    columns = values_NG.shape[1]
    none = np.zeros(columns, bool)
    known = np.asarray([label is not None for label in labels], bool)
    names = sorted({label for label in labels if label is not None})
    if known.sum() < FEW_PATIENTS or len(names) < 2:
        return none
    rows_NG = values_NG[known]
    own = [label for label in labels if label is not None]
    numbers = pd.to_numeric(pd.Series(own), errors="coerce").to_numpy(np.float64)
    equal = none
    if np.isfinite(numbers).all() and len(names) > 2:
        equal = np.isclose(rows_NG, numbers[:, None], rtol=1e-5, equal_nan=False).all(axis=0)
    if known.sum() <= np.log2(max(columns, 2)) + 10 or len(names) > min(
        20, known.sum() // 4
    ):  # many are as good as distinct
        return equal
    levels_LG = np.full((len(names), columns), np.nan, np.float32)
    constant = np.ones(columns, bool)
    for level, name in enumerate(names):
        its = rows_NG[[label == name for label in own]]
        levels_LG[level] = its[0]
        constant &= (its == its[0]).all(axis=0)
    distinct = (np.diff(np.sort(levels_LG, axis=0), axis=0) > 0).all(axis=0)
    return equal | (constant & distinct)


def _dates(values_NG: Values) -> npt.NDArray[np.bool_]:
    """Returns the columns of numbers such as 20190503; single precision may have moved the last digit by one."""
    dates = np.zeros(values_NG.shape[1], bool)
    if len(values_NG) < FEW_PATIENTS:
        return dates
    low_G, high_G = np.fmin.reduce(values_NG, axis=0), np.fmax.reduce(values_NG, axis=0)
    for column in np.flatnonzero((low_G >= 19000101) & (high_G < 21000101)):
        numbers_N = values_NG[:, column].astype(np.float64)
        numbers_N = numbers_N[~np.isnan(numbers_N)]
        month_N, day_N = numbers_N // 100 % 100, numbers_N % 100
        fits_N = (numbers_N == np.rint(numbers_N)) & (month_N >= 1) & (month_N <= 12) & (day_N <= 32)
        dates[column] = fits_N.all()
    return dates
