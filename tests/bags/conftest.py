"""Slides whose feature files tests ingest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.bags import (
    WIDTH,
    listed,
    write_h5,
)


@pytest.fixture
def slides(tmp_path: Path) -> pd.DataFrame:
    """Twelve slides of 1 to 34 patches, one of them in the (1, P, D) layout."""
    paths = [write_h5(tmp_path / f"s{i:02d}.h5", n=1 + 3 * i, seed=i) for i in range(12)]
    features = np.random.default_rng(99).normal(size=(1, 7, WIDTH)).astype("f4")
    write_h5(paths[2], n=7, features=features)
    return listed(paths)
