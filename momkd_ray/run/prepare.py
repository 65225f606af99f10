"""Prepares the inputs of a run: reads the cohort, makes the folds, fills the bag store, claims the run directory."""

from __future__ import annotations

from collections.abc import Callable

from momkd_ray import storage
from momkd_ray.bags.ingest import ingest, is_current, outdated_bags, store_format
from momkd_ray.bags.store import MANIFEST, BagStore
from momkd_ray.bags.unchanged import adopt_unchanged
from momkd_ray.cohort.cohort import Cohort, load_cohort
from momkd_ray.cohort.exclusions import exclusion_sentences
from momkd_ray.cohort.fold_checks import check_gene_selection, few_validated, few_validated_sentence
from momkd_ray.cohort.folds import FoldPlan, make_folds
from momkd_ray.cohort.understood import in_order
from momkd_ray.config.load import Config
from momkd_ray.errors import InputError
from momkd_ray.input_faults import REJECTED, Fault, OnError
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.nodes import refuse_unshared
from momkd_ray.ray_runtime.small_work import Work, work_on_files
from momkd_ray.run.inputs import RunInputs
from momkd_ray.run.layout import RunDirectory
from momkd_ray.run.provenance import claim_directory, fingerprint, is_of_a_trained_run
from momkd_ray.synthetic.cohort import generate_cohort


def open_cohort(config: Config, progress: ProgressReporter, on_error: OnError = "stop") -> Cohort:
    """Reads the cohort, generated first if the configuration has a `synthetic` section, and reports its counts.

    Raises:
        InputError: as `load_cohort`.
    """
    if config.synthetic is not None:
        generate_cohort(config.synthetic)
    cohort = load_cohort(config, on_error)
    for sentence in cohort.summary():
        progress.info(sentence)
    return cohort


def open_folds(config: Config, cohort: Cohort, progress: ProgressReporter) -> FoldPlan:
    """Makes the folds, checks that each can be trained, and reports exclusions and small validation sets.

    Raises:
        InputError: as `make_folds`, or the genes of a fold could not be selected.
    """
    plan = make_folds(config, cohort)
    check_gene_selection(config, cohort, plan)
    small = few_validated_sentence(few_validated(config, cohort, plan), config)
    recognised = [entry.sentence() for entry in in_order(plan.understood)]
    for sentence in [*recognised, *exclusion_sentences(plan.left_out), *small]:
        progress.info(sentence)
    return plan


def refuse_absent_features(config: Config, cohort: Cohort) -> None:
    """Refuses a cohort without any feature file, unless the bag store has all its bags; needs no Ray.

    Raises:
        InputError: says whether the folder does not exist or holds other files.
        RunError: storage cannot be reached.
    """
    absent = not cohort.slides["file"].any()
    if absent and not is_current(config.store_uri, cohort.slides, store_format(config)):
        raise InputError(cohort.absent_features(config.features.dir))


def work_of_ingest(config: Config, cohort: Cohort) -> Work:
    """Returns the work of `ensure_store`: of all feature files, unless the store has them already."""
    if is_current(config.store_uri, cohort.slides, store_format(config)):
        return Work(0, 0.0)
    return work_on_files(len(cohort.slides), float(cohort.slides["bytes"].sum()))


