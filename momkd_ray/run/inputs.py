"""What a run stands on: cohort, folds and bag store, brought together before anything is trained."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass

import pandas as pd

from momkd_ray import __version__, storage
from momkd_ray.bags.ingest import ingest, is_current, outdated_bags, store_format
from momkd_ray.bags.shared_bags import BagSource, JointBags
from momkd_ray.bags.store import MANIFEST, BagStore
from momkd_ray.cohort.cohort import Cohort, exclusion_sentences, load_cohort
from momkd_ray.cohort.fold_checks import check_gene_selection, few_validated, few_validated_sentence, trained_patients
from momkd_ray.cohort.folds import FoldPlan, make_folds
from momkd_ray.cohort.table_files import read_content
from momkd_ray.config.load import Config
from momkd_ray.config.sections import GENE_SELECTIONS, resolve_location
from momkd_ray.errors import InputError
from momkd_ray.input_faults import REJECTED, Fault, OnError, record_faults
from momkd_ray.progress import ProgressReporter
from momkd_ray.synthetic.cohort import generate_cohort


@dataclass(frozen=True)
class RunInputs:
    """A cohort with its folds and bags."""

    config: Config
    cohort: Cohort
    plan: FoldPlan
    store: BagStore
    slides: BagSource  # where the workers get the slides: the store, or what Ray Data shares of it
    fingerprint: str

    def setting_location(self, setting: int) -> str:
        """The folder of a setting; the run directory where there is no search."""
        run_dir = self.config.run.dir
        return storage.join(run_dir, f"setting={setting}") if self.config.search else run_dir

    def location(self, fold: int, setting: int = 0) -> str:
        """The folder of a fold; under a search, of a fold trained with one setting."""
        return storage.join(self.setting_location(setting), f"fold={fold}")

    @property
    def source(self) -> BagSource:
        """Where the workers get the bags, each of one slide or of all of a patient's."""
        if self.config.cohort.bag == "slide":
            return self.slides
        by_patient = self.cohort.slides.sort_values("slide_id").groupby("patient_id")["slide_id"]
        return JointBags(self.slides, {str(patient): tuple(slides) for patient, slides in by_patient})

    def fold_bags(self, fold: int) -> pd.DataFrame:
        """The bags of the patients of a fold: bag_id, slides, patient_id, y, role and patches, sorted by bag."""
        slides = self.cohort.slides[["slide_id", "patient_id"]].sort_values("slide_id")
        slides["patches"] = self.store.slides["n_patches"].loc[slides["slide_id"]].to_numpy()
        slides["bag_id"] = slides["patient_id" if self.config.cohort.bag == "patient" else "slide_id"]
        by_bag = slides.groupby("bag_id", sort=True)
        bags = by_bag.agg(
            slides=("slide_id", ", ".join), patient_id=("patient_id", "first"), patches=("patches", "sum")
        )
        bags = bags.reset_index()
        bags["y"] = self.cohort.patients["y"].loc[bags["patient_id"]].to_numpy()
        bags["role"] = self.plan.roles(fold).reindex(bags["patient_id"], fill_value="").to_numpy()
        trains = bags["patient_id"].isin(trained_patients(self.config, self.cohort, self.plan, fold))
        return bags[(bags["role"] != "") & (trains | (bags["role"] != "train"))].reset_index(drop=True)


def open_cohort(config: Config, progress: ProgressReporter, on_error: OnError = "stop") -> Cohort:
    """The cohort of the tables (generated first where the configuration says so), its counts told."""
    if config.synthetic is not None:
        generate_cohort(config.synthetic)
    cohort = load_cohort(config, on_error)
    for sentence in cohort.summary():
        progress.info(sentence)
    return cohort


def open_folds(config: Config, cohort: Cohort, progress: ProgressReporter, on_error: OnError = "stop") -> FoldPlan:
    """The folds, every one of which can be trained; whom they leave out, and where they are small, is told.

    Raises:
        InputError: as `make_folds`, or the genes of a fold could not be chosen.
    """
    plan = make_folds(config, cohort, on_error)
    check_gene_selection(config, cohort, plan)
    small = few_validated_sentence(few_validated(config, cohort, plan), config)
    for sentence in [*exclusion_sentences(plan.left_out), *small]:
        progress.info(sentence)
    return plan


