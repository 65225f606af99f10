"""The AUC by which an epoch is chosen."""

from __future__ import annotations

import numpy as np


def auc_of_classes(y_N: np.ndarray, p_NC: np.ndarray) -> float:
    """Computes the AUC of class 1 or, of more than two classes, the mean over classes of each against the rest.

    Args:
        y_N: classes.
        p_NC: the probability of class 1 alone (N, 1), or those of all classes (N, Y).
    """
    from sklearn.metrics import roc_auc_score  # takes a second to import, which prediction has no use for

    if p_NC.shape[1] == 1:
        return float(roc_auc_score(y_N, p_NC[:, 0]))
    return float(np.mean([roc_auc_score(y_N == y, p_NC[:, y]) for y in range(p_NC.shape[1])]))
