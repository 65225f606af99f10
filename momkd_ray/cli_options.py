"""Options that several verbs of the command line share, and how a verb prints its result."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import typer

AddressOption = Annotated[
    str | None, typer.Option(help="Address of a running Ray cluster; by default one is started where that saves time.")
]

OnErrorOption = Annotated[
    Literal["stop", "skip"],
    typer.Option(help="Whether bad inputs end the command, or are left out and listed in rejected.csv."),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, for scripts.")]


def show(text: str, content: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints a verb's result on standard output: as text for people, or as one JSON object for scripts."""
    print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) if as_json else text)


@contextmanager
def imports_kept() -> Iterator[None]:
    """Imports modules without collecting garbage, of which they leave none, and never looks through them afterwards.

    The collector would pass over the objects of PyTorch and pandas again and again, and once more as the process ends,
    which takes more than a second of a short verb.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
