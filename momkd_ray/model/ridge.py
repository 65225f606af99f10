"""Ridge regression, its penalty chosen by leaving patients out, from which the classifier starts (method.md §9)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

PENALTIES = 10.0 ** np.arange(0, 7.01, 0.25)
"""Penalties that are tried."""

CERTAINTY = 0.05
"""Targets closer than this to 0 or 1 count as this close, so that their log-odds are bounded."""

FEWEST_DEGREES = 4.0
"""Effective degrees of freedom beside the intercept that a penalty leaves: with fewer next to no weight is left."""

LARGEST_LEVERAGE = 1 - 1e-6
"""Of a row on its own fitted value, so that no error of a row left out is divided by 0."""


@dataclass(frozen=True)
class RidgeFit:
    """A linear model of log-odds.

    Attributes:
        weight_F: of each input.
        bias: the log-odds where all inputs are 0.
        penalty: the chosen one.
    """

    weight_F: Doubles
    bias: float
    penalty: float


def fit_ridge(x_NF: Doubles, target_N: Doubles, patients: Sequence[Hashable] | None = None) -> RidgeFit:
    """Regresses the targets' log-odds on the inputs, with the penalty of the smallest leave-one-patient-out error.

    Penalties that leave fewer than `FEWEST_DEGREES` of freedom are not tried, of which noise may choose one.

    Slope and intercept are then calibrated on the predictions of the patients left out, by logistic regression on the
    targets. The work grows with N, not with the number of inputs squared.

    Args:
        x_NF: inputs of each bag; each column has about mean 0 and standard deviation 1.
        target_N: probabilities of class 1, or labels 0 and 1.
        patients: whose each bag is, as a patient's bags are left out together; None if no two are of one patient.
    """
    p_N = np.clip(target_N, CERTAINTY, 1 - CERTAINTY)
    odds_N = np.log(p_N / (1 - p_N))
    weight_F, penalty, held_out_N = _regress(x_NF, odds_N, _shared_rows(patients))
    slope, bias = _calibrate(held_out_N, target_N)
    return RidgeFit(weight_F * slope, bias, penalty)


def _shared_rows(patients: Sequence[Hashable] | None) -> list[npt.NDArray[np.intp]]:
    """Returns the rows of each patient who has several."""
    rows: dict[Hashable, list[int]] = {}
    for row, patient in enumerate(patients or ()):
        rows.setdefault(patient, []).append(row)
    return [np.array(own) for own in rows.values() if len(own) > 1]


def _regress(x_NF: Doubles, y_N: Doubles, shared: Sequence[npt.NDArray[np.intp]]) -> tuple[Doubles, float, Doubles]:
    """Fits a ridge regression of one target (N,), or of several (N, Y) with one penalty.

    Args:
        x_NF: inputs.
        y_N: targets.
        shared: rows that are left out together; all others are left out singly.

    Returns:
        The weights (F,) or (F, Y), the penalty of the smallest leave-one-out error, and the leave-one-out predictions,
        shaped as the targets.
    """
    centred_N = y_N - y_N.mean(axis=0)
    eigenvalue_N, vector_NN = np.linalg.eigh(x_NF @ x_NF.T)
    eigenvalue_N = np.clip(eigenvalue_N, 0, None)
    rotated_N = vector_NN.T @ centred_N
    best: tuple[float, float, Doubles] | None = None
    for penalty in PENALTIES:
        share_N = eigenvalue_N / (eigenvalue_N + penalty)
        if best is not None and share_N.sum() < FEWEST_DEGREES:
            break
        residual_N = centred_N - vector_NN @ (share_N * rotated_N.T).T
        leverage_N = np.minimum(vector_NN**2 @ share_N + 1 / len(x_NF), LARGEST_LEVERAGE)
        error_N = (residual_N.T / (1 - leverage_N)).T
        for rows in shared:
            error_N[rows] = _error_without(vector_NN[rows], share_N, residual_N[rows])
        error = float(np.square(error_N).mean())
        if best is None or error < best[0]:
            best = (error, float(penalty), centred_N - error_N)
    assert best is not None
    _, penalty, held_out_N = best
    return x_NF.T @ (vector_NN @ (rotated_N.T / (eigenvalue_N + penalty)).T), penalty, held_out_N


def _error_without(vector_BN: Doubles, share_N: Doubles, residual_B: Doubles) -> Doubles:
    """Returns the errors of predicting a patient's rows by a regression fitted without them: (I - H)^-1 residual."""
    hat_BB = (vector_BN * share_N) @ vector_BN.T + 1 / len(share_N)
    # as with single rows, no direction is fitted so closely that its error would be divided by 0
    leverage_B, direction_BB = np.linalg.eigh(hat_BB)
    leverage_B = np.minimum(leverage_B, LARGEST_LEVERAGE)
    error_B: Doubles = direction_BB @ ((direction_BB.T @ residual_B).T / (1 - leverage_B)).T
    return error_B


