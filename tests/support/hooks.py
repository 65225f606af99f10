"""Calls functions at the start of every Python process of a command: its own, and those of its Ray cluster."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "MOMKD_RAY_TEST_HOOKS"
_TESTS = Path(__file__).parents[1]


def hooked(*hooks: str) -> dict[str, str]:
    """Variables of a command that make its processes call functions such as `support.held_fold.hold`."""
    paths = [str(_TESTS / "support" / "startup"), str(_TESTS.parent), str(_TESTS)]
    paths += os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), VARIABLE: " ".join(hooks)}


def give_up_soon() -> None:
    """Makes a process wait a second, instead of half a minute, for a failing disk."""
    from momkd_ray.storage import local_retry

    local_retry.LOCAL_RETRY_S = 1.0
