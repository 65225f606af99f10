"""The sections of the configuration: each key with its type, its default, and a description with the default's source.

`docs/configuration.md` is generated from the descriptions (`config/reference.py`), so they are written in Markdown.
"Released" is the value of the authors' released code; "paper" is arXiv 2602.21395.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from momkd_ray.config.dotted_keys import Section
from momkd_ray.config.model_names import DEFAULT_MODEL, MODELS


def resolve_location(location: str) -> str:
    """Expands `~` and `$VARIABLES` in a path and makes it absolute; a URI such as `s3://bucket/x` keeps its form."""
    location = os.path.expandvars(location)
    return location if "://" in location else os.path.abspath(os.path.expanduser(location))


Location = Annotated[
    str, AfterValidator(resolve_location), WithJsonSchema({"type": "string", "format": "path or s3:// URI"})
]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


def _registered_model(name: str) -> str:
    if name not in MODELS:
        raise ValueError(f"it is {name!r}, but must be one of {', '.join(MODELS)}")
    return name


def _model_entries(entries: Any) -> list[dict[str, Any]]:
    """Checks the models of a comparison and writes each as name, label and set."""
    if not isinstance(entries, list):
        raise ValueError(f"it is {entries!r}, but must be a list of models")
    full: list[dict[str, Any]] = []
    for entry in entries:
        given = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(given, dict) or "name" not in given or set(given) - {"name", "label", "set"}:
            raise ValueError(f"{entry!r} is no model: write its name, or {{name, label, set}}")
        name = _registered_model(str(given["name"]))
        full.append({"name": name, "label": str(given.get("label", name)), "set": dict(given.get("set") or {})})
    labels = [entry["label"] for entry in full]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"two models have the label {label!r}: give each its own label")
    return full


GENE_SELECTIONS = ("xgboost", "anova", "variance", "all")


class CohortConfig(Section):
    """The tables of the cohort, and their columns of patients, slides and labels."""

    clinical: Location = Field(
        description="The clinical table, one row per patient: patient, label and, optionally, site."
    )
    slides: Location | None = Field(
        default=None,
        description="The table of slides and their patients. By default the clinical table is used, which then has one "
        "row per slide, as CLAM's tables have.",
    )
    omics: Location | None = Field(
        default=None,
        description="A table of patients by genes, or a folder of `<patient>.npy` vectors with `genes.txt`. By default "
        "no omics are used, and the slide branch is trained alone.",
    )
    patient_column: str | None = Field(
        default=None,
        description="The name of the patient column; if given, every table must have it. By default it is "
        "recognised by its name in each table.",
    )
    slide_column: str | None = Field(
        default=None,
        description="The name of the slide column; if given, the table of slides must have it. By default it is "
        "recognised by its name.",
    )
    label: str = Field(description="The name of the label's column in the clinical table.")
    positive: str = Field(default="positive", description="The label of the positive class, as written in the table.")
    negative: str = Field(default="negative", description="The label of the negative class, as written in the table.")
    bag: Literal["slide", "patient"] = Field(
        default="slide",
        description="`slide` makes each slide a bag and averages a patient's predictions; `patient` joins all "
        "slides of a patient into one bag.",
    )


class OmicsConfig(Section):
    """The use of patients without omics."""

    missing: Literal["keep", "drop"] = Field(
        default="keep",
        description="`keep` trains the slide branch on patients without omics, too; `drop` leaves them out of "
        "training. Either way they are validated and tested, from histology alone.",
    )
    fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0,
        description="The share of the training patients with omics whose omics are used, drawn by `train.seed`; a "
        "smaller share is part of a larger one. 0 trains without omics.",
    )


class FeaturesConfig(Section):
    """The feature files of the slides."""

    dir: Location = Field(description="The folder of the feature files.")
    format: Literal["auto", "trident", "clam", "stamp", "released"] = Field(
        default="auto",
        description="The layout of the feature files; `auto` recognises it by the names of the datasets in each file.",
    )
    graph: Literal["auto", "knn", "none"] = Field(
        default="auto",
        description="The neighbour graph: `auto` takes the edges in the file (`edge_index_k<neighbors>`, as "
        "released), or else the nearest neighbours by coordinates; `knn` always takes the "
        "neighbours by coordinates; `none` builds no graph, for features without coordinates.",
    )


class StoreConfig(Section):
    """The bag store: Parquet files, one row per bag."""

    uri: Location | None = Field(default=None, description="The folder of the bag store; by default `<run.dir>/bags`.")
    dtype: Literal["float16", "float32"] = Field(
        default="float16",
        description="The precision of the stored features. The default is the precision in which most encoders "
        "compute, at half the bytes.",
    )
    neighbors: Positive = Field(
        default=8,
        description="The number k of nearest neighbours of each patch in the graph. The default is the paper's.",
    )
    part_mb: Positive = Field(
        default=128,
        description="The size of a Parquet file of the store, in MiB. The default is Ray Data's own target block size.",
    )
    memory_share: Share = Field(
        default=0.3,
        description="The share of Ray's object store that bags may fill; if they need more, they are read from the bag "
        "store. The default is ours: Ray Data and Ray Train need the rest.",
    )


class FoldsConfig(Section):
    """Patient-level folds, drawn or imported, and the validation set within each fold's training patients."""

    n: Annotated[int, Field(ge=2)] = Field(
        default=5, description="The number of folds that are drawn. The default is the paper's."
    )
    seed: Seed = Field(
        default=1, description="The seed of the folds, the validation sets, the genes and the bootstrap of the metrics."
    )
    stratify: bool = Field(
        default=True, description="Whether every drawn fold has the cohort's proportion of the classes."
    )
    site: str | None = Field(
        default=None,
        description="A column of the clinical table; all patients with the same value are tested in the same fold. By "
        "default folds are drawn without regard to sites.",
    )
    validation: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        default=0.15,
        description="The share of a fold's training patients, of each class, that is held out for validation. The "
        "default is ours.",
    )
    file: Location | None = Field(
        default=None,
        description="Imported folds: a table, STAMP's `splits.json`, CLAM's folder of splits or Patho-Bench's "
        "`k=all.tsv`. By default folds are drawn.",
    )
    column: str = Field(
        default="fold", description="The column of an imported table that holds the fold in which a patient is tested."
    )

    @model_validator(mode="after")
    def _site_is_for_drawn_folds(self) -> FoldsConfig:
        if self.site is not None and self.file is not None:
            raise ValueError("site and file are both given, but imported folds are used as they are: leave one out")
        return self


