"""The published network and recipe, `jobs/configs/published.yaml`, which the benchmarks of speed measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

_TREE = yaml.safe_load((Path(__file__).parents[1] / "jobs" / "configs" / "published.yaml").read_text())


def published(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the recipe's sections `omics`, `model`, `memory`, `loss` and `train`, with some of their keys changed."""
    names = ("omics", "model", "memory", "loss", "train")
    return {name: _TREE[name] | changes.get(name, {}) for name in names}
