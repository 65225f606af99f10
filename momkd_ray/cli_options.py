"""Options that several verbs of the command line share, and how a verb prints its result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

AddressOption = Annotated[
    str | None, typer.Option(help="Address of a running Ray cluster; by default one is started where that saves time.")
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, for scripts.")]


def show(text: str, content: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints a verb's result on standard output: as text for people, or as one JSON object for scripts."""
    print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) if as_json else text)