class GenesConfig(Section):
    """The genes, selected and scaled on each fold's training patients."""

    select: Annotated[str, AfterValidator(lambda s: s if s in GENE_SELECTIONS else resolve_location(s))] = Field(
        default="xgboost",
        description="The selection: `xgboost` (by gain), `anova` (by F), `variance`, `all`, or the path of a list of "
        "genes. The default is the released one.",
    )
    n: Positive = Field(
        default=768,
        description="The number of selected genes; `all` and a list do not use it. The default is the released one.",
    )


class ModelConfig(Section):
    """The network and its sizes (docs/method.md §2)."""

    name: Annotated[str, AfterValidator(_registered_model)] = Field(
        default=DEFAULT_MODEL,
        description="The network: `momkd`, or a peer that is trained in the same way, such as `mean_pool`, "
        "`gated_abmil` or `transmil`; an unknown name lists them all. Peers use the sizes that they have a part for.",
    )
    hidden: Positive = Field(
        default=512,
        description="The width of the slide encoder, a multiple of `heads`. The default is the released one.",
    )
    heads: Positive = Field(
        default=2, description="The number of heads of the graph attention. The default is the released one."
    )
    shared: Positive = Field(
        default=64,
        description="The width of the space shared by slides, omics and memory. The default is the released one.",
    )
    dropout: Share = Field(
        default=0.5, description="The dropout rate of the slide branch. The default is the released one."
    )
    omics_hidden: Positive = Field(
        default=512, description="The width of the omics encoder's hidden layer. The default is the released one."
    )
    omics_embedding: Positive = Field(
        default=512, description="The width of the omics embedding. The default is the released one."
    )
    omics_dropout: Share = Field(
        default=0.25, description="The dropout rate of the omics encoder. The default is the released one."
    )
    classifier_hidden: Positive = Field(
        default=128, description="The width of the classifier's hidden layer. The default is the released one."
    )

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> ModelConfig:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        return self


