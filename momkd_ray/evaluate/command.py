"""The verb `evaluate` of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from momkd_ray.cli_options import AddressOption, JsonOption, show
from momkd_ray.config.values import resolve_location

if TYPE_CHECKING:
    from momkd_ray.progress import ProgressReporter

DEFAULT_OUT = "evaluation"


def evaluate(
    run: Annotated[str, typer.Argument(help="The run directory of a finished cross-validation.")],
    clinical: Annotated[str, typer.Option(help="Clinical table of the external cohort, with the label.")],
    features: Annotated[str | None, typer.Option(help="Folder of its feature files, local or s3://.")] = None,
    predictions: Annotated[
        str | None, typer.Option(help="Instead of --features: a file of predictions, which no model is run for.")
    ] = None,
    slides: Annotated[str | None, typer.Option(help="Table of patients and slides.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of the label. Default: the run's.")] = None,
    positive: Annotated[
        list[str],
        typer.Option(help="A label of the positive class in this table. May be repeated. Default: the run's."),
    ] = [],  # noqa: B006
    negative: Annotated[
        list[str],
        typer.Option(help="A label of the negative class in this table. May be repeated. Default: the run's."),
    ] = [],  # noqa: B006
    patient_column: Annotated[str | None, typer.Option(help="Column of the patients. Default: by its name.")] = None,
    slides_patient_column: Annotated[str | None, typer.Option(help="The same in the table of slides.")] = None,
    slide_column: Annotated[str | None, typer.Option(help="Column of the slides. Default: by its name.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder to write. Default: RUN/evaluation.")] = None,
    against: Annotated[list[str], typer.Option(help="Other predictions to compare with. May be repeated.")] = [],  # noqa: B006
    subgroups: Annotated[
        str, typer.Option(help="Columns to compare patients by: site,age,stage; age:50:65 cuts at 50 and 65.")
    ] = "",
    slide_labels: Annotated[
        Literal["agree", "any_positive", "leave_out"],
        typer.Option(help="The label of a patient whose slides have labels that differ, as cohort.slide_labels."),
    ] = "agree",
    prevalence: Annotated[
        list[float], typer.Option(help="Give predictive values at this prevalence, too. May be repeated.")
    ] = [],  # noqa: B006
    sensitivity: Annotated[
        list[float], typer.Option(help="Choose a threshold with this sensitivity, too. May be repeated.")
    ] = [0.9],  # noqa: B006
    specificity: Annotated[
        list[float], typer.Option(help="Choose a threshold with this specificity, too. May be repeated.")
    ] = [0.9],  # noqa: B006
    gpus: Annotated[float, typer.Option(help="GPUs of each task; may be a fraction.")] = 0,
    as_json: JsonOption = False,
    on_error: Annotated[
        Literal["stop", "skip"],
        typer.Option(help="Whether bad inputs end the command, or are left out and listed in rejected.csv."),
    ] = "stop",
    address: AddressOption = None,
) -> None:
    """Evaluate a run's models on an external, labelled cohort: statistics, tables, figures and a page."""
    if (features is None) == (predictions is None):
        raise typer.BadParameter("give one of --features and --predictions", param_hint="--features")
    from momkd_ray import storage
    from momkd_ray.cohort.table_files import read_table
    from momkd_ray.crossval.classes_run import read_classes_run
    from momkd_ray.crossval.trained_run import read_run
    from momkd_ray.evaluate.classes import classes_summary, evaluate_classes, refuse_options
    from momkd_ray.evaluate.cohort import Labels
    from momkd_ray.evaluate.options import EvaluationOptions, parse_subgroups
    from momkd_ray.evaluate.run import evaluate_run
    from momkd_ray.evaluate.tables import text_summary
    from momkd_ray.progress import ProgressReporter

    run_dir = resolve_location(run)
    table = resolve_location(clinical)
    folder = resolve_location(out) if out else storage.join(run_dir, DEFAULT_OUT)
    several = read_classes_run(run_dir)
    columns: dict[str, Any] = {
        "slides": resolve_location(slides) if slides else None,
        "patient_column": patient_column,
        "slides_patient_column": slides_patient_column,
        "slide_column": slide_column,
        "slide_labels": slide_labels,
    }
    source: dict[str, Any] = {
        "features": resolve_location(features) if features else None,
        "predictions": resolve_location(predictions) if predictions else None,
        "gpus": gpus,
        "address": address,
        "on_error": on_error,
    }
    with ProgressReporter() as progress:
        if several is not None:
            of_two = {"positive": positive, "negative": negative, "against": against, "subgroups": subgroups}
            refuse_options(of_two | {"prevalence": prevalence}, several.classes)
            labels = Labels(table, label or several.label, several.labels_of, names=several.classes, **columns)
            evaluation = evaluate_classes(several, labels, folder, progress, **source)
            summary = classes_summary(evaluation)
        else:
            trained = read_run(run_dir)
            groups = parse_subgroups(subgroups, list(read_table(table).columns)) if subgroups else ()
            labels_of = (tuple(negative) or trained.labels_of[0], tuple(positive) or trained.labels_of[1])
            compared = tuple(group.column for group in groups)
            labels = Labels(table, label or trained.label, labels_of, subgroups=compared, **columns)
            options = EvaluationOptions(tuple(sensitivity), tuple(specificity), tuple(prevalence), groups)
            source["against"] = [resolve_location(path) for path in against]
            evaluation = evaluate_run(run_dir, labels, folder, options, progress, **source)
            summary = text_summary(evaluation)
        _tell(progress, evaluation)
    show(f"{summary}\n\n{storage.join(folder, 'evaluation.html')}", evaluation, as_json=as_json)


def _tell(progress: ProgressReporter, evaluation: dict[str, Any]) -> None:
    for step in evaluation["cohort"]["flow"]:
        progress.info(f"{step['patients']} patients {step['step']}")
        for reason, count in step["left_out"].items():
            progress.info(f"  {count} left out: {reason}")
    for note in evaluation["notes"]:
        progress.info(f"Note: {note}")
