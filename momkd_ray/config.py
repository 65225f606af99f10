"""The one configuration tree: typed, unknown keys refused, YAML in and out, `--set a.b=value` overrides."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from momkd_ray.errors import InputError


def absolute(location: str) -> str:
    """A path with `~` and `$VARIABLES` expanded and made absolute; a URI such as `s3://bucket/x` as it is."""
    location = os.path.expandvars(location)
    return location if "://" in location else os.path.abspath(os.path.expanduser(location))


Location = Annotated[str, AfterValidator(absolute)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
GENE_SELECTIONS = ("xgboost", "anova", "variance", "all")


class Section(BaseModel):
    """A part of the tree; a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the GPU has it, else fp32


class ClusterConfig(Section):
    """What one fold may use. None of it changes a result."""

    workers: Positive = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    read_threads: Positive = 2  # that read bags while a worker computes: one reads storage while one makes batches
    read_ahead_mb: Positive = 256  # of bags in memory beside the one computed on; a larger bag comes alone
    max_failures: Annotated[int, Field(ge=-1)] = 3


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

    mlflow: str | None = None  # a tracking URI, such as http://mlflow:5000; needs pip install 'momkd-ray[mlflow]'


class RunConfig(Section):
    """Where the run is written, local or s3://."""

    dir: Location = Field(default="runs/momkd", validate_default=True)


class Config(Section):
    """The whole tree."""

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
    search: dict[str, list[Any]] = {}  # a grid: dotted key -> values
    synthetic: SyntheticConfig | None = None
    watch: WatchConfig = WatchConfig()
    run: RunConfig = RunConfig()

    @property
    def store_uri(self) -> str:
        """Where the bag store is: `store.uri`, or `bags` in the run directory."""
        return self.store.uri or f"{self.run.dir.rstrip('/')}/bags"

    def to_yaml(self) -> str:
        """The resolved tree as YAML that `load_config` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def answer_fingerprint(self) -> str:
        """A hash of everything that can change a result: all but where data lie and on what the run happens.

        What the files at those places hold is for the caller to hash.
        """
        tree = self.model_dump(mode="json", exclude={"cluster", "run", "synthetic", "watch"})
        elsewhere = {
            "features": ("dir", "format"),
            "cohort": ("clinical", "slides", "omics", "patient_column", "slide_column"),
            "store": ("uri", "part_mb", "memory_share"),
            "folds": ("file",),
            "train": ("patches_per_pass",),
        }
        for section, keys in elsewhere.items():
            for key in keys:
                del tree[section][key]
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]

    def with_settings(self, settings: Mapping[str, Any]) -> Config:
        """This tree with dotted keys replaced and no search left."""
        tree = self.model_dump(mode="json") | {"search": {}}
        for key, value in settings.items():
            _assign(tree, key, value)
        return _validated(tree, "search")


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `a.b=value` overrides (values are YAML).

    Raises:
        InputError: no such file, not YAML, an unknown key (the nearest valid one is named) or a bad value.
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
        raise InputError(f"{path} holds no configuration: its top level must be a mapping such as 'cohort: ...'")
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key.strip():
            raise InputError(f"--set {override}: write it as a.b=value")
        try:
            _assign(tree, key.strip(), yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise InputError(f"--set {override}: the value is not valid YAML") from error
    config = _validated(tree, str(path))
    if config.watch.mlflow is not None and importlib.util.find_spec("mlflow") is None:
        raise InputError("watch.mlflow is set, but MLflow is not installed: pip install 'momkd-ray[mlflow]'")
    return config


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise InputError(f"unknown configuration key '{dotted}': '{parent}' has no keys below it")
    tree[leaf] = value


def _validated(tree: dict[str, Any], source: str) -> Config:
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        # a misspelt key often leaves a required one missing: the misspelling is what to tell
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        path = [str(part) for part in first["loc"]]
        if first["type"] == "extra_forbidden":
            raise InputError(_unknown_key(path, source)) from None
        key = ".".join(path)
        if first["type"] == "missing":
            raise InputError(f"{source}: the configuration key '{key}' is missing") from None
        if first["type"] == "value_error":
            raise InputError(f"{source}: {key}: {first['ctx']['error']}") from None
        hint = " (quote it in YAML)" if first["type"] == "string_type" else ""
        raise InputError(f"{source}: '{key}' is {first['input']!r}, but {_lower(first['msg'])}{hint}") from None
    for key, values in config.search.items():
        _check_search_key(key, source)
        if not values:
            raise InputError(f"{source}: search gives no values for '{key}'; list at least one")
        for value in values:
            config.with_settings({key: value})
    return config


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def dotted_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterable[str]:
    """Every key of the tree, dotted."""
    for name, field in section.model_fields.items():
        inner = _section_of(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from dotted_keys(inner, f"{prefix}{name}.")


def _section_of(annotation: Any) -> type[Section] | None:
    options = getattr(annotation, "__args__", (annotation,))
    return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)


def _unknown_key(path: list[str], source: str) -> str:
    """The sentence about a key that is not in the tree: the nearest one, and all that stand beside it."""
    key, known = ".".join(path), list(dotted_keys())
    section = ".".join(path[:-1])
    inside = f"{section}." if section else ""
    beside = sorted({k.removeprefix(inside).split(".")[0] for k in known if k.startswith(inside)})
    nearest = difflib.get_close_matches(path[-1], beside, n=1)
    if nearest:
        best = ".".join([*path[:-1], *nearest])
    elif elsewhere := difflib.get_close_matches(key, known, n=1, cutoff=0.5):
        best = elsewhere[0]
    else:
        best = next((k for k in known if k.rsplit(".", 1)[-1] == path[-1]), "")
    if not beside:  # the section itself is unknown
        section, beside = "", sorted({k.split(".")[0] for k in known})
    hint = f"the nearest valid key is '{best}'; " if best else ""
    place = f"'{section}' has" if section else "the sections are"
    return f"{source}: unknown configuration key '{key}'; {hint}{place} {', '.join(beside)}"


def _check_search_key(key: str, source: str) -> None:
    if key not in set(dotted_keys()):
        raise InputError(_unknown_key(key.split("."), f"{source}: search"))
    if key.split(".")[0] not in {"genes", "model", "memory", "loss", "train"} or key == "train.seed":
        raise InputError(f"{source}: search cannot vary '{key}', only genes, model, memory, loss and train")
