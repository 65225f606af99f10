"""The sections of the configuration tree: every key with its type, its default, and where the default comes from."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from momkd_ray.config.dotted_keys import Section


def absolute(location: str) -> str:
    """A path with `~` and `$VARIABLES` expanded and made absolute; a URI such as `s3://bucket/x` as it is."""
    location = os.path.expandvars(location)
    return location if "://" in location else os.path.abspath(os.path.expanduser(location))


Location = Annotated[str, AfterValidator(absolute)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
GENE_SELECTIONS = ("xgboost", "anova", "variance", "all")


class CohortConfig(Section):
    """Who: the tables, and the columns that name patients, slides and labels."""

    clinical: Location
    slides: Location | None = None  # default: the clinical table, which then has a row a slide, as CLAM's
    omics: Location | None = None  # a table (patient x genes) or a folder of <patient>.npy
    # default: found by name in each table (cohort/columns.py); a name given here must be in all of them
    patient_column: str | None = None
    slide_column: str | None = None
    label: str
    positive: str = "positive"
    negative: str = "negative"
    bag: Literal["slide", "patient"] = "slide"  # a bag a slide, averaged by patient; or one bag of all of a patient's


class OmicsConfig(Section):
    """What becomes of patients without omics."""

    # keep: they train the slide branch; drop: they do not train. Both validate and test them, from histology alone.
    missing: Literal["keep", "drop"] = "keep"


class FeaturesConfig(Section):
    """Where the feature files of the slides are."""

    dir: Location
    format: Literal["auto", "trident", "clam", "stamp", "released"] = "auto"  # auto: what the file's datasets say
    # auto: the file's own edge_index_k<neighbors> (released), else the nearest neighbours by coordinates;
    # knn: always by coordinates; none: no graph, for features without coordinates
    graph: Literal["auto", "knn", "none"] = "auto"


class StoreConfig(Section):
    """The bag store: Parquet, one row a bag."""

    uri: Location | None = None  # default: <run.dir>/bags
    dtype: Literal["float16", "float32"] = "float16"  # the encoders' own precision; half the bytes
    neighbors: Positive = 8  # method 1: k = 8
    part_mb: Positive = 128  # Ray Data's own target block size
    memory_share: Share = 0.3  # of Ray's object store that the bags may fill; above it they are read from the store


class FoldsConfig(Section):
    """Patient-level folds, drawn or imported, and the validation set inside each fold's training patients."""

    n: Annotated[int, Field(ge=2)] = 5  # paper: five folds
    seed: Seed = 1
    stratify: bool = True
    site: str | None = None  # a clinical column: all patients of a site are tested in the same fold
    validation: Annotated[float, Field(gt=0, lt=0.5)] = 0.15
    file: Location | None = None  # a table, STAMP's splits.json, CLAM's folder of splits or Patho-Bench's k=all.tsv
    column: str = "fold"  # of a table: the fold a patient is tested in

    @model_validator(mode="after")
    def _site_is_for_drawn_folds(self) -> FoldsConfig:
        if self.site is not None and self.file is not None:
            raise ValueError("site and file are both given, but imported folds are used as they are: leave one out")
        return self


class GenesConfig(Section):
    """Which genes teach: chosen and scaled on each fold's training patients."""

    # xgboost as released; or anova, variance, all, or the path of a list
    select: Annotated[str, AfterValidator(lambda s: s if s in GENE_SELECTIONS else absolute(s))] = "xgboost"
    n: Positive = 768  # released


class ModelConfig(Section):
    """The network's sizes; released values (method 2)."""

    hidden: Positive = 512
    heads: Positive = 2
    shared: Positive = 64
    dropout: Share = 0.5
    omics_hidden: Positive = 512
    omics_embedding: Positive = 512
    omics_dropout: Share = 0.25
    classifier_hidden: Positive = 128

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> ModelConfig:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        return self


class MemoryConfig(Section):
    """The class memory and the rule that moves it (method 4)."""

    rule: Literal["ema", "gradient", "fixed"] = "ema"
    components: Positive = 16  # released
    momentum: Share = 0.99
    sharpness: Annotated[float, Field(gt=0)] = 10.0  # kappa of the responsibilities
    reseed: Share = 0.05  # a component under this share of its class's mean mass starts again from evidence
    init_patches: Positive = 10_000  # released: k-means over up to 10,000 projections a class
    init_iterations: Positive = 20  # released


class LossConfig(Section):
    """Weights and constants of the losses; released values (method 3)."""

    task: float = 0.5
    align_slide: float = 0.2
    align_omics: float = 0.05
    reconstruction: float = 0.05  # the paper says 0.01
    memory: float = 0.1
    margin: float = 0.3
    sharpness: float = 20.0
    aggregation: float = 5.0  # 1 / temperature of the log-sum-exp over components
    orthogonality: float = 10.0


