"""Reads the omics of a cohort: a table, an .h5ad file or a folder, to one row per patient and one column per gene.

Shapes: S samples of the cohort's patients, N patients, G genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from momkd_ray import storage
from momkd_ray.cohort.anndata_files import read_h5ad
from momkd_ray.cohort.gene_names import listed, number_of, some_of
from momkd_ray.cohort.gene_scale import GeneFamily, gene_families
from momkd_ray.cohort.gene_tables import GeneTable, read_gene_table
from momkd_ray.cohort.identifiers import few_matched, is_normal, refuse_longer
from momkd_ray.cohort.no_genes import Label
from momkd_ray.cohort.omics_columns import used_columns
from momkd_ray.cohort.omics_rows import SampleRows, repeated_rows, row_a_patient, without_sparse, without_wrong_cells
from momkd_ray.cohort.omics_vectors import read_vectors
from momkd_ray.cohort.option_names import set_to
from momkd_ray.cohort.sample_files import read_sample_files, sample_file_paths
from momkd_ray.cohort.samples import Samples
from momkd_ray.cohort.table_files import blank_cell
from momkd_ray.cohort.understood import Understood
from momkd_ray.config.sections import OmicsConfig
from momkd_ray.errors import InputError
from momkd_ray.input_faults import Fault, raise_faults


@dataclass(frozen=True, eq=False)
class OmicsTable:
    """The omics of the requested patients, and their faults.

    Attributes:
        values: (N, G) float32, index `patient_id` sorted, genes in table order, NaN where blank; rows without a fault.
        families: the genes by scale.
        rows: number of samples in the table.
        faults: of kind omics.
        of_others: samples of patients who were not requested.
        blank: patients whose row is entirely blank, who have no omics.
        other_files: files in a folder of vectors that are not vectors.
        understood: how the omics were read, and what of them is not used.
    """

    values: pd.DataFrame
    families: tuple[GeneFamily, ...]
    rows: int
    faults: tuple[Fault, ...]
    of_others: tuple[str, ...]
    blank: tuple[str, ...]
    other_files: tuple[str, ...]
    understood: tuple[Understood, ...]


def read_omics(
    location: str,
    patient_column: str | None,
    patients: Sequence[str],
    settings: OmicsConfig | None = None,
    label: Label | None = None,
) -> OmicsTable:
    """Reads the omics of these patients.

    Columns that are no genes are left out, and so are genes that are blank for too many patients. A row is a fault and
    is left out if a value is infinite or text, too many are blank, all values are the same, its patient has several
    samples that differ, or it equals the row of another patient.

    Args:
        location: a table with a row a patient or a row a gene, an .h5ad file, a folder with a file of gene
            values for each sample, or a folder of `<patient>.npy` with, if the genes have names, `genes.txt`.
        patient_column: of a table; None to find it.
        patients: of the cohort.
        settings: the configuration's `omics` section.
        label: what is to be predicted, copies of which are no genes.

    Raises:
        InputError: it cannot be read or understood, or has no usable row of these patients.
    """
    settings, samples = settings or OmicsConfig(), Samples(patients)
    table, faults, other_files = _read(location, patient_column, settings, samples)
    column, rows = table.blank
    faults += [
        Fault("omics", f"data row {row}", "missing value", location, blank_cell(location, column, row)) for row in rows
    ]
    tumours = [name for name in table.samples if not is_normal(name)]
    unwanted = set(listed(settings.leave_out, table.all_samples))
    matching = samples.matching(name for name in table.all_samples if name not in unwanted)
    refuse_longer(location, matching, samples.patients, "the clinical table", "omics")
    understood = [
        *table.understood,
        *samples.matching(tumours).understood(location, "sample"),
        *few_matched(matching, location, "the cohort", sorted(samples.patients), "samples"),
    ]
    owners = [str(samples.patient(name)) for name in table.samples]
    table = used_columns(table, owners, location, settings, label or Label(), understood)
    read, blank, more = _usable_rows(table, owners, location, settings, understood)
    faults += more
    bad = {fault.id for fault in faults}
    read = read.where(np.asarray([patient not in bad for patient in read.patients], bool))
    if not len(read.patients):
        raise_faults(faults, f"the {table.rows:,} rows of {location}")
        raise InputError(f"{location}: the rows of the cohort's patients are all blank; set cohort.omics to null")
    values = _frame(read)
    families = gene_families(values, settings, location)
    return OmicsTable(
        values=values,
        families=families,
        rows=table.rows,
        faults=tuple(faults),
        of_others=tuple(sorted(set(table.all_samples) - samples.of(table.all_samples).keys())),
        blank=tuple(blank),
        other_files=tuple(other_files),
        understood=(*understood, *_on_values(values, families, location)),
    )


def _usable_rows(
    table: GeneTable, owners: Sequence[str], location: str, settings: OmicsConfig, understood: list[Understood]
) -> tuple[SampleRows, list[str], list[Fault]]:
    """Returns a row a patient without those that are blank or wrong, the patients with blank ones, and the faults."""
    read, faults = row_a_patient(table, owners, location, settings, understood)
    blank_N = np.asarray(np.isnan(read.values_NG).all(axis=1), bool)
    if read.words_NG is not None:
        blank_N &= ~read.words_NG.any(axis=1)
    read, blank = read.where(~blank_N), [name for name, own in zip(read.patients, blank_N, strict=True) if own]
    read, wrong = without_wrong_cells(read)
    read, gaps = without_sparse(read, settings, understood)
    return read, blank, [*faults, *wrong, *gaps, *repeated_rows(read)]


def _read(
    location: str, patient_column: str | None, settings: OmicsConfig, samples: Samples
) -> tuple[GeneTable, list[Fault], list[str]]:
    if storage.kind(location) == "folder":
        vectors = any(name.endswith(".npy") for name in storage.list_names(location))
        paths = [] if vectors else sample_file_paths(location)
        if not paths:
            return read_vectors(location, samples)
        if len(paths) == 1 and not settings.sample_sheet:
            raise InputError(f"{location} is a folder with a single table: {set_to('cohort.omics', paths[0])}")
        return (*read_sample_files(location, paths, settings, samples), [])
    if location.lower().endswith(".h5ad"):
        return read_h5ad(location, patient_column, samples), [], []
    return read_gene_table(location, patient_column, settings, samples), [], []


def _frame(read: SampleRows) -> pd.DataFrame:
    index = pd.Index(read.patients, name="patient_id", dtype="str")
    values_NG = np.where(np.isnan(read.values_NG), np.float32(np.nan), read.values_NG)  # one NaN for one fingerprint
    return pd.DataFrame(values_NG, index=index, columns=read.genes).sort_index()


def _on_values(values: pd.DataFrame, families: Sequence[GeneFamily], location: str) -> list[Understood]:
    """Tells the scales, how many blanks are filled, and how many genes are the same in all patients."""
    found = [Understood(location, "omics", _scale(family), len(family.genes)) for family in families]
    blank_NG = values.isna().to_numpy()
    if blank_NG.any():
        n, genes, patients = int(blank_NG.sum()), int(blank_NG.any(axis=0).sum()), int(blank_NG.any(axis=1).sum())
        values_are = number_of(n, "blank value", "blank values")
        of_whom = f"{number_of(genes, 'gene', 'genes')} and {number_of(patients, 'patient', 'patients')}"
        what = (
            f"{values_are} ({n / blank_NG.size:.2%}), of {of_whom}, are filled in each fold with the gene's mean over "
            "its training patients"
        )
        found.append(Understood(location, "omics", what, n))
    low_G, high_G = (reduce(values.to_numpy(), axis=0) for reduce in (np.fmin.reduce, np.fmax.reduce))
    constant = [str(name) for name in values.columns[low_G == high_G]]
    if constant and len(values) > 1:
        genes_are = number_of(len(constant), "gene is", "genes are")
        what = f"{genes_are} the same in all patients and never chosen: {some_of(constant)}"
        found.append(Understood(location, "omics", what, len(constant)))
    return found


def _scale(family: GeneFamily) -> str:
    return (
        family.sentence()
        if family.name
        else f"{number_of(len(family.genes), 'column', 'columns')}: {family.sentence()}"
    )
