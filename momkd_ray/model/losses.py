"""The losses, each a value a bag (method 3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def agreement(f_NS: Tensor, components_YKS: Tensor, sharpness: float) -> Tensor:
    """phi (N, Y): a soft maximum over each class's components of their cosine with f."""
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
    """align (N,): softplus(sharpness (margin - Delta)), Delta the agreement with its own class over the other's."""
    phi_NY = agreement(f_NS, components_YKS, aggregation)
    sign_N = 2.0 * labels_N - 1.0
    delta_N = sign_N * (phi_NY[:, 1] - phi_NY[:, 0])
    return F.softplus(sharpness * (margin - delta_N))


def nearest_components(z_PS: Tensor, labels_P: Tensor, raw_YKS: Tensor) -> Tensor:
    """For each patch the component (P,) of its bag's class nearest by Euclidean distance, un-normalised."""
    classes, components, width = raw_YKS.shape
    flat_CS = raw_YKS.reshape(classes * components, width)
    distance_PC = flat_CS.square().sum(-1) - 2 * z_PS @ flat_CS.T  # |z|^2 is the same for all of a patch's
    own_P1K = labels_P[:, None] * components + torch.arange(components, device=z_PS.device)
    return distance_PC.gather(1, own_P1K).argmin(dim=1)


def commitment(z_PS: Tensor, bag_of_patch_P: Tensor, labels_B: Tensor, raw_YKS: Tensor, patches_B: Tensor) -> Tensor:
    """Mean squared distance (B,) of a bag's patch projections to their nearest component, which gets no gradient.

    Patches of bag B, after the last, belong to none.
    """
    raw_YKS = raw_YKS.detach()
    labels_P = F.pad(labels_B, (0, 1))[bag_of_patch_P]
    nearest_P = nearest_components(z_PS.detach(), labels_P, raw_YKS)
    error_P = (z_PS - raw_YKS[labels_P, nearest_P]).square().mean(dim=1)
    return error_P.new_zeros(len(patches_B) + 1).index_add(0, bag_of_patch_P, error_P)[:-1] / patches_B


def orthogonality(components_YKS: Tensor) -> Tensor:
    """orth (Y,): mean squared cosine between a class's components, less what orthogonal ones have (1 / K)."""
    gram_YKK = components_YKS @ components_YKS.transpose(1, 2)
    return gram_YKK.square().mean(dim=(1, 2)) - 1.0 / components_YKS.shape[1]
