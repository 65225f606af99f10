"""Configuration of a run: cluster, search, comparison, tracking and the run directory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from momkd_ray.config.ablations import ABLATIONS
from momkd_ray.config.dotted_keys import Section
from momkd_ray.config.model_names import DEFAULT_MODEL
from momkd_ray.config.search_space import Range, read_space
from momkd_ray.config.training_sections import registered_model
from momkd_ray.config.values import Location, Positive, Seed


def _model_entries(entries: Any) -> list[dict[str, Any]]:
    """Checks the models of a comparison and writes each as name, label, ablation and set."""
    if not isinstance(entries, list):
        raise ValueError(f"it is {entries!r}, but must be a list of models")
    full = [_model_entry(entry) for entry in entries]
    labels = [entry["label"] for entry in full]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"two models have the label {label!r}: give each its own label")
    return full


_ENTRY = dict.fromkeys(("name", "label", "ablation", "set", "search")).keys()


def _model_entry(entry: Any) -> dict[str, Any]:
    given = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(given, dict) or "name" not in given or set(given) - _ENTRY:
        raise ValueError(f"{entry!r} is no model: write its name, or {{{', '.join(_ENTRY)}}}")
    name, ablation = registered_model(str(given["name"])), _ablation(given.get("ablation") or [])
    if ablation and name != DEFAULT_MODEL:
        raise ValueError(f"{entry!r}: the ablations are of {DEFAULT_MODEL}; use set for another model's keys")
    if not isinstance(changed := given.get("set") or {}, dict):
        raise ValueError(f"{entry!r}: set is {changed!r}, but must be values by dotted key, such as {{train.lr: 1e-3}}")
    label = str(given.get("label") or ablation_label(name, ablation))
    try:
        space = read_space(given.get("search") or {})
    except ValueError as error:
        raise ValueError(f"{label}: search: {error}") from None
    search = {k: v.model_dump(exclude_defaults=True) if isinstance(v, Range) else v for k, v in space.items()}
    return {"name": name, "label": label, "ablation": ablation, "set": dict(changed), "search": search}


def _ablation(names: Any) -> list[str]:
    """Returns one ablation, or several on top of each other, as a list of names."""
    listed = [names] if isinstance(names, str) else names
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"{names!r} is no ablation: write a name, or a list of names")
    for name in listed:
        if name not in ABLATIONS:
            raise ValueError(f"{name!r} is no ablation; they are {', '.join(ABLATIONS)}")
        if listed.count(name) > 1:
            raise ValueError(f"the ablation {name!r} is given twice in {listed!r}")
    return list(listed)


def _ablations(value: Any) -> Any:
    if value == "all":
        return value
    if not isinstance(value, list):
        raise ValueError(f"it is {value!r}, but must be all, or a list of ablations")
    return [_ablation(names) for names in value]


def ablation_label(model: str, ablation: Sequence[str]) -> str:
    """Returns the label of a model with ablations, such as `momkd, no distillation`."""
    return ", ".join([model, *(name.replace("_", " ") for name in ablation)])


def _count_or_least_and_most(workers: Any) -> Any:
    least_and_most = list(workers) if isinstance(workers, list | tuple) and len(workers) == 2 else [workers, workers]
    if not all(isinstance(n, int) and n > 0 for n in least_and_most) or least_and_most[0] > least_and_most[1]:
        raise ValueError(f"it is {workers!r}, but must be a number of workers, or [least, most]")
    return tuple(workers) if isinstance(workers, list) else workers


def _auto_or_number(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int | float) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError(f"it is {value!r}, but must be auto or a number of at least 0")


AutoOrNumber = Annotated[Literal["auto"] | Annotated[float, Field(ge=0)], BeforeValidator(_auto_or_number)]


class ClusterConfig(Section):
    """The resources of one fold. No key changes a result beyond rounding."""

    workers: Annotated[int | tuple[int, int], BeforeValidator(_count_or_least_and_most)] = Field(
        default=1,
        description="The number of workers of a fold, or `[least, most]` for an elastic number: the fold then "
        "continues with the workers that are available, and takes more when nodes join.",
    )
    gpus_per_worker: AutoOrNumber = Field(
        default="auto",
        description="The GPUs of each worker; `auto` is one where the cluster has enough, or else 0. With one worker a "
        "fold it may be a fraction, so that several folds share a GPU. The default is ours.",
    )
    cpus_per_worker: Annotated[float, Field(gt=0)] = Field(
        default=1,
        description="The CPUs of each worker; it computes with as many threads, or with fewer where bags are too small "
        "to occupy them.",
    )
    read_threads: Positive | None = Field(
        default=None,
        description="The threads of each worker that read bags while it computes. By default 2, of which one reads "
        "storage while one makes batches, and 8 for a store on S3, where they mostly wait. The default is ours.",
    )
    read_ahead_mb: Positive = Field(
        default=256,
        description="The memory for prefetched bags, in MiB (of the GPU if there is one), besides the batch in use. A "
        "larger bag is prefetched alone. Validation bags that take no more than half of it are kept for all epochs. "
        "The default is ours.",
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

    @property
    def gpus(self) -> float:
        """The GPUs of each worker; 0 for `auto`, which a run replaces by a number once it knows the cluster."""
        return 0.0 if self.gpus_per_worker == "auto" else self.gpus_per_worker

    @model_validator(mode="after")
    def _gpus_can_be_allocated(self) -> ClusterConfig:
        gpus = self.gpus
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
        "TPE sampler from each setting's mean validation AUC (of a number: Spearman's correlation) over folds.",
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


class CompareConfig(Section):
    """The models that `momkd-ray compare` trains on the same folds, and how."""

    models: Annotated[
        list[Any],
        BeforeValidator(_model_entries),
        WithJsonSchema({"type": "array", "items": {"type": "name or mapping"}}),
    ] = Field(
        default=[{"name": DEFAULT_MODEL, "label": DEFAULT_MODEL, "ablation": [], "set": {}, "search": {}}],
        description="The models: names as in `model.name`, or `{name: momkd, label: without omics, set: "
        "{omics.fraction: 0}}`, where `set` replaces keys of `omics`, `genes`, `model`, `memory`, `loss` and `train`, "
        "and for `momkd` `ablation: no_distillation`, or `ablation: [published, no_graph]` for several on top of each "
        "other ([the list](compare.md#ablations)), and `search: {train.lr: [1.0e-4, 1.0e-3]}` has the values of keys "
        "to choose from, as the section `search` has them. The default is `momkd` alone.",
        min_length=1,
    )
    ablations: Annotated[
        Literal["all"] | list[Any],
        BeforeValidator(_ablations),
        WithJsonSchema({"anyOf": [{"const": "all"}, {"type": "array", "items": {"type": "name or list of names"}}]}),
    ] = Field(
        default=[],
        description="Ablations of `momkd` to train beside `models`: names as in `ablation`, or `all` for every one "
        "that changes something in this configuration.",
    )
    trials: Positive | None = Field(
        default=None,
        description="The number of settings that every model with a `search` tries in each fold, drawn at random; each "
        "fold takes the one of the highest AUC (of a number: Spearman's correlation) on its own inner validation "
        "patients. The default is 8, or as many as the smallest search has.",
    )
    search_seed: Seed = Field(default=1, description="The seed of the drawn settings. The default is ours.")
    seeds: list[Seed] = Field(
        default=[1], min_length=1, description="The seeds, each used as `train.seed` of every model."
    )
    reference: str | None = Field(
        default=None,
        description="The label of the model that the others are compared with, of several fractions the one with the "
        "largest. The default is the first model.",
    )
    label_fractions: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[1.0], min_length=1, description="Values of `train.fraction` to train every model with."
    )
    omics_fractions: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        default=[1.0],
        min_length=1,
        description="Values of `omics.fraction` to train every model with; one that uses no omics is trained once.",
    )

    @model_validator(mode="after")
    def _trials_are_of_a_search(self) -> CompareConfig:
        if self.trials is not None and not any(model["search"] for model in self.models):
            raise ValueError(
                f"trials is {self.trials}, but no model has a search: leave trials out, or give a model of "
                "compare.models a search"
            )
        return self


class WatchConfig(Section):
    """Tracking of a run besides Ray's dashboard, Prometheus and TensorBoard. No key changes a result."""

    mlflow: str | None = Field(
        default=None,
        description="MLflow's tracking URI, such as `http://mlflow:5000`, or `$VARIABLE` that holds it; it needs "
        "`pip install 'momkd-ray[mlflow]'`. By default MLflow is not used.",
    )
    wandb: str | None = Field(
        default=None,
        min_length=1,
        description="The project of Weights & Biases; it needs `pip install 'momkd-ray[wandb]'` and `WANDB_API_KEY` or "
        "`wandb login`, or `WANDB_MODE=offline`, which keeps the records in `WANDB_DIR`, by default `wandb` in the run "
        "directory, for `wandb sync`. By default Weights & Biases is not used.",
    )


class RunConfig(Section):
    """The run directory."""

    dir: Location = Field(
        default="runs/momkd",
        validate_default=True,
        description="The folder of the run; if it holds an interrupted run of the same configuration and data, "
        "that run is resumed.",
    )
