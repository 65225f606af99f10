"""Runs the command line within the test's process."""

from __future__ import annotations

import pytest

from momkd_ray.cli import main


def outcome(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)
