"""The verb `evaluate` of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from momkd_ray.cli_options import AddressOption, JsonOption, OnErrorOption, show
from momkd_ray.config.values import resolve_location

if TYPE_CHECKING:
    from momkd_ray.crossval.classes_run import ClassesRun
    from momkd_ray.progress import ProgressReporter

DEFAULT_OUT = "evaluation"

RunArgument = Annotated[str, typer.Argument(help="The run directory of a finished cross-validation.")]
ClinicalOption = Annotated[str, typer.Option(help="Clinical table of the external cohort, with the label.")]
FeaturesOption = Annotated[str | None, typer.Option(help="Folder of its feature files, local or s3://.")]
PredictionsOption = Annotated[
    str | None, typer.Option(help="Instead of --features: a file of predictions, which no model is run for.")
]
SlidesOption = Annotated[str | None, typer.Option(help="Table of patients and slides.")]
LabelOption = Annotated[str | None, typer.Option(help="Column of the label. Default: the run's.")]
PositiveOption = Annotated[
    list[str],
    typer.Option(help="A label of the positive class in this table. May be repeated. Default: the run's."),
]
NegativeOption = Annotated[
    list[str],
    typer.Option(help="A label of the negative class in this table. May be repeated. Default: the run's."),
]
PatientColumnOption = Annotated[str | None, typer.Option(help="Column of the patients. Default: by its name.")]
SlidesPatientColumnOption = Annotated[str | None, typer.Option(help="The same in the table of slides.")]
SlideColumnOption = Annotated[str | None, typer.Option(help="Column of the slides. Default: by its name.")]
OutOption = Annotated[str | None, typer.Option(help="Folder to write. Default: RUN/evaluation.")]
AgainstOption = Annotated[list[str], typer.Option(help="Other predictions to compare with. May be repeated.")]
SubgroupsOption = Annotated[
    str, typer.Option(help="Columns to compare patients by: site,age,stage; age:50:65 cuts at 50 and 65.")
]
SlideLabelsOption = Annotated[
    Literal["agree", "any_positive", "leave_out"],
    typer.Option(help="The label of a patient whose slides have labels that differ, as cohort.slide_labels."),
]
PrevalenceOption = Annotated[
    list[float], typer.Option(help="Give predictive values at this prevalence, too. May be repeated.")
]
SensitivityOption = Annotated[
    list[float], typer.Option(help="Choose a threshold with this sensitivity, too. May be repeated.")
]
SpecificityOption = Annotated[
    list[float], typer.Option(help="Choose a threshold with this specificity, too. May be repeated.")
]
GpusOption = Annotated[float, typer.Option(help="GPUs of each task; may be a fraction.")]


def evaluate(
    run: RunArgument,
    clinical: ClinicalOption,
    features: FeaturesOption = None,
    predictions: PredictionsOption = None,
    slides: SlidesOption = None,
    label: LabelOption = None,
    positive: PositiveOption = [],  # noqa: B006
    negative: NegativeOption = [],  # noqa: B006
    patient_column: PatientColumnOption = None,
    slides_patient_column: SlidesPatientColumnOption = None,
    slide_column: SlideColumnOption = None,
    out: OutOption = None,
    against: AgainstOption = [],  # noqa: B006
    subgroups: SubgroupsOption = "",
    slide_labels: SlideLabelsOption = "agree",
    prevalence: PrevalenceOption = [],  # noqa: B006
    sensitivity: SensitivityOption = [0.9],  # noqa: B006
    specificity: SpecificityOption = [0.9],  # noqa: B006
    gpus: GpusOption = 0,
    as_json: JsonOption = False,
    on_error: OnErrorOption = "stop",
    address: AddressOption = None,
) -> None:
    """Evaluate a run's models on an external, labelled cohort: statistics, tables, figures and a page."""
    if (features is None) == (predictions is None):
        raise typer.BadParameter("give one of --features and --predictions", param_hint="--features")
    from momkd_ray import storage
    from momkd_ray.crossval.classes_run import read_classes_run
    from momkd_ray.progress import ProgressReporter

    asked = _Asked(
        run=resolve_location(run),
        clinical=resolve_location(clinical),
        label=label,
        labels_of=(tuple(negative), tuple(positive)),
        columns={
            "slides": resolve_location(slides) if slides else None,
            "patient_column": patient_column,
            "slides_patient_column": slides_patient_column,
            "slide_column": slide_column,
            "slide_labels": slide_labels,
        },
        source={
            "features": resolve_location(features) if features else None,
            "predictions": resolve_location(predictions) if predictions else None,
            "gpus": gpus,
            "address": address,
            "on_error": on_error,
        },
        out=resolve_location(out) if out else storage.join(resolve_location(run), DEFAULT_OUT),
        against=[resolve_location(path) for path in against],
        subgroups=subgroups,
        fixed=(tuple(sensitivity), tuple(specificity), tuple(prevalence)),
    )
    several = read_classes_run(asked.run)
    with ProgressReporter() as progress:
        evaluation, summary = _of_two(asked, progress) if several is None else _of_classes(asked, several, progress)
        _tell(progress, evaluation)
    show(f"{summary}\n\n{storage.join(asked.out, 'evaluation.html')}", evaluation, as_json=as_json)


