"""The verb `heatmap`."""

from __future__ import annotations

from typing import Annotated

import typer

from momkd_ray.cli_options import AddressOption, JsonOption, OnErrorOption, imports_kept, show
from momkd_ray.config.sections import resolve_location

ModelsArgument = Annotated[
    list[str] | None, typer.Argument(help="Model bundles for --features, such as runs/pr/fold=*/model.")
]
RunOption = Annotated[
    str | None, typer.Option(help="A run directory: its tested slides, each by the model of its fold.")
]
FeaturesOption = Annotated[str | None, typer.Option(help="Folder of .h5 feature files, local or s3://.")]
OutOption = Annotated[str | None, typer.Option(help="Folder to write to; default: <run>/heatmaps.")]
SlideOption = Annotated[list[str], typer.Option(help="Only this slide. May be repeated.")]
FoldOption = Annotated[int | None, typer.Option(help="With --run: only the slides that this fold tests.")]
ImagesOption = Annotated[
    str | None, typer.Option(help="Folder of slides, PNG or JPEG named as the slides; or the one slide's file.")
]
SlidesOption = Annotated[str | None, typer.Option(help="With --features: table of patients and slides.")]
PatientColumnOption = Annotated[str | None, typer.Option(help="Its column of patients. Default: by its name.")]
SlideColumnOption = Annotated[str | None, typer.Option(help="Its column of slides. Default: by its name.")]
TopOption = Annotated[int, typer.Option(help="Patches to cut out for each map and memory component.", min=0)]
TileSizeOption = Annotated[
    float | None, typer.Option(help="Edge of a patch in level-0 pixels; default: as the feature file says.", min=1)
]
MppOption = Annotated[
    float | None, typer.Option(help="Micrometres per level-0 pixel; default: as the slide says.", min=1e-3)
]
ScalesOption = Annotated[str | None, typer.Option(help="The scales.json of an earlier call, for the same colours.")]


def heatmap(
    models: ModelsArgument = None,
    run: RunOption = None,
    features: FeaturesOption = None,
    out: OutOption = None,
    slide: SlideOption = [],  # noqa: B006
    fold: FoldOption = None,
    images: ImagesOption = None,
    slides: SlidesOption = None,
    patient_column: PatientColumnOption = None,
    slide_column: SlideColumnOption = None,
    top: TopOption = 8,
    tile_size: TileSizeOption = None,
    mpp: MppOption = None,
    scales: ScalesOption = None,
    on_error: OnErrorOption = "stop",
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw what the model looks at: attention, contributions, nearest memory components; PNG, CSV and QuPath's GeoJSON.

    One slide or a cohort, from a run's bag store (--run) or from feature files (MODELS and --features).
    """
    _check_usage(run, features, models, out)
    with imports_kept():
        from momkd_ray import storage
        from momkd_ray.heatmap.colours import Scales
        from momkd_ray.heatmap.draw import draw_heatmaps
        from momkd_ray.heatmap.sources import of_features, of_run
        from momkd_ray.input_faults import REJECTED
        from momkd_ray.predict.left_out import LeftOutSlides
        from momkd_ray.predict.run_models import named_bundles
        from momkd_ray.progress import ProgressReporter

    folder = resolve_location(out) if out else storage.join(resolve_location(run or ""), "heatmaps")
    left_out = LeftOutSlides(storage.join(folder, REJECTED), on_error)
    with ProgressReporter() as progress:
        if run is not None:
            bags, source = of_run(resolve_location(run), fold, slide)
        else:
            assert features is not None
            locations = named_bundles([resolve_location(model) for model in models or []], progress.info)
            table = resolve_location(slides) if slides else None
            where, columns = resolve_location(features), (patient_column, slide_column)
            bags, source = of_features(locations, where, table, slide, columns, left_out, progress.info)
        draw_heatmaps(
            bags,
            source,
            progress,
            out=folder,
            left_out=left_out,
            images=resolve_location(images) if images else None,
            only=slide,
            mpp=mpp,
            tile_px=tile_size,
            top=top,
            scales=Scales.read(resolve_location(scales)) if scales else None,
            address=address,
        )
    show(folder, {"folder": folder, "files": storage.list_names(folder)}, as_json=as_json)


def _check_usage(run: str | None, features: str | None, models: list[str] | None, out: str | None) -> None:
    if (run is None) == (features is None):
        raise typer.BadParameter("give either a run directory or feature files", param_hint="--run or --features")
    if features is not None and not models:
        raise typer.BadParameter("name a model bundle, such as runs/pr/fold=0/model", param_hint="MODELS")
    if features is not None and out is None:
        raise typer.BadParameter("name the folder to write to", param_hint="--out")
    if run is not None and models:
        raise typer.BadParameter("a run has its own models: leave MODELS out", param_hint="MODELS")
