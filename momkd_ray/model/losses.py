"""The losses of MoMKD, one value per bag (docs/method.md §3; arXiv 2602.21395). Shapes: see `model/momkd.py`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def class_affinity(f_NS: Tensor, components_YKS: Tensor, sharpness: float) -> Tensor:
    """Returns phi (N, Y), the soft maximum over a class's components of their cosine with f (docs/method.md §3).

    Args:
        f_NS: unit vectors.
        components_YKS: unit memory components.
        sharpness: inverse temperature of the log-sum-exp.
    """
    similarity_NYK = torch.einsum("ns,yks->nyk", f_NS, components_YKS)
    return torch.logsumexp(sharpness * similarity_NYK, dim=-1) / sharpness


def soft_angle(
    f_NS: Tensor,
    labels_N: Tensor,
    components_YKS: Tensor,
    aggregation: float,
    sharpness: float,
    margin: float,
) -> Tensor:
    """Soft-angle alignment loss (N,): softplus(sharpness (margin - Delta)) (docs/method.md §3).

    Args:
        f_NS: unit vectors of slides or of omics.
        labels_N: class of each.
        components_YKS: unit memory components.
        aggregation: inverse temperature of `class_affinity`.
        sharpness: slope of the softplus.
        margin: the wanted Delta, the affinity with the own class minus the highest with another class.
    """
    delta_NY = lead(class_affinity(f_NS, components_YKS, aggregation))
    delta_N = delta_NY.gather(1, labels_N[:, None])[:, 0]
    return F.softplus(sharpness * (margin - delta_N))


def lead(affinity_NY: Tensor) -> Tensor:
    """Returns for each class its affinity minus the highest of the other classes, which are in the last dimension."""
    classes = affinity_NY.shape[-1]
    itself_YY = torch.eye(classes, dtype=torch.bool, device=affinity_NY.device)
    others_NYY = affinity_NY[..., None, :].masked_fill(itself_YY, -torch.inf)
    return affinity_NY - others_NYY.amax(dim=-1)


def cross_entropy_of_target(logits_BY: Tensor, target_B: Tensor) -> Tensor:
    """Cross-entropy (B,) of two classes with the probability of class 1 as the target."""
    log_BY = logits_BY.log_softmax(dim=-1)
    return -(target_B * log_BY[:, 1] + (1 - target_B) * log_BY[:, 0])


def cross_entropy_of_targets(logits_BY: Tensor, target_BY: Tensor) -> Tensor:
    """Cross-entropy (B,) of several classes with their probabilities as the target."""
    return -(target_BY * logits_BY.log_softmax(dim=-1)).sum(dim=-1)


def soft_angle_of_targets(affinity_NY: Tensor, target_NY: Tensor, sharpness: float, margin: float) -> Tensor:
    """Soft-angle alignment loss towards the probabilities of several classes: the mean of their losses by them.

    Args:
        affinity_NY: affinity with each class, in the last dimension.
        target_NY: probability of each class, which broadcasts to it.
        sharpness: slope of the softplus.
        margin: the wanted lead of a class over all others.

    Returns:
        One value for each row (N).
    """
    return (target_NY * F.softplus(sharpness * (margin - lead(affinity_NY)))).sum(dim=-1)


def certainty(target_BY: Tensor) -> Tensor:
    """Returns how sure a target is (B,): 0 where all classes are equally likely, 1 where one is certain."""
    classes = target_BY.shape[-1]
    return (classes * target_BY.amax(dim=-1) - 1) / (classes - 1)


def soft_angle_of_target(delta_N: Tensor, target_N: Tensor, sharpness: float, margin: float) -> Tensor:
    """Soft-angle alignment loss towards a probability, the mean of both classes' losses by it (docs/method.md §9).

    Args:
        delta_N: affinity with class 1 minus that with class 0, of any shape.
        target_N: probability of class 1, which broadcasts to it.
        sharpness: slope of the softplus.
        margin: the wanted difference.
    """
    towards_1_N = F.softplus(sharpness * (margin - delta_N))
    towards_0_N = F.softplus(sharpness * (margin + delta_N))
    return target_N * towards_1_N + (1 - target_N) * towards_0_N


def nearest_components(z_PS: Tensor, labels_P: Tensor, raw_YKS: Tensor) -> Tensor:
    """Returns for each patch the nearest component (P,) of its bag's class, by distance to un-normalised components."""
    classes, components, width = raw_YKS.shape
    flat_CS = raw_YKS.reshape(classes * components, width)
    distance_PC = flat_CS.square().sum(-1) - 2 * z_PS @ flat_CS.T  # without |z|^2, which does not change the order
    own_P1K = labels_P[:, None] * components + torch.arange(components, device=z_PS.device)
    return distance_PC.gather(1, own_P1K).argmin(dim=1)


def commitment(z_PS: Tensor, bag_of_patch_P: Tensor, labels_B: Tensor, raw_YKS: Tensor, patches_B: Tensor) -> Tensor:
    """Commitment loss (B,): mean squared distance of patch projections to their nearest component (docs/method.md §3).

    The components receive no gradient from it (stop-gradient). Patches of index B, after the last bag, are padding.
    """
    raw_YKS = raw_YKS.detach()
    labels_P = F.pad(labels_B, (0, 1))[bag_of_patch_P]
    nearest_P = nearest_components(z_PS.detach(), labels_P, raw_YKS)
    error_P = (z_PS - raw_YKS[labels_P, nearest_P]).square().mean(dim=1)
    return error_P.new_zeros(len(patches_B) + 1).index_add(0, bag_of_patch_P, error_P)[:-1] / patches_B


def orthogonality(components_YKS: Tensor) -> Tensor:
    """Orthogonality loss (Y,): mean squared cosine between a class's components, minus its minimum 1 / K.

    The minimum is reached by orthogonal components (docs/method.md §3).
    """
    gram_YKK = components_YKS @ components_YKS.transpose(1, 2)
    return gram_YKK.square().mean(dim=(1, 2)) - 1.0 / components_YKS.shape[1]