class TrainConfig(Section):
    """How one fold is trained; released values (method 5) where there are any."""

    epochs: Positive = 100
    lr: Annotated[float, Field(gt=0)] = 2e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    bags_per_step: Positive = 1  # of all workers together
    clip_norm: Annotated[float, Field(gt=0)] = 32.0  # released: --gc 32, used as a norm
    lr_factor: Annotated[float, Field(gt=0, lt=1)] = 0.2
    lr_patience: Annotated[int, Field(ge=0)] = 5
    patience: Positive = 10
    balanced: bool = True  # classes drawn equally often, with replacement
    patches_per_pass: Positive = 16_384  # bags of one step share a pass up to this many patches
    seed: Seed = 1
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where GPU or CPU has it, else fp32
    # the same bits from run to run, and after a resume, for a given number of workers; slower on GPUs and many workers
    deterministic: bool = False


def _one_or_least_and_most(workers: Any) -> Any:
    least_and_most = list(workers) if isinstance(workers, list | tuple) and len(workers) == 2 else [workers, workers]
    if not all(isinstance(n, int) and n > 0 for n in least_and_most) or least_and_most[0] > least_and_most[1]:
        raise ValueError(f"it is {workers!r}, but must be a number of workers, or [least, most]")
    return tuple(workers) if isinstance(workers, list) else workers


class ClusterConfig(Section):
    """What one fold may use. None of it changes a result."""

    # or [least, most]: the fold goes on with what workers there are, and takes more as they come
    workers: Annotated[int | tuple[int, int], BeforeValidator(_one_or_least_and_most)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    read_threads: Positive = 2  # that read bags while a worker computes: one reads storage while one makes batches
    # of bags in memory, a GPU's where there is one, beside the one computed on; a larger bag comes alone
    read_ahead_mb: Positive = 256
    max_failures: Annotated[int, Field(ge=-1)] = 3  # of a fold's workers, each resumed from; -1: without end
    checkpoint_steps: Positive = 200  # besides every epoch: minutes of work at the default model's seconds a step
    resize_interval_s: Annotated[float, Field(gt=0)] = 60  # Ray Train's own default; each change of size is a restart

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change in the middle of a fold."""
        return not isinstance(self.workers, int)

    @property
    def least_workers(self) -> int:
        """The fewest workers that a fold goes on with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """The workers of a fold when there is room."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _gpus_can_be_given(self) -> ClusterConfig:
        gpus = self.gpus_per_worker
        if self.most_workers > 1 and 0 < gpus < 1:
            raise ValueError(
                f"gpus_per_worker is {gpus:g} with {self.most_workers} workers, but NCCL wants a whole GPU for each: "
                "set workers to 1, so that several folds share a GPU, or gpus_per_worker to 1"
            )
        if gpus > 1 and gpus % 1:
            raise ValueError(f"gpus_per_worker is {gpus:g}, but above 1 only whole GPUs can be given")
        return self


class TuningConfig(Section):
    """How the settings of a search are drawn, and whether hopeless ones end early."""

    # grid: every combination; random: by chance; optuna: its TPE sampler, told each setting's mean over folds
    method: Literal["grid", "random", "optuna"] = "grid"
    settings: Positive | None = None  # that are drawn; default: 20, twice what Optuna draws by chance at first
    seed: Seed = 1
    # median: a setting ends in all folds when its mean over folds of the best validation AUC is below the median of
    # those of earlier settings at the same epoch (Vizier's rule). none, because that mean also looks at other folds'
    # validation patients, who are this fold's test patients; without it they have no say in what a fold may choose
    stop: Literal["median", "none"] = "none"
    grace_epochs: Positive = 10  # before the first comparison: train.patience, what a fold may go without a gain

    @model_validator(mode="after")
    def _grids_are_not_drawn(self) -> TuningConfig:
        if self.method == "grid" and self.settings is not None:
            raise ValueError(
                f"settings is {self.settings}, but a grid tries every combination: leave settings out, "
                "or set method to random or optuna"
            )
        return self


class SyntheticConfig(Section):
    """A cohort generated before the run when `dir` holds none: the demo's."""

    dir: Location
    patients: Positive = 80
    patches: Positive = 300
    width: Positive = 256
    genes: Positive = 200
    seed: Seed = 7


class WatchConfig(Section):
    """Where a run is watched, beside Ray's dashboard, Prometheus and TensorBoard. None of it changes a result."""

    # a tracking URI, such as http://mlflow:5000, or '$VARIABLE' that holds it; needs pip install 'momkd-ray[mlflow]'
    mlflow: str | None = None


class RunConfig(Section):
    """Where the run is written, local or s3://."""

    dir: Location = Field(default="runs/momkd", validate_default=True)
