"""The cross-fitted teacher: what a patient's genes say about the label, by a model that never saw the patient."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from momkd_ray.cohort.genes import GeneTransform
from momkd_ray.train.task import Target

SPLITS = 5
"""Models of the teacher, each fitted on the patients of the other splits."""

INVERSE_PENALTY = 5.0
"""C of the logistic regression, with genes scaled so that a patient's squared values add up to about 1."""


def cross_fitted_targets(
    omics_train: pd.DataFrame, y_train: npt.NDArray[np.integer], transform: GeneTransform, seed: int, classes: int = 2
) -> dict[str, Target]:
    """Predicts the class of each training patient from all genes, by a model fitted on other training patients.

    A regression fitted on the patient itself would repeat its label; one that never saw it also says how sure the genes
    are, which is what the slide branch learns (docs/method.md §9).

    Args:
        omics_train: (n, all genes) of the training patients with omics.
        y_train: class of each.
        transform: selects all genes and scales them on these patients.
        seed: of the splits.
        classes: Y.

    Returns:
        Patient -> probability of class 1 or, of more than two classes, those of all; empty if a class has fewer than
        two patients.
    """
    splits = min(SPLITS, int(np.bincount(y_train, minlength=classes).min()))
    if splits < 2:
        return {}
    x_NG = transform.apply(omics_train).astype(np.float64) / np.sqrt(len(transform.genes))
    # the penalty is the same in every orthogonal basis, and the patients span only n of the genes' directions
    vectors_NR, singular_R, _ = np.linalg.svd(x_NG, full_matrices=False)
    x_NR = vectors_NR * singular_R
    p_NY = np.zeros((len(x_NR), classes))
    folds = StratifiedKFold(splits, shuffle=True, random_state=seed % 2**32)
    for fitted, held_out in folds.split(x_NR, y_train):
        teacher = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(x_NR[fitted], y_train[fitted])
        p_NY[held_out] = teacher.predict_proba(x_NR[held_out])
    targets = [float(p_Y[1]) if classes == 2 else tuple(map(float, p_Y)) for p_Y in p_NY]
    return dict(zip(map(str, omics_train.index), targets, strict=True))
