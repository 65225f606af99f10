"""Follows what a message asks to be set."""

from __future__ import annotations

import re
from typing import Any

import yaml

from momkd_ray.config.load import Config

_QUOTED, _PLAIN = r"\"(?:[^\"\\]|\\.)*\"", r"[^\s\"'`,;:()]+(?::[^\s\"'`,;:()]+)*"
_CURE = re.compile(rf"\bset ([a-z_]+(?:\.[a-z_]+)+) to ({_QUOTED}|{_PLAIN})")


def cures_in(message: str) -> list[tuple[str, Any]]:
    """Returns the keys and values of `set key to value`."""
    return [(key, yaml.safe_load(value.rstrip("."))) for key, value in _CURE.findall(message)]


def with_value(config: Config, key: str, value: Any) -> Config:
    """Returns the configuration with one key replaced, as `--set` does."""
    section, name = key.split(".")
    tree = config.model_dump(mode="json")
    tree[section][name] = value
    return Config.model_validate(tree)