def ensure_store(
    config: Config, cohort: Cohort, progress: ProgressReporter, on_error: OnError = "stop", *, for_run: bool = False
) -> tuple[BagStore, list[Fault]]:
    """Opens the bag store of the cohort's slides, and ingests what it lacks, on a cluster or in this process.

    Args:
        config: the resolved configuration.
        cohort: whose slides the store must contain.
        progress: receives notes and the count of slides.
        on_error: whether bad feature files end it or are left out.
        for_run: refuse a run directory that contains a run of other features, before anything is ingested.

    Returns:
        The store, and the faults of the feature files that `on_error` left out.

    Raises:
        InputError: a feature file is bad, the run directory contains a run of other features, or a machine of the
            cluster does not see the data.
    """
    form = store_format(config)
    features = cohort.slides.loc[cohort.slides["file"] != "", "path"].head(1)
    folders = {config.store_uri: "store.uri"} | ({config.run.dir: "run.dir"} if for_run else {})
    refuse_unshared(folders, dict.fromkeys(features, "features.dir"))
    _adopt_copies(config, cohort, progress)
    if is_current(config.store_uri, cohort.slides, form):
        absent = int((cohort.slides["file"] == "").sum())
        note = f"; {absent} have no feature file in {config.features.dir} to compare with" if absent else ""
        progress.info(f"{config.store_uri} has all {len(cohort.slides)} bags already{note}")
        return BagStore.open(config.store_uri), []
    if for_run:
        _refuse_changed_features(config)
    refuse_absent_features(config, cohort)
    if replaced := outdated_bags(config.store_uri, cohort.slides, form):
        progress.info(
            f"{replaced} bags of the store were made from other files and are replaced; earlier runs with this store "
            "cannot be resumed"
        )
    progress.info(f"Checking {len(cohort.slides)} feature files and reading them into {config.store_uri}")
    store, faults = ingest(
        cohort.slides,
        config.store_uri,
        form,
        layout=config.features.format,
        mixed_magnification=config.features.mixed_magnification == "allow",
        part_mb=config.store.part_mb,
        on_error=on_error,
        on_progress=lambda done, of: progress.update("ingest", done, of, "slides"),
    )
    bags = store.slides.loc[store.slides.index.isin(cohort.slides["slide_id"])]
    listed = storage.join(config.store_uri, REJECTED)
    result = f"{len(faults)} of them cannot be used and are left out ({listed}); " if faults else "All could be read: "
    patches = int(bags["n_patches"].sum())
    progress.info(f"{result}{len(bags):,} bags with {patches:,} patches of width {store.width}")
    return store, faults


def _adopt_copies(config: Config, cohort: Cohort, progress: ProgressReporter) -> None:
    """Recognises feature files that have another time of change than when they were stored, but the same content."""
    outdated = outdated_bags(config.store_uri, cohort.slides, store_format(config))
    if outdated:
        progress.info(f"{outdated} feature files have changed since they were stored: comparing their content")
        same = adopt_unchanged(BagStore.open(config.store_uri), cohort.slides, config.features.format)
        progress.info(f"{same} of them have the same content as before")


def _refuse_changed_features(config: Config) -> None:
    """Refuses to change the store under a run, unless that run left out bad inputs, which may be corrected now."""
    directory = RunDirectory(config.run.dir)
    started = is_of_a_trained_run(directory) and storage.exists(storage.join(config.store_uri, MANIFEST))
    if started and not storage.exists(directory.rejected):
        raise InputError(
            f"{directory.location} holds a run of other slides or feature files than those of {config.features.dir}: "
            f"set run.dir to {directory.another()}, or remove that run"
        )


def open_run_inputs(
    config: Config,
    cohort: Cohort,
    plan: FoldPlan,
    progress: ProgressReporter,
    on_error: OnError = "stop",
    others_work: Callable[[], bool] = lambda: False,
    gpus_per_worker: float | None = None,
) -> RunInputs:
    """Prepares all that a run needs and claims the run directory; Ray must be initialised.

    If `on_error` leaves out slides with bad feature files, the folds are made again without them.

    Args:
        config: the resolved configuration.
        cohort: its cohort.
        plan: its folds.
        progress: receives notes and the count of slides.
        on_error: whether bad feature files end it or are left out.
        others_work: returns whether other processes work in the run directory.
        gpus_per_worker: what `cluster.gpus_per_worker` has become on this cluster.

    Raises:
        InputError: a feature file is bad, or the run directory contains a run of another configuration or other data.
    """
    store, faults = ensure_store(config, cohort, progress, on_error, for_run=True)
    if faults:
        cohort = cohort.without_slides(faults)
        plan = open_folds(config, cohort, progress)
    cohort = cohort.with_excluded(plan.left_out)
    config = cohort.resolved(config)
    inputs = RunInputs(config, cohort, plan, store, store, fingerprint(config, cohort, plan, store))
    return claim_directory(inputs, others_work, gpus_per_worker)
