"""Writes a commented configuration for a folder, and checks that it can be used."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from momkd_ray import storage
from momkd_ray.cohort.cohort import load_cohort
from momkd_ray.cohort.fold_checks import check_gene_selection
from momkd_ray.cohort.folds import make_folds
from momkd_ray.cohort.known_columns import SITE_COLUMNS, is_known
from momkd_ray.config.load import Config, load_config
from momkd_ray.errors import InputError
from momkd_ray.init_config.folder import (
    Listing,
    Table,
    find_slides,
    is_omics,
    label_candidates,
    list_folder,
    match_patients,
)

POSITIVE = (
    "positive",
    "pos",
    "yes",
    "true",
    "1",
    "mutated",
    "mut",
    "high",
    "msih",
    "msi-h",
    "altered",
    "tumor",
)
NEGATIVE = ("negative", "neg", "no", "false", "0", "wild type", "wildtype", "wt", "low", "mss", "nonmsih", "control")
FOLDS = (5, 4, 3, 2)
_SHOWN = 6


@dataclass
class Draft:
    """A configuration in the making.

    Attributes:
        tree: its sections.
        notes: what was seen, as comments by section; under '' above all.
    """

    tree: dict[str, dict[str, Any]]
    notes: dict[str, list[str]] = field(default_factory=dict)

    def note(self, section: str, text: str) -> None:
        """Adds a comment."""
        self.notes.setdefault(section, []).append(text)

    def to_yaml(self) -> str:
        """Returns the configuration with its comments."""
        lines = [f"# {text}" for text in self.notes.get("", [])]
        for section, values in self.tree.items():
            lines += ["", *(f"# {text}" for text in self.notes.get(section, []))]
            lines.append(yaml.safe_dump({section: values}, sort_keys=False, allow_unicode=True, width=1000).rstrip())
        return "\n".join(lines) + "\n"


def draft_of_folder(folder: str, label: str | None, run: str) -> Draft:
    """Drafts a configuration for a folder.

    Args:
        folder: of tables and feature files.
        label: column of the label; None takes the likeliest.
        run: the run directory to write down.

    Raises:
        InputError: the folder lacks what a run needs; the sentence says what.
    """
    listing = list_folder(folder)
    features, slides = listing.features, find_slides(listing)
    draft = Draft({"cohort": {}, "features": {"dir": features.folder}, "folds": {}, "run": {"dir": run}})
    draft.note("", f"Written by momkd-ray init for {folder}. Every key: momkd-ray's docs/configuration.md.")
    for sentence in listing.unread:
        draft.note("", f"Not read: {sentence}")
    _describe_features(draft, listing, len(slides.matching.own))
    patients = set(slides.table.values(slides.patient))
    omics = [table for table in listing.tables if table is not slides.table and is_omics(table, patients)]
    clinical, column = _clinical(listing, slides.table, slides.patient, omics, patients, slides.slide)
    cohort = draft.tree["cohort"]
    cohort["clinical"] = clinical.path
    if slides.table is not clinical:
        cohort["slides"] = slides.table.path
    _choose_omics(draft, listing, omics)
    cohort["columns"] = {"clinical": column} | ({"slides": slides.patient} if slides.table is not clinical else {})
    cohort["slide_column"] = slides.slide
    for entry in slides.matching.understood(slides.table.path, "slide"):
        draft.note("cohort", entry.sentence())
    _choose_label(draft, clinical, column, label, {slides.slide})
    if listing.splits:
        draft.tree["folds"]["file"] = listing.splits[0]
        draft.note("folds", "These folds were found; remove `file` to draw folds instead.")
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


def _clinical(
    listing: Listing, slides: Table, patient: str, omics: Sequence[Table], patients: set[str], slide: str
) -> tuple[Table, str]:
    """Finds the table with a row a patient and columns that may be labels, else the table of slides."""
    best: tuple[int, Table, str] | None = None
    for table in listing.tables:
        if table is slides or table in omics:
            continue
        found = match_patients(table, patients)
        if found is None:
            continue
        candidates = label_candidates(table, found[0], ())
        if candidates and (best is None or len(candidates) > best[0]):
            best = len(candidates), table, found[0]
    if best is not None:
        return best[1], best[2]
    if label_candidates(slides, patient, {slide}):
        return slides, patient
    raise InputError(
        f"no table has a column of two or more classes for the {len(patients)} patients of {slides.path}: add a "
        "clinical table with the columns PATIENT and the label"
    )


def _choose_omics(draft: Draft, listing: Listing, omics: Sequence[Table]) -> None:
    found = [table.path for table in omics] + [*listing.vectors, *listing.anndata]
    if not found:
        draft.note("cohort", "No omics were found: the slide branch is trained alone.")
        return
    draft.tree["cohort"]["omics"] = found[0]
    for other in found[1:]:
        draft.note("cohort", f"Also omics: {other}")


def _choose_label(draft: Draft, table: Table, patient: str, label: str | None, besides: set[str]) -> None:
    candidates = label_candidates(table, patient, besides)
    for site in (name for name in table.texts if name != label and is_known(name, SITE_COLUMNS)):
        if len(candidates) > 1:
            candidates.pop(site, None)
        values = f"a value of {site} ({len(set(table.values(site)))} values)"
        draft.note("folds", f"`site: {site}` would keep all patients of {values} in one fold.")
    if label is not None and label not in candidates:
        raise InputError(
            f"{table.path} has no column {label!r} of 2 to 10 classes: choose --label among {', '.join(candidates)}"
        )
    known = [name for name, counts in candidates.items() if _by_word(counts) is not None]
    chosen = label or (known or list(candidates))[0]
    negative, positive, certain = _classes(candidates[chosen])
    draft.tree["cohort"] |= {"label": chosen, "positive": positive, "negative": negative}
    if not certain:
        draft.note("cohort", f"CHECK: which of {positive!r} and {negative!r} is the positive class?")
    if (several := len(candidates[chosen])) > 2:
        what = f"{chosen} has {several} values, of which two are trained"
        draft.note("cohort", f"CHECK: {what}; cohort.classes, in place of positive and negative, takes all, in order")
    for name, counts in list(candidates.items())[:_SHOWN]:
        values = ", ".join(f"{value} {count}" for value, count in counts.most_common())
        draft.note("cohort", f"{'Label' if name == chosen else 'Other label'}: {name} ({values})")


def _by_word(counts: Counter[str]) -> tuple[str, str] | None:
    """Returns the negative and the positive value, if their words say so."""
    positive = [value for value in counts if value.casefold() in POSITIVE]
    negative = [value for value in counts if value.casefold() in NEGATIVE]
    return (negative[0], positive[0]) if len(positive) == len(negative) == 1 else None


def _classes(counts: Counter[str]) -> tuple[str, str, bool]:
    """Returns the negative and the positive value, and whether their words say which is which."""
    if (known := _by_word(counts)) is not None:
        return *known, True
    (first, _), (second, _) = counts.most_common(2)
    return first, second, False


def draft_of_stamp(path: str, run: str | None) -> Draft:
    """Translates STAMP's configuration: tables, columns, classes, folds and output.

    Raises:
        InputError: the file is no configuration of STAMP's, or of another task than two classes.
    """
    try:
        tree = yaml.safe_load(storage.read_text(path))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"--from {path} does not exist: name STAMP's YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--from {path} is no YAML: {' '.join(str(error).split())[:200]}") from error
    sections = tree if isinstance(tree, Mapping) else {}
    section = next((sections[name] for name in ("crossval", "training", "train") if sections.get(name)), None)
    if not isinstance(section, Mapping):
        raise InputError(f"--from {path} has no section crossval or training, as STAMP's configurations have")
    if section.get("task", "classification") != "classification":
        raise InputError(f"--from {path}: its task is {section['task']}, and this package trains classifiers only")
    needed = ("clini_table", "slide_table", "feature_dir", "ground_truth_label")
    if missing := [name for name in needed if not isinstance(section.get(name), str)]:
        raise InputError(f"--from {path} lacks {missing[0]}, which a run needs: add it there")
    cohort: dict[str, Any] = {
        "clinical": section["clini_table"],
        "slides": section["slide_table"],
        "patient_column": section.get("patient_label", "PATIENT"),
        "slide_column": section.get("filename_label", "FILENAME"),
        "label": section["ground_truth_label"],
    }
    draft = Draft(
        {
            "cohort": cohort,
            "features": {"dir": section["feature_dir"]},
            "folds": {"n": int(section.get("n_splits", 5))},
            "run": {"dir": run or str(section.get("output_dir", "run")).rstrip("/") + "/momkd-ray"},
        }
    )
    draft.note("", f"Translated by momkd-ray init from {path}: tables, columns, classes, folds and output.")
    draft.note("", "Sizes and rates of STAMP's model are not: they belong to another network.")
    _classes_of_stamp(draft, sections, section, path)
    return draft


def _classes_of_stamp(draft: Draft, sections: Mapping[str, Any], section: Mapping[str, Any], path: str) -> None:
    cohort = draft.tree["cohort"]
    categories = [str(value) for value in section.get("categories") or []]
    if not categories:
        from momkd_ray.cohort.table_files import read_table, require_columns, texts

        frame = read_table(cohort["clinical"])
        require_columns(frame.columns, cohort["clinical"], cohort["label"])
        categories = list(Counter(cell for cell in texts(frame[cohort["label"]]) if cell is not None))
    if len(categories) < 2:
        raise InputError(f"--from {path}: the label {cohort['label']} has fewer than two classes: correct it there")
    statistics = sections.get("statistics")
    true_class = str(statistics.get("true_class")) if isinstance(statistics, Mapping) else None
    counts = Counter(categories)
    negative, positive, certain = _classes(counts)
    if true_class in categories:
        positive, certain = str(true_class), True
        others = [name for name in categories if name != positive]
        cohort["positive"], cohort["negative"] = positive, others[0] if len(others) == 1 else others
    elif len(categories) > 2 and not certain:
        raise InputError(
            f"--from {path}: the label {cohort['label']} has the classes {', '.join(categories)}, and two are needed: "
            "give its section statistics a true_class, which becomes the positive class"
        )
    else:
        cohort["positive"], cohort["negative"] = positive, negative
    if not certain:
        draft.note("cohort", f"CHECK: which of {positive!r} and {negative!r} is the positive class?")


def write_config(draft: Draft, out: str) -> tuple[Config, list[str]]:
    """Writes a draft, after it has been read back and its cohort and folds made.

    Returns:
        The configuration, and what is in the cohort, sentence by sentence.

    Raises:
        InputError: the file exists already, or the inputs cannot be used; the file is then written nevertheless.
    """
    if storage.exists(out):
        raise InputError(f"{out} exists already: give another --out, or remove it")
    storage.write_text(out, draft.to_yaml())
    try:
        config = load_config(out)
        cohort = load_cohort(config)
        config = _with_folds(draft, config, out, cohort)
    except InputError as error:
        raise InputError(f"{out} is written, but cannot be run yet: {error}") from error
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
