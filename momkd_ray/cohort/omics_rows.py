"""Joins the samples of each patient into one row of omics, and finds the rows that cannot be used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from momkd_ray.cohort.cell_numbers import Floats, Mask
from momkd_ray.cohort.gene_names import listed, number_of, setting_with, some_of
from momkd_ray.cohort.gene_scale import SMALL
from momkd_ray.cohort.gene_tables import GeneTable
from momkd_ray.cohort.identifiers import is_normal
from momkd_ray.cohort.understood import Understood
from momkd_ray.config.sections import OmicsConfig
from momkd_ray.input_faults import Fault, Problem

Ints = npt.NDArray[np.intp]

_FEW = 12  # samples that one setting names


@dataclass(frozen=True, eq=False)
class SampleRows:
    """Omics with one row per patient.

    Attributes:
        location: of the table or folder.
        patients: (N,).
        rows: (N,) their rows in the `GeneTable`.
        files: (N,) the file of each.
        genes: (G,).
        values_NG: float32, NaN for a blank or a text.
        words_NG: cells that are text; None if there are none.
        words: text of these cells by sample and gene.
    """

    location: str
    patients: list[str]
    rows: list[int]
    files: list[str]
    genes: list[str]
    values_NG: Floats
    words_NG: Mask | None
    words: dict[tuple[int, str], str]

    def where(self, kept_N: Mask) -> SampleRows:
        """Returns some of the rows."""
        rows = np.flatnonzero(kept_N)
        return SampleRows(
            self.location,
            [self.patients[row] for row in rows],
            [self.rows[row] for row in rows],
            [self.files[row] for row in rows],
            self.genes,
            self.values_NG[rows],
            None if self.words_NG is None else self.words_NG[rows],
            self.words,
        )


def row_a_patient(
    table: GeneTable, patients: Sequence[str], location: str, settings: OmicsConfig, understood: list[Understood]
) -> tuple[SampleRows, list[Fault]]:
    """Chooses a row for each patient.

    Samples of normal tissue are left out, and so are those that `omics.leave_out` names. Samples of a patient that
    agree count once; a patient whose samples differ is a fault.

    Args:
        table: the samples.
        patients: (S,) of its samples.
        location: of the table.
        settings: the configuration's `omics` section.
        understood: receives how samples were matched.
    """
    unwanted = set(listed(settings.leave_out, sorted(set(table.samples))))
    normal = {name for name in table.samples if is_normal(name) and name not in settings.keep} - unwanted
    rows_of: dict[str, list[int]] = {}
    for row, (name, patient) in enumerate(zip(table.samples, patients, strict=True)):
        if name not in unwanted and name not in normal:
            rows_of.setdefault(patient, []).append(row)
    _tell_samples(location, unwanted, normal, understood)
    differing = {p: rows for p, rows in rows_of.items() if len(rows) > 1 and not _agree(table, rows)}
    agreeing = [p for p, rows in rows_of.items() if len(rows) > 1 and p not in differing]
    if agreeing:
        patients_have = number_of(len(agreeing), "patient has", "patients have")
        what = f"{patients_have} several rows that agree and count once: {some_of(agreeing)}"
        understood.append(Understood(location, "identifiers", what, len(agreeing)))
    faults = _differing_samples(table, differing, location, settings)
    single = {patient: rows[0] for patient, rows in rows_of.items() if patient not in differing}
    rows = list(single.values())
    read = SampleRows(
        location,
        list(single),
        rows,
        [table.files[row] if table.files else location for row in rows],
        table.genes,
        table.values_SG[rows],
        None if table.words_SG is None else table.words_SG[rows],
        table.words,
    )
    return read, faults


def _tell_samples(location: str, unwanted: set[str], normal: set[str], understood: list[Understood]) -> None:
    for names, what in (
        (normal, "of normal tissue, blood or a control left out"),
        (unwanted, "left out by omics.leave_out"),
    ):
        if names:
            understood.append(
                Understood(
                    location,
                    "identifiers",
                    f"{number_of(len(names), 'sample', 'samples')} {what}: {some_of(sorted(names))}",
                    len(names),
                )
            )


def _agree(table: GeneTable, rows: Sequence[int]) -> bool:
    first = table.values_SG[rows[0]]
    if not all(np.array_equal(first, table.values_SG[row], equal_nan=True) for row in rows[1:]):
        return False
    if table.words_SG is None or not table.words_SG[list(rows)].any():
        return True
    return len({tuple(sorted((g, w) for (r, g), w in table.words.items() if r == row)) for row in rows}) == 1


def _differing_samples(
    table: GeneTable, differing: dict[str, list[int]], location: str, settings: OmicsConfig
) -> list[Fault]:
    """Lists the patients whose samples differ; if they are few, with the setting that keeps each one's first."""
    names_of = {patient: sorted({table.samples[row] for row in rows}) for patient, rows in differing.items()}
    others = sorted(name for names in names_of.values() for name in names[1:])
    faults = []
    for patient, rows in differing.items():
        names = names_of[patient]
        if len(names) < len(rows):
            places = sorted((table.places[row] for row in rows), key=lambda place: (len(place), place))
            kind = "row" if places[0].startswith("data row") else "sample"
            numbers = _places(places)
            what = f"patient '{patient}' has more than one {kind} ({numbers}), and they differ: keep one"
        else:
            cure = f"keep one, such as by {setting_with('omics.leave_out', settings.leave_out, others)}"
            if len(others) > _FEW:
                cure = f"leave out all but one, such as '{names[0]}', by omics.leave_out, which takes patterns"
            shown = ", ".join(f"'{name}'" for name in names[:4])
            what = f"patient '{patient}' has {len(names)} samples that differ ({shown}): {cure}"
        faults.append(_fault(patient, "duplicated", location, what))
    return faults


