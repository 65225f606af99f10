"""The cross-fitted teacher: what a patient's genes say about the label, by a model that never saw the patient."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
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
    The label keeps the share of the target that the genes have not earned (`teacher_trust`).

    Args:
        omics_train: (n, all genes) of the training patients with omics.
        y_train: class of each.
        transform: selects all genes and scales them on these patients.
        seed: of the splits.
        classes: Y.

    Returns:
        Patient -> target between label and prediction, as the probability of class 1 or, of more than two classes,
        those of all; empty if a class has fewer than two patients.
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
    trust = teacher_trust(p_NY, y_train)
    target_NY = trust * p_NY + (1 - trust) * np.eye(classes)[y_train]
    targets = [float(t_Y[1]) if classes == 2 else tuple(map(float, t_Y)) for t_Y in target_NY]
    return dict(zip(map(str, omics_train.index), targets, strict=True))


def teacher_trust(p_NY: npt.NDArray[np.float64], y_train: npt.NDArray[np.integer]) -> float:
    """Computes how far the teacher is trusted, by the AUC of its cross-fitted predictions: 4 AUC - 2, from 0 to 1.

    Genes that say nothing of the label are not trusted at all, so that nothing is learnt from noise; from an AUC of
    0.75 on the teacher is trusted wholly.

    Args:
        p_NY: cross-fitted probabilities.
        y_train: class of each patient.

    Returns:
        0 to 1; of more than two classes, of the mean AUC of each against the rest.
    """
    columns = (1,) if p_NY.shape[1] == 2 else range(p_NY.shape[1])
    aucs = [roc_auc_score(y_train == y, p_NY[:, y]) for y in columns]
    return float(np.clip(4 * np.mean(aucs) - 2, 0, 1))
