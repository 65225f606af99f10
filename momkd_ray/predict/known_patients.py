"""Which of the predicted patients a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from momkd_ray.model.bundle import BundleCard

TRAINED_ON = "trained_on"
_SHOWN = 3


def count_training(table: pd.DataFrame, cards: Sequence[BundleCard]) -> pd.DataFrame:
    """Adds the column `trained_on`: how many of the models were trained on, or validated by, the row's patient.

    Bundles from before they had hashes of their patients, and imported checkpoints, count as not trained on anybody; if
    all are such, there is no column.

    Args:
        table: of predictions, with `patient_id` and, if a row is a slide, `slide_id`.
        cards: of the models.
    """
    known = [card.trained_on for card in cards if card.trained_on is not None]
    if not known:
        return table
    names = [column for column in ("patient_id", "slide_id") if column in table.columns]
    rows = table[names].astype(str).to_numpy().tolist()
    return table.assign(**{TRAINED_ON: [sum(any(map(one.knows, row)) for one in known) for row in rows]})


def training_note(table: pd.DataFrame, models: int) -> str | None:
    """Says how many of the predicted patients the models were trained on; None if it is none, or not known.

    Args:
        table: of `count_training`.
        models: their number.
    """
    if TRAINED_ON not in table.columns:
        return None
    known = table.loc[table[TRAINED_ON] > 0, "patient_id"].drop_duplicates().tolist()
    if not known:
        return None
    everybody = table["patient_id"].nunique()
    examples = ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
    whose = "the model" if models == 1 else f"one or more of the {models} models"
    return (
        f"{len(known):,} of the {everybody:,} patients ({examples}) are among those that {whose} learnt from: their "
        f"predictions say nothing about new patients; the column {TRAINED_ON} counts the models"
    )
