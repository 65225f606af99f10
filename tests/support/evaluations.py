"""An external cohort with predictions, and its evaluation by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from support.command_line import outcome


def external(folder: Path, n: int = 90, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A clinical table with all that can go wrong, and predictions of most of its patients."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.3
    names = [f"E{i:03}" for i in range(n)]
    clinical = pd.DataFrame(
        {
            "PATIENT": names,
            "PR": np.where(y, "positive", "negative"),
            "age": rng.integers(30, 90, n).astype(str),
            "site": rng.choice(["Lyon", "Basel", ""], n, p=[0.5, 0.4, 0.1]),
        }
    )
    others = [("E900", "Equivocal", "60", "Lyon"), ("E901", "", "60", "Lyon"), ("E902", "negative", "60", "Lyon")]
    clinical = pd.concat([clinical, pd.DataFrame(others, columns=clinical.columns)])
    p = expit(rng.normal(size=n) + 2 * y - 0.5)
    predictions = pd.DataFrame({"patient_id": names, "p_negative": 1 - p, "p_positive": p})
    stranger = pd.DataFrame({"patient_id": ["E999"], "p_negative": [0.5], "p_positive": [0.5]})
    predictions = pd.concat([predictions, stranger])
    clinical.to_csv(folder / "clinical.csv", index=False)
    predictions.to_csv(folder / "predictions.csv", index=False)
    return clinical, predictions


def evaluated(run: str, folder: Path, *arguments: str) -> dict[str, Any]:
    command = ["evaluate", run, "--clinical", str(folder / "clinical.csv"), "--out", str(folder / "out")]
    assert outcome(*command, "--predictions", str(folder / "predictions.csv"), *arguments) == 0
    content: dict[str, Any] = json.loads((folder / "out" / "evaluation.json").read_text())
    return content


def perfect_in(clinical: pd.DataFrame, predictions: pd.DataFrame, of: pd.Series[bool]) -> pd.DataFrame:
    """Predictions that rank the positive patients of some above all others of theirs."""
    own = clinical.loc[of, "PATIENT"]
    positive = clinical.set_index("PATIENT")["PR"].reindex(predictions["patient_id"]).eq("positive").to_numpy()
    p = predictions["p_positive"].where(~predictions["patient_id"].isin(own), np.where(positive, 0.8, 0.3))
    return predictions.assign(p_positive=p, p_negative=1 - p)
