"""A drafted configuration, with comments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml


@dataclass
class Draft:
    """A configuration in the making.

    Attributes:
        tree: its sections.
        notes: what was seen, as comments by section; under '' above all.
        files: path -> text of tables that belong to it and are written with it.
    """

    tree: dict[str, dict[str, Any]]
    notes: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def note(self, section: str, text: str) -> None:
        """Adds a comment."""
        self.notes.setdefault(section, []).append(text)

    def to_tell(self) -> list[str]:
        """Returns the comments that the user must see: which label was chosen, and what is to be checked."""
        notes = [text for section in self.notes.values() for text in section]
        return [text for mark in ("Label: ", "CHECK: ") for text in notes if text.startswith(mark)]

    def to_yaml(self) -> str:
        """Returns the configuration with its comments."""
        lines = [f"# {text}" for text in self.notes.get("", [])]
        for section, values in self.tree.items():
            lines += ["", *(f"# {text}" for text in self.notes.get(section, []))]
            lines.append(yaml.safe_dump({section: values}, sort_keys=False, allow_unicode=True, width=1000).rstrip())
        return "\n".join(lines) + "\n"
