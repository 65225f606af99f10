"""Generates docs/configuration.md from the descriptions of the configuration's fields.

`python -m momkd_ray.config.reference` prints the page; `--check docs/configuration.md` exits with 1 if that file is not
current.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from momkd_ray.config.dotted_keys import Section, section_of
from momkd_ray.config.load import Config

_COMMAND = "python -m momkd_ray.config.reference"
_INTRODUCTION = f"""\
<!-- Generated: {_COMMAND} > docs/configuration.md -->

# Configuration

Every verb that trains takes a YAML file (`--config`), whose values `--set section.key=value` replaces. An unknown key
is an error. Paths may contain `~` and `$VARIABLES`; relative ones are relative to the working directory.

"Released" is the value of the authors' released code, "paper" is [arXiv 2602.21395](https://arxiv.org/abs/2602.21395);
[Method](method.md) explains the terms.
"""
_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def page() -> str:
    """Returns the Markdown page: a section for each section of the configuration, with a table of its keys."""
    parts = [_INTRODUCTION]
    for name, field in Config.model_fields.items():
        section = section_of(field.annotation)
        lines = [f"## {name}", "", field.description or inspect.getdoc(section) or ""]
        if section is not None:
            lines += ["", "| key | type | default | description |", "|---|---|---|---|", *_rows(name, section)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _rows(name: str, section: type[Section]) -> Iterator[str]:
    properties = section.model_json_schema()["properties"]
    for key, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None:
            yield from _rows(f"{name}.{key}", inner)
            continue
        yield f"| `{name}.{key}` | {_type(properties[key])} | {_default(field)} | {field.description} |"


def _type(schema: dict[str, Any]) -> str:
    """Returns the type of a value, from its JSON schema, in words."""
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        if "prefixItems" not in schema:
            return f"list of {_type(schema['items'])}"
        return f"[{', '.join(_type(item) for item in schema['prefixItems'])}]"
    limits = "".join(f" {sign} {schema[name]:g}" for name, sign in _LIMITS.items() if name in schema)
    return str(schema.get("format", schema["type"])) + limits


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else f"`{json.dumps(field.default).strip(chr(34))}`"


def main(arguments: list[str] | None = None) -> int:
    """Prints the page, or with `--check FILE` compares it with a file; returns the exit code."""
    parser = argparse.ArgumentParser(prog=_COMMAND, description="Prints the reference of the configuration.")
    parser.add_argument("--check", metavar="FILE", type=Path, help="exit with 1 if this file is not the current page")
    file: Path | None = parser.parse_args(arguments).check
    if file is None:
        print(page(), end="")
        return 0
    if file.exists() and file.read_text() == page():
        return 0
    print(f"{file} is not current: {_COMMAND} > {file}")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
