"""Configuration of the data: cohort, omics, features, folds and genes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from momkd_ray.config.dotted_keys import Section
from momkd_ray.config.quantile_ranges import FEWEST, QUANTILE_CLASSES, regression_fault
from momkd_ray.config.values import Location, Positive, Seed, Share, resolve_location

GENE_SELECTIONS = ("xgboost", "anova", "variance", "all")
Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


REST = "rest"
CUT_OFF = re.compile(r"(>=|<=|>|<|≥|≤)\s*([+-]?\d+(?:\.\d+)?)")
RANGE = re.compile(rf"({CUT_OFF.pattern})\s+and\s+({CUT_OFF.pattern})")


def _labels(value: Any) -> Any:
    """Makes texts of numbers and truth values, and a text of a list with one entry."""
    if isinstance(value, (list, tuple)):
        entries = [_labels(entry) for entry in value]
        if not entries:
            raise ValueError("the list names no label")
        return entries[0] if len(entries) == 1 else tuple(entries)
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, str):
        return value.strip()
    raise ValueError(f"{value!r} is no label: give a text, or a list of texts")


Labels = Annotated[
    str | tuple[str, ...], BeforeValidator(_labels), WithJsonSchema({"type": "string or list of strings"})
]


def _known_encoding(name: str) -> str:
    try:
        "".encode(name)
    except LookupError as error:
        raise ValueError(f"{name!r} is no encoding that Python knows, such as gb18030, shift_jis or cp1251") from error
    return name


def _classes(value: Any) -> Any:
    """Makes pairs of a class's name and its labels of a list of names or of a mapping; None stays None."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        given = [(str(_labels(name)), _labels(labels)) for name, labels in value.items()]
    elif isinstance(value, (list, tuple)) and all(isinstance(entry, tuple) for entry in value):
        given = list(value)
    elif isinstance(value, (list, tuple)):
        labels = [_labels(entry) for entry in value]
        given = [(label if isinstance(label, str) else "+".join(label), label) for label in labels]
    else:
        raise ValueError("name the classes in a list, or in a mapping of each name to its labels")
    if len(given) < 2:
        raise ValueError(f"{len(given)} class is named; two or more are needed")
    names = [name for name, _ in given]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"'{twice}' is named twice")
    return tuple((name, (own,) if isinstance(own, str) else tuple(own)) for name, own in given)


