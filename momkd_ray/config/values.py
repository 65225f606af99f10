"""Types of configuration values that several sections share."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema


def resolve_location(location: str) -> str:
    """Expands `~` and `$VARIABLES` in a path and makes it absolute; a URI such as `s3://bucket/x` keeps its form."""
    location = os.path.expandvars(location)
    return location if "://" in location else os.path.abspath(os.path.expanduser(location))


Location = Annotated[
    str, AfterValidator(resolve_location), WithJsonSchema({"type": "string", "format": "path or s3:// URI"})
]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