@dataclass(frozen=True)
class _Asked:
    """What the user asks for.

    Attributes:
        run: the run directory.
        clinical: table of the external cohort.
        label: its column; None for the run's.
        labels_of: the labels of the negative and the positive class; empty for the run's.
        columns: of the tables, and what a patient is whose slides differ, as `Labels` takes them.
        source: features or predictions, and where models run, as both kinds of evaluation take them.
        out: the folder to write.
        against: other predictions.
        subgroups: as they are written.
        fixed: sensitivities, specificities and prevalences.
    """

    run: str
    clinical: str
    label: str | None
    labels_of: tuple[tuple[str, ...], tuple[str, ...]]
    columns: dict[str, Any]
    source: dict[str, Any]
    out: str
    against: list[str]
    subgroups: str
    fixed: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]


def _of_two(asked: _Asked, progress: ProgressReporter) -> tuple[dict[str, Any], str]:
    """Evaluates a run of two classes; returns what is written and a summary as text."""
    from momkd_ray.cohort.table_files import read_table
    from momkd_ray.crossval.trained_run import read_run
    from momkd_ray.evaluate.cohort import Labels
    from momkd_ray.evaluate.options import EvaluationOptions, parse_subgroups
    from momkd_ray.evaluate.run import evaluate_run
    from momkd_ray.evaluate.tables import text_summary

    trained = read_run(asked.run)
    groups = parse_subgroups(asked.subgroups, list(read_table(asked.clinical).columns)) if asked.subgroups else ()
    labels_of = (asked.labels_of[0] or trained.labels_of[0], asked.labels_of[1] or trained.labels_of[1])
    compared = tuple(group.column for group in groups)
    labels = Labels(asked.clinical, asked.label or trained.label, labels_of, subgroups=compared, **asked.columns)
    options = EvaluationOptions(*asked.fixed, groups)
    evaluation = evaluate_run(asked.run, labels, asked.out, options, progress, against=asked.against, **asked.source)
    return evaluation, text_summary(evaluation)


def _of_classes(asked: _Asked, several: ClassesRun, progress: ProgressReporter) -> tuple[dict[str, Any], str]:
    """Evaluates a run of more classes, or of a number; returns what is written and a summary as text."""
    from momkd_ray.evaluate.classes import refuse_options
    from momkd_ray.evaluate.cohort import Labels
    from momkd_ray.evaluate.several import evaluate_several

    (negative, positive), (_, _, prevalence) = asked.labels_of, asked.fixed
    of_two = {"positive": positive, "negative": negative, "against": asked.against, "subgroups": asked.subgroups}
    refuse_options(of_two | {"prevalence": prevalence}, several)
    labels = Labels(
        asked.clinical,
        asked.label or several.label,
        several.labels_of,
        names=several.classes,
        number=several.predicts_number,
        **asked.columns,
    )
    return evaluate_several(several, labels, asked.out, progress, **asked.source)


def _tell(progress: ProgressReporter, evaluation: dict[str, Any]) -> None:
    for step in evaluation["cohort"]["flow"]:
        progress.info(f"{step['patients']} patients {step['step']}")
        for reason, count in step["left_out"].items():
            progress.info(f"  {count} left out: {reason}")
    for note in evaluation["notes"]:
        progress.info(f"Note: {note}")