@dataclass(frozen=True)
class ClassesRidgeFit:
    """A linear model of the logits of several classes.

    Attributes:
        weight_YF: of each class and input.
        bias_Y: the logits where all inputs are 0.
        penalty: the chosen one, of all classes.
    """

    weight_YF: Doubles
    bias_Y: Doubles
    penalty: float


AnyRidgeFit: TypeAlias = RidgeFit | ClassesRidgeFit


def fit_classes_ridge(x_NF: Doubles, target_NY: Doubles, patients: Sequence[Hashable] | None = None) -> ClassesRidgeFit:
    """Does the same for several classes, one against the rest, with one penalty.

    What is regressed is the logarithm of each class's probability minus the mean over classes, which is half the
    log-odds if there are two. One slope and an intercept for each class are then calibrated.

    Args:
        x_NF: as of `fit_ridge`.
        target_NY: probabilities of the classes, or 1 for the label.
        patients: as of `fit_ridge`.
    """
    p_NY = np.clip(target_NY, CERTAINTY, 1 - CERTAINTY)
    log_NY = np.log(p_NY / p_NY.sum(axis=1, keepdims=True))
    log_NY -= log_NY.mean(axis=1, keepdims=True)
    weight_FY, penalty, held_out_NY = _regress(x_NF, log_NY, _shared_rows(patients))
    slope, bias_Y = _calibrate_classes(held_out_NY, target_NY)
    return ClassesRidgeFit(weight_FY.T * slope, bias_Y, penalty)


def _calibrate_classes(score_NY: Doubles, target_NY: Doubles) -> tuple[float, Doubles]:
    """Fits one slope and the intercepts of the logits to the targets; the slope is 1 if the scores mislead."""
    from scipy.optimize import minimize  # as below
    from scipy.special import logsumexp

    def loss_and_gradient(parameters: Doubles) -> tuple[float, Doubles]:
        logits_NY = parameters[0] * score_NY + parameters[1:]
        log_NY = logits_NY - logsumexp(logits_NY, axis=1, keepdims=True)
        excess_NY = (np.exp(log_NY) - target_NY) / len(score_NY)
        gradient = np.concatenate([[float((excess_NY * score_NY).sum())], excess_NY.sum(axis=0)])
        return -float((target_NY * log_NY).sum()) / len(score_NY), gradient

    start = np.concatenate([[1.0], np.zeros(score_NY.shape[1])])
    fitted = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B").x
    bias_Y = fitted[1:] - fitted[1:].mean()
    return (float(fitted[0]), bias_Y) if fitted[0] > 0 else (1.0, bias_Y)


def _calibrate(score_N: Doubles, target_N: Doubles) -> tuple[float, float]:
    """Fits slope and intercept of the log-odds to the targets; the slope is 1 if the scores say nothing or mislead."""
    from sklearn.linear_model import LogisticRegression  # takes a second to import, which prediction has no use for

    both_M1 = np.concatenate([score_N, score_N])[:, None]
    class_M = np.repeat([1, 0], len(score_N))
    fitted = LogisticRegression(C=1e6).fit(both_M1, class_M, sample_weight=np.concatenate([target_N, 1 - target_N]))
    slope, bias = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    return (slope, bias) if slope > 0 else (1.0, bias)
