"""What a run stands on: cohort, folds, bag store and settings, brought together before anything is trained."""

from __future__ import annotations

import hashlib
import itertools
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from momkd_ray import __version__, storage
from momkd_ray.bags.ingest import covers, ingest
from momkd_ray.bags.store import MANIFEST, BagStore
from momkd_ray.bags.stream import BagSource
from momkd_ray.cohort.folds import FoldPlan
from momkd_ray.cohort.formats import read_content
from momkd_ray.cohort.tables import Cohort, load_cohort
from momkd_ray.config import GENE_SELECTIONS, Config, absolute
from momkd_ray.errors import InputError
from momkd_ray.progress import Narrator
from momkd_ray.synthetic import generate_cohort


@dataclass(frozen=True)
class Study:
    """A cohort with its folds and bags, and the settings to try in each fold."""

    config: Config
    cohort: Cohort
    plan: FoldPlan
    store: BagStore
    source: BagSource  # where the workers get the bags: the store, or what Ray Data shares of it
    settings: tuple[Mapping[str, Any], ...]  # one empty mapping where there is no search
    fingerprint: str

    def location(self, fold: int, setting: int = 0) -> str:
        """The folder of a fold; under a search, of a fold trained with one setting."""
        parts = [f"setting={setting}"] if self.config.search else []
        return storage.join(self.config.run.dir, *parts, f"fold={fold}")

    def fold_slides(self, fold: int) -> pd.DataFrame:
        """The slides of the patients of a fold: slide_id, patient_id, y, role and patches, sorted by slide."""
        slides = self.cohort.slides[["slide_id", "patient_id"]].sort_values("slide_id").reset_index(drop=True)
        slides["y"] = self.cohort.patients["y"].loc[slides["patient_id"]].to_numpy()
        slides["role"] = self.plan.roles(fold).reindex(slides["patient_id"], fill_value="").to_numpy()
        slides["patches"] = self.store.slides["n_patches"].loc[slides["slide_id"]].to_numpy()
        return slides[slides["role"] != ""].reset_index(drop=True)


def open_cohort(config: Config, narrator: Narrator) -> Cohort:
    """The cohort of the tables (generated first where the configuration says so), its counts told."""
    if config.synthetic is not None:
        generate_cohort(config.synthetic)
    cohort = load_cohort(config)
    for sentence in cohort.summary():
        narrator.say(sentence)
    return cohort


def ensure_store(config: Config, cohort: Cohort, narrator: Narrator, *, for_run: bool = False) -> BagStore:
    """The bag store of the cohort's slides, ingested where it is absent or incomplete; Ray must be up.

    Raises:
        InputError: bad feature files; or, `for_run`, the run directory holds a run of other features, which is told
            before anything is read into its store.
    """
    store = config.store
    if covers(config.store_uri, cohort.slides, store.dtype, store.neighbors):
        return BagStore.open(config.store_uri)
    ran = for_run and storage.exists(storage.join(config.run.dir, "provenance.json"))
    if ran and storage.exists(storage.join(config.store_uri, MANIFEST)):
        raise InputError(
            f"{config.run.dir} holds a run of other slides or feature files than those of {config.features.dir}: "
            "choose another run.dir, or remove that one"
        )
    if not storage.names_below(config.features.dir):
        raise InputError(
            f"features.dir {config.features.dir} does not exist or is empty: name the folder of the .h5 files"
        )
    narrator.say(f"Checking {len(cohort.slides)} feature files and reading them into {config.store_uri}")
    made = ingest(
        cohort.slides,
        config.store_uri,
        store.dtype,
        store.neighbors,
        store.part_mb,
        on_progress=lambda done, of: narrator.count("ingest", done, of, "slides"),
    )
    patches = int(made.slides["n_patches"].sum())
    narrator.say(f"All could be read: {len(made.slides):,} bags with {patches:,} patches of width {made.width}")
    return made


def open_study(config: Config, cohort: Cohort, plan: FoldPlan, narrator: Narrator) -> Study:
    """Everything a run needs, checked against what an earlier run left in the run directory; Ray must be up.

    Raises:
        InputError: bad feature files, or the run directory holds a run of another configuration or other data.
    """
    store = ensure_store(config, cohort, narrator, for_run=True)
    settings = tuple(
        dict(zip(config.search, values, strict=True)) for values in itertools.product(*config.search.values())
    )
    study = Study(config, cohort, plan, store, store, settings, fingerprint(config, cohort, plan, store))
    _claim_run_dir(study)
    return study


def fingerprint(config: Config, cohort: Cohort, plan: FoldPlan, store: BagStore) -> str:
    """A hash of all that a result depends on: configuration, cohort, folds, features and the version."""
    digest = hashlib.sha256(__version__.encode())
    digest.update(config.answer_fingerprint().encode() + cohort.fingerprint().encode())
    for select in [config.genes.select, *config.search.get("genes.select", [])]:
        if select not in GENE_SELECTIONS:
            digest.update(read_content(absolute(str(select))))
    digest.update(plan.table.sort_index().to_csv().encode())
    slide_ids = sorted(cohort.slides["slide_id"])
    digest.update("".join(f"{s}:{sha}" for s, sha in store.slides["sha256"].loc[slide_ids].items()).encode())
    return digest.hexdigest()[:16]


def _claim_run_dir(study: Study) -> None:
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
