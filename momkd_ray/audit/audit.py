"""Audits all inputs in one pass over the feature files: every fault, and the cohort that remains without them."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from momkd_ray import storage
from momkd_ray.audit.findings import Findings
from momkd_ray.bags.bag_rows import content_sha256, to_row
from momkd_ray.bags.consistency import (
    duplicate_content_faults,
    mixed_encoder_faults,
    mixed_scale_faults,
    slide_vector_faults,
)
from momkd_ray.bags.ingest import store_format
from momkd_ray.cohort.cohort import Cohort, load_cohort
from momkd_ray.cohort.exclusions import LeftOut, exclusion_sentences
from momkd_ray.cohort.feature_files import list_features
from momkd_ray.cohort.features_elsewhere import absence
from momkd_ray.cohort.fold_checks import (
    few_validated,
    few_validated_sentence,
    folds_without_gene_selection,
    patients_per_fold,
)
from momkd_ray.cohort.folds import FoldPlan, make_folds
from momkd_ray.cohort.understood import Understood
from momkd_ray.config.load import Config
from momkd_ray.errors import InputError
from momkd_ray.formats.arrays import Precision
from momkd_ray.formats.bag import Recipe
from momkd_ray.formats.patch_scale import PatchScale, patch_scale
from momkd_ray.formats.readers import read_bag
from momkd_ray.formats.source_file import missing_file
from momkd_ray.input_faults import Fault, FaultsError, FileFaultError
from momkd_ray.ray_runtime.parallel_map import parallel_map
from momkd_ray.ray_runtime.small_work import connect_if_worth, work_on_files

_SLIDES_PER_CHUNK = 8


def audit_inputs(config: Config, on_progress: Callable[[int, int], None]) -> Findings:
    """Reads every table and every feature file once; starts a cluster if that is sooner done with one.

    If the clinical table or the table of slides cannot be used, all feature files of the folder are read.

    Args:
        config: the resolved configuration.
        on_progress: called with the number of slides done and their total.

    Raises:
        InputError: the configuration contradicts itself.
        RunError: storage cannot be reached.
    """
    cohort, faults = _tables(config)
    absent = absence(config.features.dir) if cohort is None else cohort.absent_features(config.features.dir)
    if absent:
        name = posixpath.basename(config.features.dir.rstrip("/"))
        faults.append(Fault("table", name, "missing", config.features.dir, absent))
        if cohort is not None:
            return _summarise(config, cohort, faults, None, {})
    slides = _all_slides(config) if cohort is None else cohort.slides
    facts = _facts(config, slides, on_progress)
    bad = [fault for row in facts for fault in row["faults"]]
    good = {row["slide_id"]: row for row in facts if not row["faults"]}
    bad += mixed_encoder_faults(good, slides, None)
    bad += mixed_scale_faults(good, slides, None) if config.features.mixed_magnification == "refuse" else []
    bad += slide_vector_faults(good, slides) or duplicate_content_faults(good, slides)
    faults += bad
    if cohort is None:
        return Findings(tuple(sorted({*faults})), config.features.dir, impossible="without its tables nothing remains")
    return _summarise(config, cohort, faults, bad, good)


def _tables(config: Config) -> tuple[Cohort | None, list[Fault]]:
    """Loads the cohort without bad rows; without omics if their table cannot be used, None if another cannot."""
    cohort: Cohort | None
    try:
        cohort = load_cohort(config, on_error="skip")
    except FaultsError as error:
        faults = list(error.faults)
        if not faults:
            name = posixpath.basename(error.table.rstrip("/"))
            faults.append(Fault("table", name, "unusable", error.table, str(error)))
        if error.table != config.cohort.omics:
            return None, faults
        without = config.model_copy(update={"cohort": config.cohort.model_copy(update={"omics": None})})
        cohort, others = _tables(without)
        return cohort, [*faults, *others]
    return cohort, list(cohort.rejected)


def _all_slides(config: Config) -> pd.DataFrame:
    """Lists every feature file as the only slide of a patient."""
    rows = [
        (file.slide_id, file.slide_id, file.path, file.stamp, file.size)
        for file in list_features(config.features.dir).values()
    ]
    return pd.DataFrame(rows, columns=["slide_id", "patient_id", "path", "file", "bytes"])


def _summarise(
    config: Config, cohort: Cohort, faults: list[Fault], bad: list[Fault] | None, good: Mapping[str, Mapping[str, Any]]
) -> Findings:
    """Collects the findings: the cohort and folds that remain without bad inputs, and the faults of the folds.

    Args:
        config: the resolved configuration.
        cohort: the cohort without bad rows.
        faults: all faults but those of the folds.
        bad: those of the feature files; None if there is no feature file, so that nothing remains, and only the folds
            that the tables give are checked.
        good: what was read of each other feature file.
    """
    notes = _unmatched(config, cohort)
    left_out: LeftOut = list(cohort.excluded.itertuples(index=False, name=None))
    sentences = cohort.unmatched_file_sentences()
    remaining: dict[str, Any] = {}
    understood = [*cohort.understood, *_features_read_as(config, good)]
    folds, impossible = pd.DataFrame(), ""
    try:
        left = cohort if bad is None else cohort.without_slides(bad)
        remaining = {} if bad is None else _remaining(left, good)
        plan, wrong = _plan(config, left)
        faults = [*faults, *wrong]
        if bad is None:
            impossible = "without feature files nothing remains"
        elif plan is None or folds_without_gene_selection(config, left, plan):
            impossible = "what remains cannot be cross-validated"
        if plan is not None:
            understood += plan.understood
            left_out = [*left.excluded.itertuples(index=False, name=None), *plan.left_out]
            few = few_validated(config, left, plan)
            notes += [*_notes(plan.left_out, str(config.folds.file)), *few]
            sentences += few_validated_sentence(few, config)
            folds = pd.DataFrame() if bad is None else patients_per_fold(config, left, plan)
    except FaultsError as error:
        impossible = f"what remains cannot be cross-validated: {error}"
    counts = Counter(f"{kind}: {reason}" for kind, _, reason, problem in left_out if not problem)
    return Findings(
        tuple(sorted({*faults})),
        config.features.dir,
        notes=tuple(sorted({*notes})),
        sentences=(*exclusion_sentences(left_out), *sentences),
        excluded=dict(sorted(counts.items())),
        remaining=remaining,
        folds=folds,
        impossible=impossible,
        understood=tuple(understood),
    )


def _features_read_as(config: Config, good: Mapping[str, Mapping[str, Any]]) -> list[Understood]:
    """Says the layouts, encoders and scales of the feature files, with counts."""
    entries = []
    for number, words in ((0, "layout"), (1, "encoder"), (2, "magnification and patch size")):
        counts = Counter(
            (fact["format"], fact["encoder"] or "", PatchScale(fact["magnification"], fact["patch_px"]).text())[number]
            for fact in good.values()
        )
        if counts:
            shown = ", ".join(f"{value or 'not recorded'} ({count:,})" for value, count in counts.most_common(4))
            entries.append(Understood(config.features.dir, "features", f"{words} of its files: {shown}", len(good)))
    return entries


def _plan(config: Config, cohort: Cohort) -> tuple[FoldPlan | None, list[Fault]]:
    """Makes the folds, None if that is impossible, and lists their faults."""
    try:
        plan = make_folds(config, cohort)
    except InputError as error:
        if isinstance(error, FaultsError) and error.faults:
            return None, list(error.faults)
        location = config.folds.file or config.cohort.clinical
        return None, [Fault("fold", "all folds", "unusable", location, str(error))]
    return plan, [*folds_without_gene_selection(config, cohort, plan)]


def _notes(left_out: LeftOut, location: str) -> list[Fault]:
    return [
        Fault(kind, name, "unmatched", location, f"{location}: {kind} {name}: {reason}")
        for kind, name, reason, problem in left_out
        if problem
    ]


def _unmatched(config: Config, cohort: Cohort) -> list[Fault]:
    """Lists rows and feature files that match nothing."""
    location = {"patient": config.cohort.clinical, "slide": config.cohort.slides or config.cohort.clinical}
    location["omics"] = config.cohort.omics or ""
    notes: list[Fault] = []
    for kind, table in location.items():
        notes += _notes([row for row in cohort.excluded.itertuples(index=False, name=None) if row[0] == kind], table)
    for name in cohort.unmatched_files:
        path = storage.join(config.features.dir, name)
        reason = f"{path} belongs to no slide of {location['slide']}; add its row, or move the file away"
        notes.append(Fault("slide", name, "unmatched", path, reason))
    return notes


def _facts(config: Config, slides: pd.DataFrame, on_progress: Callable[[int, int], None]) -> list[dict[str, Any]]:
    """Inspects the feature file of every slide in parallel."""
    form = store_format(config)
    recipe = Recipe(form.neighbors, form.graph, config.features.format)
    rows = slides[["slide_id", "path", "file"]].to_dict("records")
    facts: list[dict[str, Any]] = []
    on_progress(0, len(rows))
    failure = "the audit could not be finished"
    with connect_if_worth(work_on_files(len(rows), float(slides["bytes"].sum()))):
        for fact in parallel_map(
            _inspect_slide, rows, failure, chunk=_SLIDES_PER_CHUNK, recipe=recipe, dtype=form.dtype
        ):
            facts.append(fact)
            on_progress(len(facts), len(rows))
    return sorted(facts, key=lambda fact: str(fact["slide_id"]))


def _inspect_slide(slide: Mapping[str, str], recipe: Recipe, dtype: Precision) -> dict[str, Any]:
    """Reads one slide's feature file as it would be stored: width, encoder, patches and SHA-256, or its faults."""
    slide_id, path = slide["slide_id"], slide["path"]
    facts: dict[str, Any] = {"slide_id": slide_id, "faults": []}
    try:
        if not slide["file"]:
            raise missing_file(path)
        bag = read_bag(path, slide_id, recipe, dtype=dtype)
        facts |= {"width": bag.width, "encoder": bag.provenance.get("encoder"), "n_patches": bag.n_patches}
        scale = patch_scale(bag.provenance)
        facts |= {"magnification": scale.magnification, "patch_px": scale.patch_px}
        facts |= {"format": bag.provenance["format"], "sha256": content_sha256(to_row(bag))}
    except FileFaultError as error:
        facts["faults"] = [Fault("slide", slide_id, error.problem, path, str(error))]
    return facts


def _remaining(cohort: Cohort, facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    named = "{} patients" if cohort.ranges is None else "patients of {}"  # a range begins with a number, too
    per_class = {named.format(name): int((cohort.patients["label"] == name).sum()) for name in cohort.classes}
    return per_class | {
        "slides": len(cohort.slides),
        "patches": sum(int(facts[slide_id]["n_patches"]) for slide_id in cohort.slides["slide_id"]),
        "patients with omics": 0 if cohort.omics is None else len(cohort.omics),
    }
