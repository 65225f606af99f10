"""The page of an evaluation in a real browser: narrow and wide, light and dark, for screen readers and keyboards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from support.browser import CHROMIUM, opened
from support.command_line import outcome
from support.finished_runs import write_run


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_fits_its_window_and_axe_finds_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.random(90) < 0.3
    names = [f"E{i:03}" for i in range(90)]
    p = expit(rng.normal(size=90) + 2 * y - 0.5)
    labels = {"PATIENT": names, "PR": np.where(y, "positive", "negative"), "site": rng.choice(["Lyon", "Basel"], 90)}
    pd.DataFrame(labels).to_csv(tmp_path / "clinical.csv", index=False)
    predictions = pd.DataFrame({"patient_id": names, "p_negative": 1 - p, "p_positive": p})
    predictions.to_csv(tmp_path / "predictions.csv", index=False)
    run = write_run(tmp_path / "run")
    command = ["evaluate", run, "--clinical", str(tmp_path / "clinical.csv"), "--out", str(tmp_path / "out")]
    command += ["--predictions", str(tmp_path / "predictions.csv"), "--subgroups", "site"]
    assert outcome(*command) == 0
    page = next((tmp_path / "out").glob("*.html")).read_text()
    for width, dark in ((360, True), (1600, False)):
        found = opened(page, width, dark=dark, folder=tmp_path)
        assert found["faults"] == []
        assert not found["wide"]
        assert found["remote"] == []