class MemoryConfig(Section):
    """The class memory and its update (docs/method.md §4)."""

    rule: Literal["ema", "gradient", "fixed"] = Field(
        default="ema",
        description="The update of the memory: `ema` by momentum (the paper's), `gradient` by the optimiser (the "
        "released code's), or `fixed` after initialisation.",
    )
    components: Positive = Field(
        default=16, description="The number of memory components of each class. The default is the released one."
    )
    momentum: Share = Field(
        default=0.99,
        description="The share of its statistics that the memory keeps in a step, under `ema`. The default is ours.",
    )
    sharpness: Annotated[float, Field(gt=0)] = Field(
        default=10.0,
        description="The concentration κ of the responsibilities of components for evidence, under `ema`. The default "
        "is ours.",
    )
    reseed: Share = Field(
        default=0.05,
        description="A component whose mass falls below this share of its class's mean is initialised again from "
        "evidence, under `ema`. The default is ours.",
    )
    init_patches: Positive = Field(
        default=10_000,
        description="The largest number of projected patches of each class for the k-means that initialises the "
        "memory. The default is the released one.",
    )
    init_iterations: Positive = Field(
        default=20, description="The number of iterations of that k-means. The default is the released one."
    )


class LossConfig(Section):
    """Weights and constants of the losses (docs/method.md §3)."""

    task: float = Field(
        default=0.5, description="The weight of the classification losses. The default is the released one."
    )
    align_slide: float = Field(
        default=0.2, description="The weight of the slides' alignment with the memory. The default is the released one."
    )
    align_omics: float = Field(
        default=0.05, description="The weight of the omics' alignment with the memory. The default is the released one."
    )
    reconstruction: float = Field(
        default=0.05,
        description="The weight of the omics' reconstruction. The default is the released one; the paper says 0.01.",
    )
    memory: float = Field(
        default=0.1, description="The weight of the memory's losses. The default is the released one."
    )
    margin: float = Field(
        default=0.3, description="The margin of the soft-angle alignment, a cosine. The default is the released one."
    )
    sharpness: float = Field(
        default=20.0, description="The sharpness of the soft-angle alignment. The default is the released one."
    )
    aggregation: float = Field(
        default=5.0,
        description="The inverse temperature of the log-sum-exp over a class's components. The default is the released "
        "one.",
    )
    orthogonality: float = Field(
        default=10.0,
        description="The weight of the components' orthogonality within the memory's losses. The default is the "
        "released one.",
    )


