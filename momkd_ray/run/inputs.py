"""`RunInputs`: the cohort, folds and bags of a run."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from momkd_ray import storage
from momkd_ray.bags.shared_bags import BagSource, JointBags
from momkd_ray.bags.store import BagStore
from momkd_ray.cohort.cohort import Cohort
from momkd_ray.cohort.folds import FoldPlan
from momkd_ray.config.load import Config
from momkd_ray.run.layout import FoldDirectory, RunDirectory


@dataclass(frozen=True)
class RunInputs:
    """A cohort with its folds and bags, ready to be trained on.

    Attributes:
        config: the resolved configuration.
        cohort: the patients that the folds use.
        plan: the folds.
        store: the bag store.
        slides: the source from which workers read the slides' bags: the store, or the bags that Ray Data shares.
        fingerprint: of configuration, cohort, folds and features.
    """

    config: Config
    cohort: Cohort
    plan: FoldPlan
    store: BagStore
    slides: BagSource
    fingerprint: str
    setting_names: tuple[str, ...] = ()  # folders of settings, where they are not numbered as in a search

    @property
    def directory(self) -> RunDirectory:
        """The run directory."""
        return RunDirectory(self.config.run.dir)

    def fold_directory(self, fold: int, setting: int = 0) -> FoldDirectory:
        """Returns the folder of a fold, with a search that of the fold with one setting."""
        if self.setting_names:
            return RunDirectory(storage.join(self.config.run.dir, self.setting_names[setting])).fold(fold)
        return self.directory.fold(fold, self.setting_number(setting))

    def setting_number(self, setting: int) -> int | None:
        """Returns the setting's number if there is a search; None otherwise."""
        return setting if self.config.search else None

    @property
    def source(self) -> BagSource:
        """The source from which workers read bags, of one slide or of all slides of a patient."""
        if self.config.cohort.bag == "slide":
            return self.slides
        by_patient = self.cohort.slides.sort_values("slide_id").groupby("patient_id")["slide_id"]
        return JointBags(self.slides, {str(patient): tuple(slides) for patient, slides in by_patient})

    def fold_bags(self, fold: int) -> pd.DataFrame:
        """Returns the bags of a fold: `bag_id, slides, patient_id, patches, y, role`, sorted by bag.

        Of a regression they have the `number` of their patient, too.
        """
        slides = self.cohort.slides[["slide_id", "patient_id"]].sort_values("slide_id")
        slides["patches"] = self.store.slides["n_patches"].loc[slides["slide_id"]].to_numpy()
        slides["bag_id"] = slides["patient_id" if self.config.cohort.bag == "patient" else "slide_id"]
        by_bag = slides.groupby("bag_id", sort=True)
        bags = by_bag.agg(
            slides=("slide_id", ", ".join), patient_id=("patient_id", "first"), patches=("patches", "sum")
        )
        bags = bags.reset_index()
        bags["y"] = self.cohort.patients["y"].loc[bags["patient_id"]].to_numpy()
        if "number" in self.cohort.patients:
            bags["number"] = self.cohort.patients["number"].loc[bags["patient_id"]].to_numpy()
        bags["role"] = self.plan.roles(fold).reindex(bags["patient_id"], fill_value="").to_numpy()
        return bags[bags["role"] != ""].reset_index(drop=True)
