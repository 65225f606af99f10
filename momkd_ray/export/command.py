"""The verbs `export` and `import`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from momkd_ray.cli_options import JsonOption, show
from momkd_ray.config.values import resolve_location


def export(
    form: Annotated[
        Literal["zip", "onnx", "pt2", "stamp"],
        typer.Option("--format", help="One archive; ONNX; a PyTorch program; or STAMP's patient-preds.csv of a run."),
    ],
    out: Annotated[str, typer.Option(help="The file to write; for stamp, a folder.")],
    models: Annotated[
        list[str] | None, typer.Argument(help="Model bundles, such as runs/pr/fold=*/model; several are averaged.")
    ] = None,
    run: Annotated[str | None, typer.Option(help="The run, whose metrics the card states; needed for stamp.")] = None,
    intended_use: Annotated[str, typer.Option(help="For the card.")] = "Research. Not for diagnosis.",
    license_: Annotated[
        str, typer.Option("--license", help="Of the model, as Hugging Face writes it: apache-2.0.")
    ] = "other",
    data_license: Annotated[str, typer.Option(help="Of the training data.")] = "not stated",
    authors: Annotated[str, typer.Option(help="For the card.")] = "not stated",
    as_json: JsonOption = False,
) -> None:
    """Hand a model over: one archive with card and example, ONNX or pt2 checked against the bundle, or predictions."""
    from momkd_ray.export.stamp import write_stamp

    location = resolve_location(out)
    if form == "stamp":
        if run is None:
            raise typer.BadParameter("name the run whose predictions are written", param_hint="--run")
        files = list(write_stamp(resolve_location(run), location))
        show("\n".join(files), {"files": files}, as_json=as_json)
        return
    if not models:
        raise typer.BadParameter("name a model bundle, such as runs/pr/fold=0/model", param_hint="MODELS")
    from momkd_ray import storage
    from momkd_ray.errors import InputError
    from momkd_ray.export.archive import About, write_archive
    from momkd_ray.export.program import export_program
    from momkd_ray.model.bundle import load_bundle
    from momkd_ray.predict.ensemble import check_ensemble, mean_threshold
    from momkd_ray.predict.run_models import named_bundles
    from momkd_ray.progress import ProgressReporter
    from momkd_ray.run.layout import RunDirectory

    bundles = named_bundles([resolve_location(model) for model in models], ProgressReporter().info)
    cards = check_ensemble(bundles)
    if form == "zip":
        metrics = None
        if run is not None:
            try:
                metrics = storage.read_json(RunDirectory(resolve_location(run)).metrics)
            except FileNotFoundError as error:
                raise InputError(f"{run} holds no finished cross-validation: leave --run out, or finish it") from error
        checked, content = "", {}
        write_archive(bundles, cards, About(intended_use, license_, data_license, authors, metrics), location)
    else:
        threshold = mean_threshold(cards)
        card = cards[0].model_copy(update={"threshold": threshold})
        worst = export_program([load_bundle(bundle)[0] for bundle in bundles], card, form, location)
        checked = f"Checked against the bundles: probabilities differ by {worst:.1e} at most\n"
        content = {"largest_difference": worst}
    show(f"{checked}{location}", {"files": [location], **content}, as_json=as_json)


def import_(
    archive: Annotated[str, typer.Argument(help="A .zip that `momkd-ray export --format zip` has written.")],
    out: Annotated[str, typer.Option(help="The folder to write to.")],
    as_json: JsonOption = False,
) -> None:
    """Unpack an ensemble, after every file and its example have been checked."""
    from momkd_ray.export.archive import read_archive

    models = read_archive(resolve_location(archive), resolve_location(out))
    show("\n".join(models), {"models": models}, as_json=as_json)
