"""`Config`, the root of the configuration: read from YAML with `--set a.b=value` overrides, and checked."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from momkd_ray.config.agreement import disagreement
from momkd_ray.config.dotted_keys import Section, dotted_keys, type_of, unknown_key
from momkd_ray.config.model_names import DEFAULT_MODEL, pools_components
from momkd_ray.config.search_space import Range, Space, read_space
from momkd_ray.config.sections import (
    ClusterConfig,
    CohortConfig,
    CompareConfig,
    FeaturesConfig,
    FoldsConfig,
    GenesConfig,
    LossConfig,
    MemoryConfig,
    ModelConfig,
    OmicsConfig,
    RunConfig,
    StoreConfig,
    SyntheticConfig,
    TrainConfig,
    TuningConfig,
    WatchConfig,
)
from momkd_ray.config.value_errors import place_of, sentence_of
from momkd_ray.credentials import has_credentials, redact
from momkd_ray.errors import InputError


class Config(Section):
    """The configuration of a run, a tree of sections.

    >>> config = Config.model_validate(
    ...     {"cohort": {"clinical": "/data/clinical.csv", "label": "PR"}, "features": {"dir": "/data/features"}}
    ... )
    >>> config.train.epochs
    20
    >>> config.with_settings({"train.lr": 1e-3}).train.lr
    0.001
    """

    cohort: CohortConfig
    features: FeaturesConfig
    omics: OmicsConfig = OmicsConfig()
    store: StoreConfig = StoreConfig()
    folds: FoldsConfig = FoldsConfig()
    genes: GenesConfig = GenesConfig()
    model: ModelConfig = ModelConfig()
    memory: MemoryConfig = MemoryConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    cluster: ClusterConfig = ClusterConfig()
    search: Space = Field(
        default_factory=dict,
        description="The settings to search over: for each dotted key a list of values, or a range `{low: "
        "1.0e-5, high: 1.0e-2, log: true}`, or `{low: 8, high: 32, step: 8}`. Keys of `genes`, "
        "`model`, `memory`, `loss` and `train` can be searched, except `train.seed`. By default "
        "there is no search.",
    )
    tuning: TuningConfig = TuningConfig()
    compare: CompareConfig | None = None
    synthetic: SyntheticConfig | None = None
    watch: WatchConfig = WatchConfig()
    run: RunConfig = RunConfig()

    @field_validator("search", mode="before")
    @classmethod
    def _search_is_a_space(cls, tree: Any) -> Space:
        return read_space(tree)

    @property
    def store_uri(self) -> str:
        """The location of the bag store: `store.uri`, or `bags` in the run directory."""
        return self.store.uri or f"{self.run.dir.rstrip('/')}/bags"

    @property
    def answers_balanced(self) -> bool:
        """Whether probabilities are as if all classes were equally common (see `pools_components`)."""
        return self.train.balanced and not pools_components(self.model.name, self.model.pooling)

    def to_yaml(self) -> str:
        """Returns the configuration with all defaults as YAML that `load_config` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def answer_fingerprint(self) -> str:
        """Returns 16 hex digits of a SHA-256 over `answer_keys`."""
        return hashlib.sha256(json.dumps(self.answer_keys(), sort_keys=True).encode()).hexdigest()[:16]

    def answer_keys(self) -> dict[str, Any]:
        """Returns every key that can change a result, as a tree.

        Left out are the locations of data, whose content the caller hashes, and the resources of the run.
        """
        unhashed_sections = {"cluster", "run", "synthetic", "watch", "compare"} | (set() if self.search else {"tuning"})
        tree = self.model_dump(mode="json", exclude=unhashed_sections)
        unhashed_keys = {
            "features": ("dir", "format", "mixed_magnification"),
            "cohort": (
                "clinical",
                "slides",
                "omics",
                "patient_column",
                "slide_column",
                "columns",
                "slide_labels",
                "encoding",
            ),
            "omics": ("orientation", "sample_sheet", "column", "leave_out", "max_missing_share"),
            "store": ("uri", "part_mb", "memory_share", "cache", "reader"),
            "folds": ("file",),
            "train": ("patches_per_pass",),
        }
        for section, keys in unhashed_keys.items():
            for key in keys:
                del tree[section][key]
        # runs from before there were these keys stay valid
        for section, key, default in (
            ("cohort", "classes", None),
            ("cohort", "ordered", True),
            ("cohort", "task", "classification"),
            ("model", "name", DEFAULT_MODEL),
            ("model", "attention", "memory"),
            ("model", "graph", True),
            ("omics", "fraction", 1),
            ("omics", "keep", []),
            ("omics", "scale", "auto"),
            ("train", "fraction", 1),
        ):
            if tree[section][key] == default:
                del tree[section][key]
        if self.cohort.task == "classification":
            del tree["cohort"]["quantile_classes"]
        return tree

    def with_settings(self, settings: Mapping[str, Any], *, trains: bool = True, source: str = "search") -> Config:
        """Returns the configuration with values of dotted keys replaced, and without `search` and `tuning`.

        Args:
            settings: values by dotted key.
            trains: as of `load_config`.
            source: where the values come from, for messages.

        Raises:
            InputError: the values do not fit together.
        """
        tree = self.model_dump(mode="json") | {"search": {}, "tuning": {}}
        for key, value in settings.items():
            _assign(tree, key, value)
        return _validated(tree, source, trains=trains)

    def with_search(self, search: Mapping[str, Any], tuning: Mapping[str, Any], source: str) -> Config:
        """Returns the configuration with another search, whose values are checked.

        Args:
            search: a list of values, or a range, by dotted key.
            tuning: the section that goes with it.
            source: where the search comes from, for messages.

        Raises:
            InputError: the search is not valid, or a value of it is not.
        """
        return _validated(self.model_dump(mode="json") | {"search": search, "tuning": tuning}, source)


