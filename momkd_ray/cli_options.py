"""Options that several verbs of the command line share."""

from __future__ import annotations

from typing import Annotated

import typer

AddressOption = Annotated[str | None, typer.Option(help="Address of a running Ray cluster; by default one is started.")]