def class_labels(value: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Returns the name and the labels of each class of `cohort.classes` as a configuration has them.

    Raises:
        ValueError: it names no classes.
    """
    found = _classes(value)
    if found is None:
        raise ValueError("cohort.classes")
    return tuple(found)


def _as_mapping(classes: Any) -> Any:
    """Writes classes as a mapping of each name to its labels."""
    return None if classes is None else {name: list(own) if len(own) > 1 else own[0] for name, own in classes}


Classes = Annotated[
    tuple[tuple[str, tuple[str, ...]], ...] | None,
    BeforeValidator(_classes),
    PlainSerializer(_as_mapping),
    WithJsonSchema({"type": "list of names, or mapping of names to labels"}),
]


class PatientColumns(Section):
    """The patient columns of single tables, where `cohort.patient_column` does not name all of them."""

    clinical: str | None = Field(default=None, description="The patient column of the clinical table.")
    slides: str | None = Field(default=None, description="The patient column of the table of slides.")
    omics: str | None = Field(default=None, description="The patient column of the table of omics.")


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
        description="A table of patients and genes, an .h5ad file, or a folder: with a file of gene values for each "
        "sample, as the GDC gives them, or with `<patient>.npy` vectors and `genes.txt`. By default no omics are used, "
        "and the slide branch is trained alone.",
    )
    patient_column: str | None = Field(
        default=None,
        description="The name of the patient column; if given, every table that `cohort.columns` does not name must "
        "have it. By default it is recognised in each table by its name, or by its values.",
    )
    columns: PatientColumns = PatientColumns()
    slide_column: str | None = Field(
        default=None,
        description="The name of the slide column; if given, the table of slides must have it. By default it is "
        "recognised by its name.",
    )
    label: Annotated[str, AfterValidator(lambda name: " ".join(name.split()))] = Field(
        description="The name of the label's column in the clinical table or, if it has none, in the table of slides."
    )
    positive: Labels = Field(
        default="positive",
        description="The label of the positive class, as written in the table; a list such as `[low, high]` of "
        "several; a cut-off such as `'>= 25'` for numbers; or `rest` for all that the other class does not name.",
    )
    negative: Labels = Field(
        default="negative", description="The label of the negative class, or its labels, in the same ways."
    )
    encoding: Annotated[str, AfterValidator(_known_encoding)] | None = Field(
        default=None,
        description="The encoding of tables of text that are neither UTF-8 nor begin with a mark of UTF-16 or UTF-32, "
        "such as `gb18030` or `shift_jis`. By default Windows-1252 is assumed, unless it looks like text of East Asia.",
    )
    classes: Classes = Field(
        default=None,
        description="Several classes, in order: a list of labels such as `[zero, low, positive]`, or a mapping of each "
        "class's name to its label, a list of labels, a cut-off or a range such as `'>= 11 and <= 25'`. By default the "
        "classes are `negative` and `positive`; of two that are named here, the second is the positive one.",
    )
    ordered: bool = Field(
        default=True,
        description="Whether several classes have the order in which `classes` names them, as grades have: then the "
        "quadratic-weighted kappa is reported, too. Subtypes such as PAM50's have none. Two classes do not use it.",
    )
    task: Literal["classification", "regression"] = Field(
        default="classification",
        description="`regression` predicts a number, such as a recurrence score: `label` names a column of numbers, "
        "and the classes are its quantiles. The default is the paper's.",
    )
    quantile_classes: Annotated[int, Field(ge=FEWEST, le=10)] = Field(
        default=QUANTILE_CLASSES,
        description="The number of classes of about as many patients each that `task: regression` cuts the numbers "
        "into; fewer where many patients have the same number. The default is ours.",
    )
    slide_labels: Literal["agree", "any_positive", "leave_out"] = Field(
        default="agree",
        description="What a patient's label is where each row of the table of slides has one: `agree` refuses patients "
        "whose slides differ; `any_positive` makes them positive if a slide is; `leave_out` leaves them out. These two "
        "also leave out slides of neither class. The default is ours: nothing is decided unasked.",
    )
    bag: Literal["slide", "patient"] = Field(
        default="slide",
        description="`slide` makes each slide a bag and averages a patient's predictions; `patient` joins all "
        "slides of a patient into one bag.",
    )

    @model_validator(mode="after")
    def _classes_are_named_once(self) -> CohortConfig:
        given = [key for key in ("positive", "negative") if getattr(self, key) != key]
        if self.task == "regression":
            if wrong := regression_fault(self.classes, given, ordered=self.ordered, slide_labels=self.slide_labels):
                raise ValueError(wrong)
        elif self.quantile_classes != QUANTILE_CLASSES:
            raise ValueError("quantile_classes is for numbers: set task to regression, or leave quantile_classes out")
        if self.classes is not None:
            if given:
                raise ValueError(f"classes and {given[0]} are both given: leave {' and '.join(given)} out")
            if self.slide_labels == "any_positive" and len(self.classes) > 2:
                raise ValueError(
                    "slide_labels is any_positive, which is for two classes: set slide_labels to agree or leave_out"
                )
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes in order: the negative and the positive one, unless `classes` names others.

        Several labels of a class without a name of its own are joined by `+`.

        Raises:
            ValueError: they are quantiles of a table that has not been read.
        """
        if self.classes is not None:
            return tuple(name for name, _ in self.classes)
        if self.task == "regression":
            raise ValueError("the classes of a regression are not known before its clinical table is read")
        return tuple("+".join(self.labels_of(y)) for y in range(2))

    def labels_of(self, y: int) -> tuple[str, ...]:
        """Returns the labels, cut-offs or `rest` of a class by its number."""
        if self.classes is not None:
            return self.classes[y][1]
        labels = (self.negative, self.positive)[y]
        return (labels,) if isinstance(labels, str) else labels

    def key_of(self, y: int) -> str:
        """Returns the key that names a class, for messages."""
        return "cohort.classes" if self.classes is not None else ("cohort.negative", "cohort.positive")[y]

    def patient_column_of(self, table: Literal["clinical", "slides", "omics"]) -> str | None:
        """Returns the configured patient column of a table; None if it is to be found."""
        return getattr(self.columns, table) or self.patient_column


class OmicsConfig(Section):
    """How the omics are read, which of their columns teach, and the use of patients without omics."""

    missing: Literal["keep", "drop"] = Field(
        default="keep",
        description="`keep` trains the slide branch on patients without omics, too; `drop` leaves them out of "
        "training. Either way they are validated and tested, from histology alone.",
    )
    teacher: Literal["cross_fitted", "none"] = Field(
        default="cross_fitted",
        description="What `momkd` learns to predict for training patients with omics: `cross_fitted` lies between the "
        "label and the probability that a logistic regression on all genes gives them, fitted on other training "
        "patients, the nearer to the latter the better it predicts; `none` is the label. The default is ours; the "
        "paper has none.",
    )
    fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0,
        description="The share of the training patients with omics whose omics are used, drawn by `train.seed`; a "
        "smaller share is part of a larger one. 0 trains without omics.",
    )
    orientation: Literal["auto", "patients_in_rows", "genes_in_rows"] = Field(
        default="auto",
        description="Whether the table has a row a patient or a row a gene. `auto` looks for the cohort's patients in "
        "its rows and in its header.",
    )
    sample_sheet: Location | None = Field(
        default=None,
        description="The table that says whose sample each file of a folder is, such as the GDC's sample sheet. By "
        "default `gdc_sample_sheet*.tsv` or `metadata.cart*.json` in the folder or beside it, or else files' names.",
    )
    column: str | None = Field(
        default=None,
        description="The column of values in the files of single samples. By default `tpm_unstranded`, `TPM` or the "
        "only one.",
    )
    leave_out: Names = Field(
        default=(),
        description="Columns that are no genes, or samples that are not used: names, or patterns such as `*_cnv`.",
    )
    keep: Names = Field(
        default=(),
        description="Columns that look as if they were no genes, such as AGE, and teach nevertheless, on a scale of "
        "their own: names or patterns.",
    )
    scale: Literal["auto", "linear", "scaled"] = Field(
        default="auto",
        description="The scale of the values: `linear` are counts, TPM and the like, of which log2(x + 1) is taken; "
        "`scaled` are logarithms, z-scores and the like, taken as they are. `auto` decides for each family of columns "
        "(`_rnaseq`, `_cnv`, ...) by its values; `audit` says how.",
    )
    max_missing_share: Share = Field(
        default=0.2,
        description="The share of blank values up to which a gene and then a patient are used; blanks are filled in "
        "each fold with the gene's mean over its training patients. A gene with more is left out, and a patient with "
        "more is a fault. The default is ours: the limit usual for proteins and metabolites.",
    )


