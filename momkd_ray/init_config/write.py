"""Writes a commented configuration for a folder, and checks that it can be used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from momkd_ray import storage
from momkd_ray.cohort.cohort import load_cohort
from momkd_ray.cohort.fold_checks import check_gene_selection
from momkd_ray.cohort.folds import make_folds
from momkd_ray.config.load import Config, load_config
from momkd_ray.errors import InputError
from momkd_ray.init_config.barcodes import draft_slides
from momkd_ray.init_config.draft import Draft
from momkd_ray.init_config.fold_columns import describe_fold_columns
from momkd_ray.init_config.folder import (
    Listing,
    SlideColumns,
    Table,
    find_slides,
    is_omics,
    list_folder,
    match_patients,
    no_slide_table,
)
from momkd_ray.init_config.label_columns import LabelColumns, choose_label, label_columns
from momkd_ray.input_faults import SKIP

FOLDS = (5, 4, 3, 2)


def draft_of_folder(folder: str, label: str | None, run: str, slides_table: str) -> Draft:
    """Drafts a configuration for a folder.

    Args:
        folder: of tables and feature files.
        label: column of the label, of classes or numbers; None takes the likeliest one of classes.
        run: the run directory to write down.
        slides_table: the table of slides to write, if there is none and the feature files' names say the patients.

    Raises:
        InputError: the folder lacks what a run needs; the sentence says what.
    """
    listing = list_folder(folder)
    features = listing.features
    draft = Draft({"cohort": {}, "features": {"dir": features.folder}, "folds": {}, "run": {"dir": run}})
    slides = find_slides(listing) or draft_slides(draft, listing, slides_table)
    if slides is None:
        raise InputError(no_slide_table(listing))
    draft.note("", f"Written by momkd-ray init for {folder}. Every key: momkd-ray's docs/configuration.md.")
    for sentence in listing.unread:
        draft.note("", f"Not read: {sentence}")
    _describe_features(draft, listing, len(slides.matching.own))
    patients = set(slides.table.values(slides.patient))
    omics = [table for table in listing.tables if table is not slides.table and is_omics(table, patients)]
    clinical, column = _clinical(listing, slides, omics, patients, label)
    cohort = draft.tree["cohort"]
    cohort["clinical"] = clinical.path
    if slides.table is not clinical:
        cohort["slides"] = slides.table.path
    _choose_omics(draft, listing, omics)
    cohort["columns"] = {"clinical": column} | ({"slides": slides.patient} if slides.table is not clinical else {})
    cohort["slide_column"] = slides.slide
    for entry in slides.matching.understood(slides.table.path, "slide"):
        draft.note("cohort", entry.sentence())
    choose_label(draft, clinical, column, label, {slides.slide})
    if listing.splits:
        draft.tree["folds"]["file"] = listing.splits[0]
        draft.note("folds", "These folds were found; remove `file` to draw folds instead.")
    for sentence in describe_fold_columns(listing, patients):
        draft.note("folds", sentence)
    return draft


def _describe_features(draft: Draft, listing: Listing, listed: int) -> None:
    f = listing.features
    encoder = f"of {f.encoder}, " if f.encoder else ""
    draft.note("features", f"{len(f.slides)} files of the layout {f.layout}, {encoder}width {f.width}; {listed} listed")
    if not f.has_coords:
        draft.tree["features"]["graph"] = "none"
        draft.note("features", "They have no coordinates, so there is no graph of neighbouring patches.")
    for folder, count in f.others:
        draft.note("features", f"Another {count} are in {folder}")
    for folder, why in f.passed_over:
        draft.note("features", f"Passed over: {folder}, of which no feature file can be read: {why}")


def _clinical(
    listing: Listing, slides: SlideColumns, omics: Sequence[Table], patients: set[str], label: str | None
) -> tuple[Table, str]:
    """Finds the table with the asked label or else most columns that may be labels, and its column of patients."""
    found = [
        (table, matched[0], label_columns(table, matched[0], ()))
        for table in listing.tables
        if table is not slides.table and table not in omics and (matched := match_patients(table, patients)) is not None
    ]
    found.append((slides.table, slides.patient, label_columns(slides.table, slides.patient, {slides.slide})))

    def rank(entry: tuple[Table, str, LabelColumns]) -> tuple[bool, bool, bool, bool, int]:
        table, _, columns = entry
        can_be_asked = label is not None and label in columns
        return can_be_asked, label in table.texts, bool(columns.classes), table is not slides.table, len(columns)

    best = max(found, key=rank)
    if len(best[2]) == 0:
        raise InputError(
            f"no table has a column of two or more classes, or of numbers, for the {len(patients)} patients of "
            f"{slides.table.path}: add a clinical table with the columns PATIENT and the label"
        )
    return best[0], best[1]


def _choose_omics(draft: Draft, listing: Listing, omics: Sequence[Table]) -> None:
    found = [table.path for table in omics] + [*listing.vectors, *listing.anndata]
    if not found:
        draft.note("cohort", "No omics were found: the slide branch is trained alone.")
        return
    draft.tree["cohort"]["omics"] = found[0]
    for other in found[1:]:
        draft.note("cohort", f"Also omics: {other}")


def write_config(draft: Draft, out: str) -> tuple[Config, list[str]]:
    """Writes a draft, after it has been read back and its cohort and folds made.

    Returns:
        The configuration, and what is in the cohort, sentence by sentence.

    Raises:
        InputError: the file exists already, or the inputs cannot be used; the file is then written nevertheless.
    """
    for path in (out, *draft.files):
        if storage.exists(path):
            raise InputError(f"{path} exists already: give another --out, or remove it")
    for path, text in {**draft.files, out: draft.to_yaml()}.items():
        storage.write_text(path, text)
    try:
        config = load_config(out)
        cohort = load_cohort(config)
        config = _with_folds(draft, config, out, cohort)
    except InputError as error:
        # of the verbs that the configuration is for
        reason = str(error).replace(SKIP, f"momkd-ray crossval --config {out} {SKIP}")
        raise InputError(f"{out} is written, but cannot be run yet: {reason}") from error
    summary = [str(sentence) for sentence in cohort.summary()]
    for sentence in summary:
        draft.note("", sentence)
    storage.write_text(out, draft.to_yaml())
    return config, summary


def _with_folds(draft: Draft, config: Config, out: str, cohort: Any) -> Config:
    """Writes the largest number of folds, up to five, that the patients of the rarer class are enough for."""
    if "file" in draft.tree["folds"] or "n" in draft.tree["folds"]:
        make_folds(config, cohort)
        return config
    for n in FOLDS:
        draft.tree["folds"]["n"] = n
        storage.write_text(out, draft.to_yaml())
        config = load_config(out)
        try:
            check_gene_selection(config, cohort, make_folds(config, cohort))
        except InputError:
            if n == FOLDS[-1]:
                raise
            continue
        if n < FOLDS[0]:
            draft.note("folds", f"There are too few patients of a class for {FOLDS[0]} folds.")
        return config
    raise AssertionError


def default_run(out: str) -> str:
    """Returns the run directory beside a configuration file: `runs/<its name>`."""
    return os.path.join(os.path.dirname(out), "runs", os.path.splitext(os.path.basename(out))[0])


def default_slides(out: str) -> str:
    """Returns the table of slides beside a configuration file: `<its name>-slides.csv`."""
    return f"{os.path.splitext(out)[0]}-slides.csv"