def _places(places: Sequence[str]) -> str:
    kind = places[0].rpartition(" ")[0]
    numbers = [place.rpartition(" ")[2] for place in places]
    if not kind or any(place.rpartition(" ")[0] != kind for place in places):
        return ", ".join(places[:4])
    shown = numbers if len(numbers) < 5 else [*numbers[:3], f"{len(numbers) - 3} more"]
    return f"{kind}s {', '.join(shown[:-1])} and {shown[-1]}"


def without_sparse(
    read: SampleRows, settings: OmicsConfig, understood: list[Understood]
) -> tuple[SampleRows, list[Fault]]:
    """Leaves out the genes of which too many values are blank, and lists the faults of patients with too many.

    Too many is a larger share than `omics.max_missing_share`. Whichever has the largest share goes first, and the
    others are looked at without it. The rows hold no text.
    """
    blank_NG = np.isnan(read.values_NG)
    rows, genes = np.arange(len(read.patients)), np.arange(len(read.genes))
    faults: list[Fault] = []
    sparse: list[int] = []
    while len(rows) and len(genes):
        left_NG = blank_NG[np.ix_(rows, genes)]
        share_N, share_G = left_NG.mean(axis=1), left_NG.mean(axis=0)
        worst_row, worst_gene = share_N.max(), share_G.max()
        if max(worst_row, worst_gene) <= settings.max_missing_share:
            break
        if worst_row >= worst_gene:
            bad_N = (share_N > settings.max_missing_share) & (share_N >= worst_gene)
            faults += [
                _gaps(read, int(rows[n]), genes[left_NG[n]], len(genes), settings) for n in np.flatnonzero(bad_N)
            ]
            rows = rows[~bad_N]
        else:
            bad_G = (share_G > settings.max_missing_share) & (share_G > worst_row)
            sparse += genes[bad_G].tolist()
            genes = genes[~bad_G]
    if sparse:
        names = [read.genes[g] for g in sorted(sparse)]
        entirely = int(blank_NG[:, sparse].all(axis=0).sum())
        genes_are = number_of(len(names), "gene is", "genes are")
        what = (
            f"{genes_are} left out, blank for more than {settings.max_missing_share:.0%} of the patients "
            f"(omics.max_missing_share), {entirely:,} of them for all: {some_of(names)}"
        )
        understood.append(Understood(read.location, "columns", what, len(names)))
    kept = SampleRows(
        read.location,
        [read.patients[row] for row in rows],
        [read.rows[row] for row in rows],
        [read.files[row] for row in rows],
        [read.genes[g] for g in genes],
        read.values_NG[np.ix_(rows, genes)],
        None,
        {},
    )
    return kept, faults