_JOB_UPLOADS = "/working_dir_files/_ray_pkg_"


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = (), *, trains: bool = True) -> Config:
    r"""Reads a configuration file and applies overrides.

    Args:
        path: a YAML file.
        overrides: replacements `a.b=value`; the value is YAML.
        trains: whether a fold may be trained with it: keys of training that do not go together are refused.

    Returns:
        The configuration, with absolute paths.

    Raises:
        InputError: the file is missing or not YAML, a key is unknown (the nearest valid one is named), or a value is
            not valid.

    >>> from pathlib import Path
    >>> text = "cohort: {clinical: clinical.csv, label: PR}\nfeatures: {dir: features}\n"
    >>> _ = Path("pr.yaml").write_text(text)
    >>> load_config("pr.yaml", ["train.epochs=3"]).train.epochs
    3
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise InputError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text") from error
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path} contains no configuration: its top level must be a mapping such as 'cohort: ...'")
    written: dict[str, str] = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key.strip():
            raise InputError(f"--set {override}: write it as a.b=value")
        try:
            _assign(tree, key.strip(), yaml.safe_load(value), f"--set {override}: ")
            written[key.strip()] = override
        except yaml.YAMLError as error:
            raise InputError(f"--set {override}: the value is not valid YAML") from error
    config = _validated(tree, str(path), written, trains=trains)
    for package, service in (("mlflow", "MLflow"), ("wandb", "Weights & Biases")):
        if getattr(config.watch, package) is not None and importlib.util.find_spec(package) is None:
            raise InputError(
                f"watch.{package} is set, but {service} is not installed: pip install 'momkd-ray[{package}]'"
            )
    _check_locations(config)
    return config


def _check_locations(config: Config) -> None:
    """Refuses locations in Ray's own copy of a job's folder, which Ray removes, unless they are uploaded input."""
    written = {"run.dir": config.run.dir, "store.uri": config.store_uri}
    tables = {name: getattr(config.cohort, name) for name in ("clinical", "slides", "omics")}
    read = {f"cohort.{name}": location for name, location in tables.items()} | {"features.dir": config.features.dir}
    for key, location in (written | read).items():
        copy, _, within = (location or "").rpartition(_JOB_UPLOADS)
        if copy and (key in written or not Path(location).exists()):
            raise InputError(
                f"{key} is {within.partition('/')[2]}, which in a job means Ray's own copy of the folder it was "
                "submitted from: write an absolute path that all nodes see, or s3://"
            )


def _assign(tree: dict[str, Any], dotted: str, value: Any, source: str = "") -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise InputError(f"{source}unknown configuration key '{dotted}': '{parent}' has no keys below it")
    tree[leaf] = value


def _refuse_credentials(tree: Any, source: str, key: str = "") -> None:
    """Refuses URLs with credentials: the configuration is written into the run directory and shown in messages."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in children:
        _refuse_credentials(value, source, f"{key}.{name}" if key else str(name))
    if isinstance(tree, str) and has_credentials(tree):
        if key == "watch.mlflow":
            cure = "set the variable MLFLOW_TRACKING_URI to this address and watch.mlflow to '$MLFLOW_TRACKING_URI'"
        elif tree.startswith("s3://"):
            cure = "write s3://bucket/key, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        else:
            cure = "leave them out"
        raise InputError(f"{source}: {key} {redact(tree)} contains credentials, which would be written down; {cure}")


