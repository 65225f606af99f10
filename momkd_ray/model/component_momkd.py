"""MoMKD with pooling by tissue component, the default network: beyond the paper (docs/method.md §9).

Shapes: see `model/momkd.py`; J is the number of discriminant directions of the tissue components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from momkd_ray.batches.collate import BagBatch
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model import losses
from momkd_ray.model.component_memory import ComponentMemory
from momkd_ray.model.dropout import Layers, apply_dropout
from momkd_ray.model.explain import Readout
from momkd_ray.model.omics_branch import OmicsBranchModel
from momkd_ray.model.ridge import ClassesRidgeFit, RidgeFit
from momkd_ray.model.tissue_components import TissueComponents, pool_by_component

TRAINED_SHARE = 0.1
"""The factor of the trained part of the logits, beside the ridge regression that they start from."""

_PATCHES_AT_ONCE = 512  # scaled for the readout, within the processor's cache


@dataclass(frozen=True)
class ComponentOutput:
    """The result of one forward pass over B bags with P patches, R of them with omics.

    Attributes:
        logits_BY: class logits.
        attention_P: the mean over components of the patch's weights, which sums to 1 over each bag.
        slide_BKS: projections w of the slide's pooled components, unit norm.
        components_YKS: the unit memory components that the pass used.
        omics_RS: projections r of the omics, unit norm; None without omics.
        reconstruction_RG: the decoded omics; None without omics.
    """

    logits_BY: Tensor
    attention_P: Tensor
    slide_BKS: Tensor
    components_YKS: Tensor
    omics_RS: Tensor | None = None
    reconstruction_RG: Tensor | None = None


class ComponentMoMKD(OmicsBranchModel):
    """MoMKD with one pooled vector for each tissue component, and a memory tied to the components.

    The clusters and the ridge regression are fitted to the training bags before the first step and then fixed. The
    classification loss never reaches the memory, and slides and omics meet in the memory alone.

    Args:
        model, memory, loss: sections of the configuration; `memory.components` is the number of tissue components.
        width: D.
        genes: G, the number of omics inputs; 0 builds no omics branch.
    """

    full_precision = True
    numbers_per_thread = 2**24  # a patch takes some ten operations a feature
    memory: ComponentMemory
    direction_DJ: Tensor
    offset_J: Tensor
    centre_KJ: Tensor
    mean_KD: Tensor
    scale_KD: Tensor
    ridge_KD: Tensor
    ridge_bias: Tensor
    ridge_YKD: Tensor
    ridge_bias_Y: Tensor

    def __init__(
        self, model: ModelConfig, memory: MemoryConfig, loss: LossConfig, *, width: int, genes: int, classes: int = 2
    ) -> None:
        super().__init__(model, memory, loss, width=width, genes=genes, classes=classes)
        components = memory.components
        directions = max(1, min(width, components - 1))
        self.register_buffer("direction_DJ", torch.zeros(width, directions))
        self.register_buffer("offset_J", torch.zeros(directions))
        self.register_buffer("centre_KJ", torch.zeros(components, directions))
        self.register_buffer("mean_KD", torch.zeros(components, width))
        self.register_buffer("scale_KD", torch.ones(components, width))
        if classes == 2:
            self.register_buffer("ridge_KD", torch.zeros(components, width))
            self.register_buffer("ridge_bias", torch.zeros(()))
        else:
            self.register_buffer("ridge_YKD", torch.zeros(classes, components, width))
            self.register_buffer("ridge_bias_Y", torch.zeros(classes))
        self.encode = nn.Linear(width, model.hidden)
        self.project_slide = nn.Linear(model.hidden, model.shared)
        self.classifier = nn.Linear(components * model.hidden, classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        self.build_omics_branch()
        self.memory = ComponentMemory(memory, classes, model.shared)

    @torch.no_grad()
    def set_components(self, fitted: TissueComponents) -> None:
        """Sets the tissue components; directions that were not found stay 0."""
        found = fitted.direction_DJ.shape[1]
        for buffer in (self.direction_DJ, self.offset_J, self.centre_KJ):
            buffer.zero_()
        self.direction_DJ[:, :found] = torch.from_numpy(fitted.direction_DJ)
        self.offset_J[:found] = torch.from_numpy(fitted.offset_J)
        self.centre_KJ[:, :found] = torch.from_numpy(fitted.centre_KJ)

    @torch.no_grad()
    def set_scale(self, mean_KD: Tensor, scale_KD: Tensor) -> None:
        """Sets mean and scale of the pooled features over the training bags."""
        self.mean_KD.copy_(mean_KD)
        self.scale_KD.copy_(scale_KD)

    @torch.no_grad()
    def set_classifier(self, ridge: RidgeFit | ClassesRidgeFit) -> None:
        """Sets the ridge regression that the logits start from."""
        if isinstance(ridge, ClassesRidgeFit):
            self.ridge_YKD.copy_(torch.from_numpy(ridge.weight_YF).view_as(self.ridge_YKD))
            self.ridge_bias_Y.copy_(torch.from_numpy(ridge.bias_Y))
            return
        self.ridge_KD.copy_(torch.from_numpy(ridge.weight_F).view_as(self.ridge_KD))
        self.ridge_bias.fill_(ridge.bias)

    @torch.no_grad()
    def pool(self, batch: BagBatch) -> tuple[Tensor, Tensor]:
        """Pools the bags by component; returns the scaled features (B, K, D) and the patches' weights (P, K)."""
        features_PD = batch.features_PD.float()
        return self._pool_points(features_PD, batch.patches_per_bag, self.points(features_PD))

    def points(self, features_PD: Tensor) -> Tensor:
        """Returns the patches as points (P, J) in the space of the components."""
        return features_PD @ self.direction_DJ - self.offset_J

    def _pool_points(
        self, features_PD: Tensor, patches_per_bag: Sequence[int], point_PJ: Tensor
    ) -> tuple[Tensor, Tensor]:
        temperature = self.model_config.pooling_temperature
        pooled_BKD, weight_PK = pool_by_component(features_PD, patches_per_bag, point_PJ, self.centre_KJ, temperature)
        return (pooled_BKD - self.mean_KD) / self.scale_KD, weight_PK

    @torch.no_grad()
    def predict(self, batch: BagBatch) -> tuple[Tensor, Tensor | None]:
        """Predicts class probabilities (B, Y) and attention (P,), in evaluation mode."""
        assert not self.training, "predict wants eval()"
        pooled_BKD, weight_PK = self.pool(batch)
        hidden_BKH = self.encode(pooled_BKD.flatten(0, 1)).view(len(batch), -1, self.model_config.hidden)
        return self.classify(pooled_BKD, hidden_BKH).softmax(dim=-1), weight_PK.mean(1)

    def encode_components(self, pooled_BKD: Tensor) -> Tensor:
        """Projects pooled features into the space of the memory (B, K, S), without dropout; unit norm."""
        return F.normalize(self.project_slide(self.encode(pooled_BKD)), dim=-1)

    def classify(self, pooled_BKD: Tensor, hidden_BKH: Tensor) -> Tensor:
        """Computes the logits (B, Y): a ridge regression of pooled features, and the trained part of hidden ones."""
        trained_BY: Tensor = TRAINED_SHARE * self.classifier(hidden_BKH.flatten(1))
        if self.classes != 2:
            return trained_BY + torch.einsum("bkd,ykd->by", pooled_BKD, self.ridge_YKD) + self.ridge_bias_Y
        half_B = ((pooled_BKD * self.ridge_KD).sum((1, 2)) + self.ridge_bias) / 2
        return trained_BY + torch.stack([-half_B, half_B], dim=1)

    def forward(self, batch: BagBatch) -> ComponentOutput:
        """Computes one forward pass; the omics branch runs for the bags that have omics."""
        dropout = self.draw_dropout(batch)
        pooled_BKD, weight_PK = self.pool(batch)
        dropped_ND = apply_dropout(pooled_BKD.flatten(0, 1), dropout.get("pooled"))
        hidden_BKH = self.encode(dropped_ND).view(len(batch), -1, self.model_config.hidden)
        omics_RS, reconstruction_RG = self.encode_omics(batch, dropout)
        return ComponentOutput(
            logits_BY=self.classify(pooled_BKD, hidden_BKH),
            attention_P=weight_PK.mean(1),
            slide_BKS=F.normalize(self.project_slide(hidden_BKH), dim=-1),
            components_YKS=self.memory.components,
            omics_RS=omics_RS,
            reconstruction_RG=reconstruction_RG,
        )

    def losses(self, output: ComponentOutput, batch: BagBatch) -> dict[str, Tensor]:
        """Computes every loss term per bag; a bag without omics has 0 for the two omics terms.

        The target of a bag is its patient's cross-fitted probability where there is one, and else the label.
        """
        assert batch.labels_B is not None, "losses need labels"
        if self.classes != 2:
            return self._losses_of_classes(output, batch)
        c, target_B = self.loss_config, batch.class_targets_B
        between_KS = output.components_YKS[1] - output.components_YKS[0]
        delta_BK = torch.einsum("bks,ks->bk", output.slide_BKS, between_KS)
        own_BKS = output.components_YKS.detach()[batch.labels_B]
        certainty_B = (2 * target_B - 1).abs()
        terms = {
            "ce": losses.cross_entropy_of_target(output.logits_BY, target_B),
            "memory": (output.slide_BKS - own_BKS).square().mean(dim=(1, 2)),
            "align_slide": certainty_B
            * losses.soft_angle_of_target(delta_BK, target_B[:, None], c.sharpness, c.margin).mean(dim=1),
        }
        align_R = None
        if output.omics_RS is not None:
            phi_RY = losses.class_affinity(output.omics_RS, output.components_YKS, c.aggregation)
            delta_R, target_R = phi_RY[:, 1] - phi_RY[:, 0], target_B[batch.omics_bag_R]
            align_R = losses.soft_angle_of_target(delta_R, target_R, c.sharpness, c.margin)
        return self.complete_losses(terms, align_R, output.reconstruction_RG, batch)

    def _losses_of_classes(self, output: ComponentOutput, batch: BagBatch) -> dict[str, Tensor]:
        """Computes the same for more than two classes: each class leads the nearest of the others by the margin."""
        c, target_BY = self.loss_config, batch.class_targets_BY(self.classes)
        affinity_BKY = torch.einsum("bks,yks->bky", output.slide_BKS, output.components_YKS)
        own_BKS = output.components_YKS.detach()[batch.labels_B]
        align_BK = losses.soft_angle_of_targets(affinity_BKY, target_BY[:, None], c.sharpness, c.margin)
        terms = {
            "ce": losses.cross_entropy_of_targets(output.logits_BY, target_BY),
            "memory": (output.slide_BKS - own_BKS).square().mean(dim=(1, 2)),
            "align_slide": losses.certainty(target_BY) * align_BK.mean(dim=1),
        }
        align_R = None
        if output.omics_RS is not None:
            phi_RY = losses.class_affinity(output.omics_RS, output.components_YKS, c.aggregation)
            align_R = losses.soft_angle_of_targets(phi_RY, target_BY[batch.omics_bag_R], c.sharpness, c.margin)
        return self.complete_losses(terms, align_R, output.reconstruction_RG, batch)

    def evidence(self, output: ComponentOutput, batch: BagBatch) -> tuple[Tensor, Tensor]:
        """Collects the memory's evidence.

        Returns:
            Vectors (N, S): the bags' pooled components and their omics, detached; and the weight of each vector for
            every memory component (N, Y K): a slide's component k moves component k of every class, by their shares.
        """
        slide_BKS = output.slide_BKS.detach()
        if self.classes == 2:
            share_BY = torch.stack([1 - batch.class_targets_B, batch.class_targets_B], dim=1)
        else:
            share_BY = batch.class_targets_BY(self.classes)
        components = slide_BKS.shape[1]
        own_KK = torch.eye(components, device=slide_BKS.device) / components
        weights_BKYK = share_BY[:, None, :, None] * own_KK[None, :, None, :]
        vectors, weights = [slide_BKS.flatten(0, 1)], [weights_BKYK.flatten(2).flatten(0, 1)]
        if output.omics_RS is not None and batch.omics_bag_R is not None:
            omics_RS = output.omics_RS.detach()
            vectors.append(omics_RS)
            weights.append(self.memory.omics_weights(omics_RS, share_BY[batch.omics_bag_R]))
        return torch.cat(vectors), torch.cat(weights)

    def readout(self, batch: BagBatch) -> Readout:
        """Returns how one bag is pooled and classified, with every patch's cosines to the memory components.

        The logits are linear in the pooled features, so that each patch has a value for each class; their mean by
        attention gives the logits. A patch is compared with the components of its own tissue alone.
        """
        features_PD = batch.features_PD.float()
        point_PJ = self.points(features_PD)
        pooled_1KD, weight_PK = self._pool_points(features_PD, batch.patches_per_bag, point_PJ)
        logits_1Y = self.classify(pooled_1KD, self.encode(pooled_1KD))
        by_component_YKH = self.classifier.weight.view(self.classes, -1, self.model_config.hidden)
        if self.classes == 2:
            sign_Y = torch.tensor([-0.5, 0.5], device=features_PD.device)
            ridge_YKD = sign_Y[:, None, None] * self.ridge_KD
        else:
            ridge_YKD = self.ridge_YKD
        gradient_YKD = TRAINED_SHARE * by_component_YKH @ self.encode.weight + ridge_YKD
        value_PYK = torch.einsum("pd,ykd->pyk", features_PD, gradient_YKD / self.scale_KD)
        attention_P = weight_PK.mean(1)
        summed_PY = torch.einsum("pyk,pk->py", value_PYK, weight_PK)
        value_PY = torch.where(attention_P[:, None] > 0, summed_PY / attention_P[:, None].clamp(min=1e-30), 0.0)
        constant_Y = logits_1Y[0] - attention_P @ value_PY
        return Readout(
            patches_PH=value_PY,
            attention_P=attention_P,
            classify=lambda pooled_NY: pooled_NY + constant_Y,
            similarity_PYK=self._similarity_to_own_tissue(features_PD, point_PJ),
        )

    @torch.no_grad()
    def _similarity_to_own_tissue(self, features_PD: Tensor, point_PJ: Tensor) -> Tensor:
        """Returns each patch's cosine with every class's component of its nearest tissue; -1 for all others."""
        nearest_P = torch.cdist(point_PJ, self.centre_KJ).argmin(dim=1)
        weight_SD = self.project_slide.weight @ self.encode.weight  # both are linear: one product instead of two
        bias_S = self.project_slide(self.encode.bias)
        projection_PS = features_PD.new_empty(len(features_PD), len(bias_S))
        scaled_QD, own_QD = features_PD.new_empty(2, min(_PATCHES_AT_ONCE, len(features_PD)), features_PD.shape[1])
        for start in range(0, len(features_PD), _PATCHES_AT_ONCE):
            k_Q = nearest_P[start : start + _PATCHES_AT_ONCE]
            part, n = slice(start, start + len(k_Q)), len(k_Q)
            torch.index_select(self.mean_KD, 0, k_Q, out=own_QD[:n])
            torch.sub(features_PD[part], own_QD[:n], out=scaled_QD[:n])
            torch.index_select(self.scale_KD, 0, k_Q, out=own_QD[:n])
            torch.addmm(bias_S, scaled_QD[:n].div_(own_QD[:n]), weight_SD.T, out=projection_PS[part])
        own_PYS = self.memory.components[:, nearest_P].transpose(0, 1)
        similarity_PYK = features_PD.new_full((len(features_PD), self.classes, self.memory_config.components), -1.0)
        index_PY1 = nearest_P[:, None, None].expand(-1, self.classes, 1)
        return similarity_PYK.scatter(
            2, index_PY1, torch.einsum("ps,pys->py", F.normalize(projection_PS, dim=-1), own_PYS)[..., None]
        )

    def dropout_layers(self, batch: BagBatch) -> Layers:
        """Returns all dropout layers of a batch with their rows per bag."""
        layers = {"pooled": ([self.memory_config.components] * len(batch), self.model_config.dropout)}
        return {**layers, **self.omics_dropout_layers(batch)}