def without_wrong_cells(read: SampleRows) -> tuple[SampleRows, list[Fault]]:
    """Leaves out the rows with text or infinite values, and lists their faults."""
    wrong_NG = np.isinf(read.values_NG) if read.words_NG is None else np.isinf(read.values_NG) | read.words_NG
    wrong_N = np.asarray(wrong_NG.any(axis=1), bool)
    return read.where(~wrong_N), [_wrong_cell(read, int(row), wrong_NG[row]) for row in np.flatnonzero(wrong_N)]


def repeated_rows(read: SampleRows) -> list[Fault]:
    """Lists the faults of rows of one value, and of rows that equal another patient's."""
    values_NG = read.values_NG
    if not values_NG.size or _may_repeat(values_NG):
        return []
    low_N, high_N = (reduce(values_NG, axis=1) for reduce in (np.fmin.reduce, np.fmax.reduce))
    constant_N = (low_N == high_N) & (len(read.genes) > 1)
    faults = []
    for row in np.flatnonzero(constant_N):
        what = f"all genes of patient '{read.patients[row]}' are {low_N[row]:g}: correct the row or remove it"
        faults.append(_row_fault(read, int(row), "constant", what))
    return faults + _equal_rows(read, np.flatnonzero(~constant_N).tolist())


def _may_repeat(values_NG: Floats) -> bool:
    """Returns whether rows may be constant or equal by chance: all values are 0 or 1, or copy numbers."""
    given = values_NG[~np.isnan(values_NG)]
    if ((given == 0) | (given == 1)).all():
        return True
    return bool((given < 0).any() and (np.abs(given) <= SMALL).all() and (given == np.rint(given)).all())


def _wrong_cell(read: SampleRows, row: int, wrong_G: Mask) -> Fault:
    patient, count = read.patients[row], int(wrong_G.sum())
    words_G = wrong_G if read.words_NG is None else read.words_NG[row]
    if read.words_NG is not None and words_G.any():
        gene = read.genes[int(np.flatnonzero(words_G)[0])]
        problem: Problem = "not a number"
        what = f"'{read.words.get((read.rows[row], gene), '...')}', not a number"
    else:
        gene = read.genes[int(np.flatnonzero(wrong_G)[0])]
        problem, what = "not finite", "infinite or beyond single precision"
    several = f" ({count} such values in the row)" if count > 1 else ""
    sentence = f"gene '{gene}' of patient '{patient}' is {what}{several}: correct it, or remove the gene or the row"
    return _row_fault(read, row, problem, sentence)


def _gaps(read: SampleRows, row: int, blank: Ints, of: int, settings: OmicsConfig) -> Fault:
    patient, gene = read.patients[row], read.genes[int(blank[0])]
    several = f" ({len(blank)} such values in the row)" if len(blank) > 1 else ""
    sentence = (
        f"gene '{gene}' of patient '{patient}' is blank{several}, more than {settings.max_missing_share:.0%} of "
        f"the {of:,} genes: fill in values or remove the row, or raise omics.max_missing_share"
    )
    return _row_fault(read, row, "missing value", sentence)


def _equal_rows(read: SampleRows, rows: Iterable[int]) -> list[Fault]:
    """Lists the faults of rows with equal values: as it is unknown whose they are, all of them are left out."""
    same: dict[bytes, list[int]] = {}
    for row in rows:
        same.setdefault(hashlib.sha256(read.values_NG[row].tobytes()).digest(), []).append(row)
    faults = []
    for group in (group for group in same.values() if len(group) > 1):
        for row in group:
            patient, other = read.patients[row], read.patients[group[0] if row != group[0] else group[1]]
            what = (
                f"patient '{patient}' has the very values of patient '{other}': find out whose they are, or remove both"
            )
            faults.append(_row_fault(read, row, "duplicated", what))
    return faults


def _row_fault(read: SampleRows, row: int, problem: Problem, what: str) -> Fault:
    return _fault(read.patients[row], problem, read.files[row], what)


def _fault(patient: str, problem: Problem, location: str, what: str) -> Fault:
    return Fault("omics", patient, problem, location, f"{location}: {what}")
