"""The verb `init`."""

from __future__ import annotations

from typing import Annotated

import typer

from momkd_ray.cli_options import JsonOption, show
from momkd_ray.config.values import resolve_location


def init(
    folder: Annotated[str | None, typer.Argument(help="Your folder of tables and feature files.")] = None,
    from_: Annotated[str | None, typer.Option("--from", help="Instead: STAMP's YAML to translate.")] = None,
    out: Annotated[str, typer.Option(help="The configuration to write.")] = "config.yaml",
    label: Annotated[
        str | None, typer.Option(help="Column of the label or number; default: the likeliest label.")
    ] = None,
    run: Annotated[str | None, typer.Option(help="The run directory to write into it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at a folder of your own and write a commented configuration that runs; or translate STAMP's."""
    if (folder is None) == (from_ is None):
        raise typer.BadParameter("give either a folder or --from", param_hint="FOLDER")
    from momkd_ray.init_config.stamp import draft_of_stamp
    from momkd_ray.init_config.write import default_run, default_slides, draft_of_folder, write_config

    location = resolve_location(out)
    if from_ is not None:
        draft = draft_of_stamp(resolve_location(from_), resolve_location(run) if run else None)
    else:
        directory = resolve_location(run) if run else default_run(location)
        draft = draft_of_folder(resolve_location(folder or "."), label, directory, default_slides(location))
    _, summary = write_config(draft, location)
    told = draft.to_tell()
    written = [*draft.files, location]
    following = f"Next: momkd-ray audit --config {out}, then momkd-ray crossval --config {out}"
    content = {"configuration": location, "cohort": summary, "check": told}
    show("\n".join([*told, *summary, *written, following]), content, as_json=as_json)
