"""Pages whose figures are composed but not rendered, for tests of their text: those take most of a page's seconds."""

from __future__ import annotations

from functools import partial
from typing import Any, BinaryIO

import pytest

_FILES = {"svg": "<svg></svg>", "png": b"\x89PNG"}


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure is rendered, and the bands of curves are of few replicates."""
    from matplotlib.figure import Figure  # here, since every test's process imports this file

    from momkd_ray.report import curves

    def savefig(figure: Figure, stream: BinaryIO, *, format: str, **options: Any) -> None:
        stream.write(_FILES[format])  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", savefig)
    monkeypatch.setattr(curves, "smooth_curve", partial(curves.smooth_curve, replicates=10))
    monkeypatch.setattr(curves, "_REPLICATES", 10)
