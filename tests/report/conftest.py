"""What the tests of the report share."""

from __future__ import annotations

from typing import Any, BinaryIO

import pytest
from matplotlib.figure import Figure

_FILES = {"svg": "<svg></svg>", "png": b"\x89PNG"}


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are composed but not rendered, for tests of a page's text: that takes most of a report's seconds."""

    def savefig(figure: Figure, stream: BinaryIO, *, format: str, **options: Any) -> None:
        stream.write(_FILES[format])  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", savefig)
