"""The metrics of two classes as scikit-learn computes them."""

from __future__ import annotations

import numpy as np
from sklearn import metrics as sk


def by_sklearn(y: np.ndarray, p: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    return {
        "auc": sk.roc_auc_score(y, p),
        "auprc": sk.average_precision_score(y, p),
        "macro_f1": sk.f1_score(y, predicted, average="macro", zero_division=0),
        "accuracy": sk.accuracy_score(y, predicted),
        "sensitivity": sk.recall_score(y, predicted),
        "specificity": sk.recall_score(y, predicted, pos_label=0),
    }
