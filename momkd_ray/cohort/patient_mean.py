"""The mean of a patient's slides."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd


def patient_mean(slides: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Averages columns over each patient's slides.

    The slides are summed in the order of their names, so that the result does not depend on the order of the rows.

    Args:
        slides: one row per slide: `patient_id`, `slide_id` and the columns.
        columns: names of the numeric columns.

    Returns:
        One row per patient, sorted: `patient_id` and the columns.

    >>> slides = pd.DataFrame({"patient_id": ["B", "A", "A"], "slide_id": ["b", "a2", "a1"], "p": [0.5, 0.25, 0.75]})
    >>> patient_mean(slides, ["p"]).to_dict("list")
    {'patient_id': ['A', 'B'], 'p': [0.5, 0.5]}
    """
    ordered = slides.sort_values(["patient_id", "slide_id"])
    return ordered.groupby("patient_id", sort=True)[list(columns)].mean().reset_index()
