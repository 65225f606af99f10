"""Quotes names and labels in messages, so that a cure can be pasted into the configuration or a shell as it stands."""

from __future__ import annotations

import re
import shlex

import yaml

# without what ends a word in a list, a comment or a sentence
_PLAIN_IN_YAML = re.compile(r"[^\s\"'`,;()\[\]{}#]+")
_PLAIN_IN_SHELL = re.compile(r"[\w@%+=:,./-]+")


def in_yaml(text: str) -> str:
    """Writes a text as YAML that reads as exactly this text, after a key and in a list; in quotes only where needed.

    >>> print(in_yaml("slide_id"), in_yaml("Fold No"), in_yaml("no"), in_yaml("1.10"))
    slide_id "Fold No" "no" "1.10"
    """
    return (
        text if _is_plain(text) else yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**9).rstrip()
    )


def in_shell(text: str) -> str:
    """Writes a text as one word of a command line; in quotes only where needed.

    >>> print(in_shell("slide_id"), in_shell("Fold No"), in_shell("Größe"))
    slide_id 'Fold No' Größe
    """
    return text if _PLAIN_IN_SHELL.fullmatch(text) else shlex.quote(text)


def _is_plain(text: str) -> bool:
    """Returns whether YAML reads a text without quotes as this text."""
    if not _PLAIN_IN_YAML.fullmatch(text):
        return False
    try:
        read = [yaml.safe_load(text), *yaml.safe_load(f"[{text}]"), *yaml.safe_load(f"key: {text}").values()]
    except (yaml.YAMLError, ValueError, OverflowError):  # the latter of numbers and dates that are none
        return False
    return read == [text, text, text]