def ensure_store(
    config: Config, cohort: Cohort, progress: ProgressReporter, on_error: OnError = "stop", *, for_run: bool = False
) -> tuple[BagStore, list[Fault]]:
    """The bag store of the cohort's slides, ingested where it is absent or incomplete; Ray must be up.

    Returns:
        The store, and the faults of slides whose feature files are bad, which `on_error` let pass.

    Raises:
        InputError: bad feature files; or, `for_run`, the run directory holds a run of other features, which is told
            before anything is read into its store.
    """
    form = store_format(config)
    if is_current(config.store_uri, cohort.slides, form):
        unseen = int((cohort.slides["file"] == "").sum())
        note = f"; {unseen} have no feature file in {config.features.dir} to be compared with" if unseen else ""
        progress.info(f"{config.store_uri} has all {len(cohort.slides)} bags already{note}")
        return BagStore.open(config.store_uri), []
    ran = for_run and storage.exists(storage.join(config.run.dir, "provenance.json"))
    changed = ran and storage.exists(storage.join(config.store_uri, MANIFEST))
    if changed and not storage.exists(storage.join(config.run.dir, REJECTED)):
        raise InputError(
            f"{config.run.dir} holds a run of other slides or feature files than those of {config.features.dir}: "
            "choose another run.dir, or remove that one"
        )
    if not cohort.slides["file"].any():
        raise InputError(
            f"features.dir {config.features.dir} does not exist or holds no feature file of the {len(cohort.slides)} "
            "slides: name the folder of the .h5 files"
        )
    if replaced := outdated_bags(config.store_uri, cohort.slides, form):
        progress.info(f"{replaced} bags of the store were made of other files and are replaced; no earlier run goes on")
    progress.info(f"Checking {len(cohort.slides)} feature files and reading them into {config.store_uri}")
    store, faults = ingest(
        cohort.slides,
        config.store_uri,
        form,
        layout=config.features.format,
        part_mb=config.store.part_mb,
        on_error=on_error,
        on_progress=lambda done, of: progress.update("ingest", done, of, "slides"),
    )
    read = store.slides.loc[store.slides.index.isin(cohort.slides["slide_id"])]
    listed = storage.join(config.store_uri, REJECTED)
    bad = f"{len(faults)} of them cannot be used and are left out ({listed}); " if faults else "All could be read: "
    patches = int(read["n_patches"].sum())
    progress.info(f"{bad}{len(read):,} bags with {patches:,} patches of width {store.width}")
    return store, faults


def open_run_inputs(
    config: Config, cohort: Cohort, plan: FoldPlan, progress: ProgressReporter, on_error: OnError = "stop"
) -> RunInputs:
    """Everything a run needs, checked against what an earlier run left in the run directory; Ray must be up.

    Slides whose feature files are bad leave the cohort, where `on_error` lets them, and the folds are made again.

    Raises:
        InputError: bad feature files, or the run directory holds a run of another configuration or other data.
    """
    store, faults = ensure_store(config, cohort, progress, on_error, for_run=True)
    if faults:
        cohort = cohort.without_slides(faults)
        plan = open_folds(config, cohort, progress, on_error)
    cohort = cohort.with_excluded(plan.left_out)
    study = RunInputs(config, cohort, plan, store, store, fingerprint(config, cohort, plan, store))
    _claim_run_dir(study)
    return study


def fingerprint(config: Config, cohort: Cohort, plan: FoldPlan, store: BagStore) -> str:
    """A hash of all that a result depends on: configuration, cohort, folds, features and the version."""
    digest = hashlib.sha256(__version__.encode())
    digest.update(config.answer_fingerprint().encode() + cohort.fingerprint().encode())
    selections = config.search.get("genes.select", [])
    for select in [config.genes.select, *(selections if isinstance(selections, list) else [])]:
        if select not in GENE_SELECTIONS:
            digest.update(read_content(resolve_location(str(select))))
    digest.update(plan.table.sort_index().to_csv().encode())
    slide_ids = sorted(cohort.slides["slide_id"])
    digest.update("".join(f"{s}:{sha}" for s, sha in store.slides["sha256"].loc[slide_ids].items()).encode())
    return digest.hexdigest()[:16]


def _claim_run_dir(study: RunInputs) -> None:
    """Write what the run is, or refuse a directory that holds another."""
    run_dir, config = study.config.run.dir, study.config
    place = storage.join(run_dir, "provenance.json")
    if storage.exists(place):
        earlier = storage.read_json(place)["fingerprint"]
        if earlier != study.fingerprint:
            raise InputError(
                f"{run_dir} holds a run of another configuration or other data (fingerprint {earlier}, now "
                f"{study.fingerprint}; compare its run.yaml): choose another run.dir, or remove that one"
            )
    study.plan.to_csv(storage.join(run_dir, "folds.csv"), study.cohort.patient_column)
    left_out = study.cohort.excluded.to_csv(index=False, lineterminator="\n")
    storage.write_text(storage.join(run_dir, "excluded.csv"), left_out)
    record_faults((*study.cohort.rejected, *study.plan.rejected), "the inputs", storage.join(run_dir, REJECTED), "skip")
    storage.write_text(storage.join(run_dir, "run.yaml"), config.to_yaml())
    storage.write_json(place, {"fingerprint": study.fingerprint, **versions()})


def versions() -> dict[str, str]:
    """The versions that a result may depend on."""
    import ray
    import torch
    import torch_geometric

    return {
        "momkd_ray": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_geometric": torch_geometric.__version__,
        "ray": ray.__version__,
    }
