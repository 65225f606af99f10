"""MoMKD: a slide encoder and an omics encoder that exchange information only through the class memory.

Source: docs/method.md §2 and §3; "Momentum Memory for Knowledge Distillation in Computational Pathology", arXiv
2602.21395. At inference only the histology is used.

Shape suffixes of tensors, here and in every module of the package:

    P  patches of all bags of a batch        B  bags of a batch
    Q  patches of a tile or chunk            R  bags (or patches of a tile's first hop) with a property, R <= B
    D  width of the patch features           H  hidden width of the slide encoder
    S  width of the space of the memory      E  width of the omics embedding
    Y  classes                               K  memory components per class
    G  genes                                 M  messages (edges) of the patch graph
    A  attention heads                       C  width of one head (H = A C)
    F  any feature width                     N  any number of rows

A trailing 1 adds one to a size (`received_P1`: P + 1 entries); digits are literal sizes (`pieces_L4`: L x 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from momkd_ray.batches.collate import BagBatch, to_device_async
from momkd_ray.batches.tiles import Tile
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model import losses
from momkd_ray.model.baselines.slide_classifier import AttentionScore
from momkd_ray.model.dropout import Dropout, Layers, apply_dropout
from momkd_ray.model.explain import Readout
from momkd_ray.model.gatv2 import Masks, SlideEncoder
from momkd_ray.model.memory import MomentumMemory
from momkd_ray.model.omics_branch import OmicsBranchModel


@dataclass(frozen=True)
class MoMKDOutput:
    """The result of one forward pass over B bags with P patches, R of them with omics (docs/method.md §2).

    Attributes:
        logits_BY: class logits.
        attention_P: attention a, which sums to 1 over each bag.
        patches_PS: patch projections z, unit norm.
        slide_BS: projections w of the pooled slides, unit norm.
        components_YKS: the unit memory components c that the pass used.
        omics_RS: projections r of the omics, unit norm; None without omics.
        reconstruction_RG: the decoded omics; None without omics.
    """

    logits_BY: Tensor
    attention_P: Tensor
    patches_PS: Tensor
    slide_BS: Tensor
    components_YKS: Tensor
    omics_RS: Tensor | None = None
    reconstruction_RG: Tensor | None = None


class MoMKD(OmicsBranchModel):
    """The MoMKD network with its losses and its memory (docs/method.md §2 to §4).

    Gradient decoupling: no gradient passes between the slide branch and the omics branch, which meet in the memory
    alone, and the classification loss never reaches the memory.

    Args:
        model, memory, loss: sections of the configuration.
        width: D.
        genes: G, the number of omics inputs; 0 builds no omics branch.
    """

    recordable = True
    memory: MomentumMemory

    def __init__(
        self, model: ModelConfig, memory: MemoryConfig, loss: LossConfig, *, width: int, genes: int, classes: int = 2
    ) -> None:
        super().__init__(model, memory, loss, width=width, genes=genes, classes=classes)
        self.slide_encoder = SlideEncoder(width, model.hidden, model.heads, model.dropout, graph=model.graph)
        self.project_patch = nn.Linear(model.hidden, model.shared)
        self.project_slide = nn.Linear(model.hidden, model.shared)
        self.build_omics_branch()
        self.memory = MomentumMemory(memory, classes, model.shared)
        self.classifier_norm = nn.LayerNorm(model.hidden)
        self.classifier1 = nn.Linear(model.hidden, model.classifier_hidden)
        self.classifier2 = nn.Linear(model.classifier_hidden, classes)
        if model.attention == "memory":
            self.log_tau = nn.Parameter(torch.tensor(math.log(0.2)))
        else:
            self.learned_attention = AttentionScore(model.hidden, model.classifier_hidden, gated=True)

    def forward(self, batch: BagBatch) -> MoMKDOutput:
        """Computes one forward pass; the omics branch runs for the bags that have omics.

        In training mode the dropout masks follow from `batch.seeds`.
        """
        dropout, components_YKS = self.draw_dropout(batch), self.memory.components
        encode = self._encode_tiles if batch.tiles else self._encode_bags
        # gradient decoupling: attention and classification use the memory without a gradient to it
        patches_PS, attention_P, pooled_BH = encode(batch, Masks.of(dropout), components_YKS.detach())
        omics_RS, reconstruction_RG = self.encode_omics(batch, dropout)
        return MoMKDOutput(
            logits_BY=self._classify(pooled_BH, dropout),
            attention_P=attention_P,
            patches_PS=patches_PS,
            slide_BS=F.normalize(self.project_slide(pooled_BH), dim=-1),
            components_YKS=components_YKS,
            omics_RS=omics_RS,
            reconstruction_RG=reconstruction_RG,
        )

    def losses(self, output: MoMKDOutput, batch: BagBatch) -> dict[str, Tensor]:
        """Computes every loss term per bag (docs/method.md §3).

        Returns:
            ce, memory, align_slide, align_omics, reconstruction and their weighted `total`, each (B,). A bag without
            omics has 0 for the two omics terms.
        """
        assert batch.labels_B is not None, "losses need labels"
        c, labels_B = self.loss_config, batch.labels_B
        components_YKS = output.components_YKS
        angle = (c.aggregation, c.sharpness, c.margin)
        commitment_B = losses.commitment(
            output.patches_PS, batch.bag_of_patch_P, labels_B, self.memory.raw_YKS, batch.patches_B
        )
        terms = {
            "ce": self._cross_entropy(output.logits_BY, batch),
            "memory": commitment_B + c.orthogonality * losses.orthogonality(components_YKS)[labels_B],
            "align_slide": losses.soft_angle(output.slide_BS, labels_B, components_YKS, *angle),
        }
        align_R = None
        if output.omics_RS is not None:
            align_R = losses.soft_angle(output.omics_RS, labels_B[batch.omics_bag_R], components_YKS, *angle)
        return self.complete_losses(terms, align_R, output.reconstruction_RG, batch)

    def _cross_entropy(self, logits_BY: Tensor, batch: BagBatch) -> Tensor:
        """Computes the cross-entropy per bag (B,) with the batch's targets or else its labels."""
        assert batch.labels_B is not None
        if batch.targets_BY is not None:
            return losses.cross_entropy_of_targets(logits_BY, batch.targets_BY)
        if batch.targets_B is not None:
            return losses.cross_entropy_of_target(logits_BY, batch.targets_B)
        return F.cross_entropy(logits_BY, batch.labels_B, reduction="none")

    def evidence(self, output: MoMKDOutput, batch: BagBatch) -> tuple[Tensor, Tensor]:
        """Collects the memory's evidence (docs/method.md §4).

        Returns:
            The projections of the bags' slides and omics (N, S), detached, and their classes (N,).
        """
        assert batch.labels_B is not None
        vectors, labels = [output.slide_BS.detach()], [batch.labels_B]
        if output.omics_RS is not None and batch.omics_bag_R is not None:
            vectors.append(output.omics_RS.detach())
            labels.append(batch.labels_B[batch.omics_bag_R])
        return torch.cat(vectors), torch.cat(labels)

    @torch.no_grad()
    def project(self, features_PD: Tensor, tile: Tile) -> Tensor:
        """Computes the patch projections z (Q, S) of one tile, in evaluation mode."""
        assert not self.training, "project wants eval()"
        return F.normalize(self.project_patch(self.slide_encoder.encode_tile(features_PD, tile, Masks())), dim=-1)

    def readout(self, batch: BagBatch) -> Readout:
        """Returns how one bag is pooled and classified, with every patch's cosines to the memory components."""
        components_YKS = self.memory.components
        if batch.tiles:
            encoded = [self.slide_encoder.encode_tile(batch.features_PD, tile, Masks()) for tile in batch.tiles]
            context_PH = torch.cat(encoded)[torch.cat([tile.own_Q for tile in batch.tiles]).argsort()]
        else:
            context_PH = self.slide_encoder(batch, Masks())
        patches_PS, score_P = self.attention_scores(context_PH, components_YKS)
        return Readout(
            patches_PH=context_PH,
            attention_P=score_P.softmax(dim=0),
            classify=lambda pooled_NH: self._classify(pooled_NH, {}),
            similarity_PYK=torch.einsum("ps,yks->pyk", patches_PS, components_YKS),
        )

    def dropout_layers(self, batch: BagBatch) -> Layers:
        """Returns all dropout layers of a batch with their rows per bag."""
        config = self.model_config
        layers = {**self.slide_encoder.dropout_layers(batch), "classifier": ([1] * len(batch), config.dropout)}
        return {**layers, **self.omics_dropout_layers(batch)}

    def _encode_bags(self, batch: BagBatch, masks: Masks, components_YKS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encodes a batch at once: z (P, S), attention a (P,) and the pooled slides V (B, H) (docs/method.md §2)."""
        context_PH = self.slide_encoder(batch, masks)
        patches_PS, score_P = self.attention_scores(context_PH, components_YKS)
        # a (B, P) mask costs little beside the patches' encoding, and the host need not know the bags' sizes
        own_BP = batch.bag_of_patch_P == torch.arange(len(batch), device=score_P.device)[:, None]
        attention_BP = torch.where(own_BP, score_P, -torch.inf).softmax(dim=1)
        return patches_PS, attention_BP.sum(0), attention_BP @ context_PH

    def _encode_tiles(self, batch: BagBatch, masks: Masks, components_YKS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encodes a batch tile by tile, with the result of `_encode_bags` and the intermediates of one tile in memory.

        For gradients each tile is computed twice (activation checkpointing).
        """
        from torch_geometric.utils import softmax  # takes two seconds to import, and few bags have tiles

        def encode(tile: Tile) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            context_QH = self.slide_encoder.encode_tile(batch.features_PD, tile, masks)
            patches_QS, score_Q = self.attention_scores(context_QH, components_YKS)
            highest = score_Q.detach().max()
            return patches_QS, score_Q, highest, (score_Q - highest).exp() @ context_QH

        def encode_checkpointed(tile: Tile) -> Any:
            # dropout uses none of PyTorch's generators, so their state need not be restored
            return checkpoint(encode, tile, use_reentrant=False, preserve_rng_state=False)

        results = map(encode_checkpointed if torch.is_grad_enabled() else encode, batch.tiles)
        patches, scores, highest, weighted = zip(*results, strict=True)
        order_P = torch.cat([tile.own_Q for tile in batch.tiles]).argsort()
        patches_PS, score_P = torch.cat(patches)[order_P], torch.cat(scores)[order_P]
        # the softmax over a bag, put together from its tiles
        scores_of_bags = torch.split(score_P, list(batch.patches_per_bag))
        normaliser_B = torch.stack([score_Q.logsumexp(0) for score_Q in scores_of_bags])
        bags_T = to_device_async(torch.tensor([tile.bag for tile in batch.tiles]), normaliser_B.device)
        share_T = (torch.stack(highest) - normaliser_B[bags_T]).exp()
        pooled_BH = normaliser_B.new_zeros(len(batch), self.model_config.hidden)
        pooled_BH = pooled_BH.index_add(0, bags_T, share_T[:, None] * torch.stack(weighted))
        return patches_PS, softmax(score_P, batch.bag_of_patch_P, num_nodes=len(batch)), pooled_BH

    def attention_scores(self, context_PH: Tensor, components_YKS: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the unit patch projections z (P, S) and the attention scores (P,) that `model.attention` chooses."""
        if self.model_config.attention == "memory":
            return self.memory_guided_scores(context_PH, components_YKS)
        return F.normalize(self.project_patch(context_PH), dim=-1), self.learned_attention(context_PH)[:, 0]

    def memory_guided_scores(self, context_PH: Tensor, components_YKS: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the scores of memory-guided attention (docs/method.md §2; arXiv 2602.21395).

        Args:
            context_PH: contextual patch embeddings.
            components_YKS: unit memory components, detached.

        Returns:
            The unit patch projections z (P, S), and the attention scores (P,): a patch's cosine with its nearest
            component of class 1 minus that of class 0 (of more than two classes: that of the nearest class minus the
            mean of the others), divided by the learned temperature tau.
        """
        patches_PS = F.normalize(self.project_patch(context_PH), dim=-1)
        similarity_PYK = torch.einsum("ps,yks->pyk", patches_PS, components_YKS)
        nearest_PY = similarity_PYK.amax(dim=-1)
        tau = self.log_tau.exp().clamp(0.01, 2.0)
        if self.classes == 2:
            return patches_PS, (nearest_PY[:, 1] - nearest_PY[:, 0]) / tau
        highest_P = nearest_PY.amax(dim=-1)
        others_P = (nearest_PY.sum(dim=-1) - highest_P) / (self.classes - 1)
        return patches_PS, (highest_P - others_P) / tau

    def _classify(self, pooled_BH: Tensor, dropout: dict[str, Dropout]) -> Tensor:
        """Maps pooled slides (B, H) to logits (B, Y): LayerNorm - Linear - ReLU - Dropout - Linear."""
        hidden_BF = F.relu(self.classifier1(self.classifier_norm(pooled_BH)))
        logits_BY: Tensor = self.classifier2(apply_dropout(hidden_BF, dropout.get("classifier")))
        return logits_BY
