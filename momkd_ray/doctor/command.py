"""The verb `doctor`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from momkd_ray.cli_options import AddressOption, JsonOption, show
from momkd_ray.config.values import resolve_location


def doctor(
    locations: Annotated[
        list[str] | None, typer.Option("--storage", help="A folder to write to, local or s3://. May be repeated.")
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="Also check its run.dir, store, features and GPUs.")
    ] = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine, storage, and every node of a cluster (--address); the exit code is 1 if there is a fault."""
    from momkd_ray.config.load import load_config
    from momkd_ray.doctor.checks import diagnose

    settings = None if config is None else load_config(config)
    folders = [resolve_location(location) for location in locations or []]
    if settings is not None:
        folders += [settings.run.dir, settings.store_uri]
    diagnosis = diagnose(folders, settings, address)
    show("\n".join(diagnosis.lines()), diagnosis.to_json(), as_json=as_json)
    if not diagnosis.ok:
        sys.exit(1)