class TrainConfig(Section):
    """The training of one fold (docs/method.md §5)."""

    fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="The share of each class's training patients that train, drawn by `train.seed`; a smaller share "
        "is part of a larger one.",
    )
    epochs: Positive = Field(default=100, description="The largest number of epochs. The default is the released one.")
    lr: Annotated[float, Field(gt=0)] = Field(
        default=2e-4, description="The learning rate of AdamW at the start. The default is the released one."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=1e-4, description="The weight decay of AdamW. The default is the released one."
    )
    bags_per_step: Positive = Field(
        default=1,
        description="The number of bags in a step of the optimiser, of all workers together. The default is the "
        "released one.",
    )
    clip_norm: Annotated[float, Field(gt=0)] = Field(
        default=32.0,
        description="The largest norm of the gradient. The default is the released `--gc 32`, used as a norm.",
    )
    lr_factor: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2,
        description="The factor of the learning rate on a plateau of the validation AUC. The default is the "
        "released one.",
    )
    lr_patience: Annotated[int, Field(ge=0)] = Field(
        default=5,
        description="The number of epochs without a higher validation AUC before the learning rate is lowered. The "
        "default is the released one.",
    )
    patience: Positive = Field(
        default=10,
        description="The number of epochs without a higher validation AUC before training stops. The default is the "
        "released one.",
    )
    balanced: bool = Field(
        default=True,
        description="Whether bags are drawn with replacement, both classes equally often. The default is the "
        "released one.",
    )
    patches_per_pass: Positive = Field(
        default=16_384,
        description="Bags of one step share a forward pass up to this number of patches. It bounds memory and "
        "changes no result beyond rounding. The default is ours.",
    )
    seed: Seed = Field(default=1, description="The seed of weights, sampling and dropout. The default is ours.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="The precision of the matrix products; `auto` takes `bf16` if the GPU or CPU computes in "
        "it, or else `fp32`.",
    )
    deterministic: bool = Field(
        default=False,
        description="Whether results agree to the last bit from run to run, and after a resume, for a given number of "
        "workers. It is slower on GPUs and with many workers, so it is off by default.",
    )


def _count_or_least_and_most(workers: Any) -> Any:
    least_and_most = list(workers) if isinstance(workers, list | tuple) and len(workers) == 2 else [workers, workers]
    if not all(isinstance(n, int) and n > 0 for n in least_and_most) or least_and_most[0] > least_and_most[1]:
        raise ValueError(f"it is {workers!r}, but must be a number of workers, or [least, most]")
    return tuple(workers) if isinstance(workers, list) else workers


class ClusterConfig(Section):
    """The resources of one fold. No key changes a result beyond rounding."""

    workers: Annotated[int | tuple[int, int], BeforeValidator(_count_or_least_and_most)] = Field(
        default=1,
        description="The number of workers of a fold, or `[least, most]` for an elastic number: the fold then "
        "continues with the workers that are available, and takes more when nodes join.",
    )
    gpus_per_worker: Annotated[float, Field(ge=0)] = Field(
        default=0,
        description="The GPUs of each worker. With one worker per fold it may be a fraction, so that several "
        "folds share a GPU.",
    )
    cpus_per_worker: Annotated[float, Field(gt=0)] = Field(
        default=1, description="The CPUs of each worker; it computes with as many threads."
    )
    read_threads: Positive = Field(
        default=2,
        description="The threads of each worker that read bags while it computes. With the default, one reads storage "
        "while one makes batches.",
    )
    read_ahead_mb: Positive = Field(
        default=256,
        description="The memory for prefetched bags, in MiB (of the GPU if there is one), besides the batch in use. A "
        "larger bag is prefetched alone. The default is ours.",
    )
    max_failures: Annotated[int, Field(ge=-1)] = Field(
        default=3,
        description="The number of failures of a fold's workers from which it is resumed; -1 for any number. "
        "The default is ours.",
    )
    checkpoint_steps: Positive = Field(
        default=200,
        description="The number of steps between checkpoints within an epoch; every epoch ends with one, too. The "
        "default is a few minutes' work with the default model.",
    )
    resize_interval_s: Annotated[float, Field(gt=0)] = Field(
        default=60,
        description="The seconds between looks for more nodes, for an elastic number of workers; each change of their "
        "number restarts them. The default is Ray Train's own.",
    )

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change while a fold is trained."""
        return not isinstance(self.workers, int)

    @property
    def least_workers(self) -> int:
        """The smallest number of workers with which a fold continues."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """The number of workers of a fold on a cluster that is large enough."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _gpus_can_be_allocated(self) -> ClusterConfig:
        gpus = self.gpus_per_worker
        if self.most_workers > 1 and 0 < gpus < 1:
            raise ValueError(
                f"gpus_per_worker is {gpus:g} with {self.most_workers} workers, but NCCL needs an entire GPU for each: "
                "set workers to 1, so that several folds share a GPU, or gpus_per_worker to 1"
            )
        if gpus > 1 and gpus % 1:
            raise ValueError(f"gpus_per_worker is {gpus:g}, but above 1 it must be an integer: use {int(gpus)}")
        return self