def _validated(
    tree: dict[str, Any], source: str, overrides: Mapping[str, str] | None = None, *, trains: bool = True
) -> Config:
    """Validates a tree; messages name the `--set` of `overrides` (by dotted key) that gave a value, or the source."""
    given = overrides or {}
    _refuse_credentials(tree, source)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise InputError(sentence_of(error, Config, source, given)) from None
    if trains and (wrong := disagreement(config)):
        named = [f"--set {written}" for key, written in given.items() if key in wrong]
        raise InputError(f"{source}{' with ' if named else ''}{' '.join(named)}: {wrong}")
    _check_search(config, place_of(["search"], source, given), trains=trains)
    return config


def takes_integers(key: str) -> bool:
    """Returns whether the value of a dotted key must be an integer."""
    return type_of(Config, key) is int


def _check_search(config: Config, source: str, *, trains: bool) -> None:
    """Validates every listed value and the ends of every range before anything runs."""
    tuning = config.tuning
    if not config.search and tuning != TuningConfig():
        raise InputError(f"{source}: tuning is given without a search: list the keys and values to try in search")
    counts: list[int | None] = []
    for key, values in config.search.items():
        _check_search_key(key, source)
        if not isinstance(values, Range):
            for value in values:
                config.with_settings({key: value}, trains=trains, source=f"{source}: search")
            counts.append(len(values))
            continue
        if type_of(Config, key) not in (int, float):
            raise InputError(f"{source}: search: '{key}' is not a number, so it takes no range: list its values")
        integers = takes_integers(key)
        if integers and any(number % 1 for number in (values.low, values.high, values.step or 1)):
            raise InputError(f"{source}: search: '{key}' is an integer: give low, high and step as integers")
        if tuning.method == "grid" and values.step is None:
            raise InputError(
                f"{source}: search: '{key}' is a range, but a grid tries every value: list the values, give the "
                "range a step, or set tuning.method to random or optuna"
            )
        for value in values.samples(integers):
            config.with_settings({key: value}, trains=trains, source=f"{source}: search")
        counts.append(values.count(integers))
    n_combinations = math.prod(count for count in counts if count)
    if None not in counts and (tuning.settings or 0) > n_combinations:
        raise InputError(
            f"{source}: tuning.settings is {tuning.settings}, but search has only {n_combinations} combinations: "
            "lower it, or set tuning.method to grid"
        )


def _check_search_key(key: str, source: str) -> None:
    if key not in set(dotted_keys(Config)):
        raise InputError(unknown_key(Config, key.split("."), f"{source}: search"))
    if key.split(".")[0] not in {"genes", "model", "memory", "loss", "train"} or key == "train.seed":
        raise InputError(f"{source}: search cannot vary '{key}', only genes, model, memory, loss and train")