class FeaturesConfig(Section):
    """The feature files of the slides."""

    dir: Location = Field(description="The folder of the feature files.")
    format: Literal["auto", "trident", "clam", "stamp", "released"] = Field(
        default="auto",
        description="The layout of the feature files; `auto` recognises it by the names of the datasets in each file.",
    )
    mixed_magnification: Literal["refuse", "allow"] = Field(
        default="refuse",
        description="Whether slides of a cohort may differ in magnification or patch size. A model trained on several "
        "predicts slides of each of them. The default is ours: a mixture is mostly an accident.",
    )
    graph: Literal["auto", "knn", "none"] = Field(
        default="auto",
        description="The neighbour graph: `auto` takes the edges in the file (`edge_index_k<neighbors>`, as "
        "released), or else the nearest neighbours by coordinates; `knn` always takes the "
        "neighbours by coordinates; `none` builds no graph, for features without coordinates.",
    )


class FoldsConfig(Section):
    """Patient-level folds, drawn or imported, and the validation set within each fold's training patients."""

    kind: Literal["k_fold", "leave_one_site_out"] = Field(
        default="k_fold",
        description="`k_fold` draws `n` folds; `leave_one_site_out` makes a fold of each site (`folds.site`), in which "
        "its patients are tested. The default is the paper's.",
    )
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
        description="Imported folds, or one fixed split: a table, STAMP's `splits.json`, a folder of CLAM's "
        "`splits_<i>.csv` or of `train.csv`, `val.csv` and `test.csv`, Patho-Bench's `k=all.tsv`, or a run's own "
        "`folds.csv`. By default folds are drawn.",
    )
    column: str = Field(
        default="fold",
        description="The column of an imported table that holds the fold in which a patient is tested, or its role: "
        "train, val or test. By default it is `fold`, unless other columns say roles.",
    )

    @model_validator(mode="after")
    def _site_is_for_drawn_folds(self) -> FoldsConfig:
        if self.kind == "leave_one_site_out" and self.site is None and self.file is None:
            raise ValueError("kind is leave_one_site_out, but no site is given: set folds.site to the column of sites")
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