class TuningConfig(Section):
    """The way in which the settings of `search` are drawn, and the early stopping of settings."""

    method: Literal["grid", "random", "optuna"] = Field(
        default="grid",
        description="`grid` tries every combination; `random` draws combinations; `optuna` draws them by its "
        "TPE sampler from each setting's mean validation AUC over folds.",
    )
    settings: Positive | None = Field(
        default=None,
        description="The number of settings that `random` and `optuna` draw; by default 20, twice the number "
        "that Optuna draws at random at first.",
    )
    seed: Seed = Field(default=1, description="The seed of the drawn settings. The default is ours.")
    stop: Literal["median", "none"] = Field(
        default="none",
        description="`median` stops a setting in all folds when the mean over folds of its best validation AUC "
        "is below the median of earlier settings at the same epoch (Vizier's rule). The default is "
        "`none`, because that mean includes other folds' validation patients, who are test patients "
        "of this fold; without it they do not influence the settings that a fold can choose from.",
    )
    grace_epochs: Positive = Field(
        default=10,
        description="The number of epochs before the first comparison of settings. The default is that of "
        "`train.patience`.",
    )

    @model_validator(mode="after")
    def _grid_draws_nothing(self) -> TuningConfig:
        if self.method == "grid" and self.settings is not None:
            raise ValueError(
                f"settings is {self.settings}, but a grid tries every combination: leave settings out, "
                "or set method to random or optuna"
            )
        return self


class SyntheticConfig(Section):
    """The demo's cohort, generated before the run if `dir` does not hold it yet."""

    dir: Location = Field(description="The folder of the generated cohort.")
    patients: Positive = Field(default=80, description="The number of patients. The default is the demo's.")
    patches: Positive = Field(
        default=300, description="The mean number of patches of a slide. The default is the demo's."
    )
    width: Positive = Field(default=256, description="The width of the features. The default is the demo's.")
    genes: Positive = Field(default=200, description="The number of genes. The default is the demo's.")
    seed: Seed = Field(default=7, description="The seed of the cohort. The default is the demo's.")


class CompareConfig(Section):
    """The models that `momkd-ray compare` trains on the same folds, and how."""

    models: Annotated[
        list[Any],
        BeforeValidator(_model_entries),
        WithJsonSchema({"type": "array", "items": {"type": "name or mapping"}}),
    ] = Field(
        description="The models: names as in `model.name`, or `{name: momkd, label: without omics, set: "
        "{omics.fraction: 0}}`, where `set` replaces keys of `omics`, `genes`, `model`, `memory`, `loss` and `train`.",
        min_length=1,
    )
    seeds: list[Seed] = Field(
        default=[1], min_length=1, description="The seeds, each used as `train.seed` of every model."
    )
    reference: str | None = Field(
        default=None, description="The label of the model that the others are compared with. The default is the first."
    )
    label_fractions: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[1.0], min_length=1, description="Values of `train.fraction` to train every model with."
    )
    omics_fractions: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        default=[1.0], min_length=1, description="Values of `omics.fraction` to train every model with."
    )


class WatchConfig(Section):
    """Tracking of a run besides Ray's dashboard, Prometheus and TensorBoard. No key changes a result."""

    mlflow: str | None = Field(
        default=None,
        description="MLflow's tracking URI, such as `http://mlflow:5000`, or `$VARIABLE` that holds it; it needs "
        "`pip install 'momkd-ray[mlflow]'`. By default MLflow is not used.",
    )


class RunConfig(Section):
    """The run directory."""

    dir: Location = Field(
        default="runs/momkd",
        validate_default=True,
        description="The folder of the run; if it holds an interrupted run of the same configuration and data, "
        "that run is resumed.",
    )
