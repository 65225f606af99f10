"""MoMKD: a slide encoder and an omics encoder that meet only in the class memory (method 2 and 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch_geometric.utils import softmax

from momkd_ray.batches.collate import BagBatch, to_device_async
from momkd_ray.batches.tiles import Tile
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model import losses
from momkd_ray.model.dropout import Dropout, Layers, apply_dropout, draw_dropout, dropout_pieces
from momkd_ray.model.gatv2 import Masks, SlideEncoder
from momkd_ray.model.memory import MomentumMemory
from momkd_ray.model.omics import OmicsMLP

CLASSES = 2


@dataclass(frozen=True)
class MoMKDOutput:
    """What one pass gives for B bags with P patches, R of them with omics."""

    logits_BY: Tensor
    attention_P: Tensor  # sums to 1 over each bag
    patches_PS: Tensor  # z, unit norm
    slide_BS: Tensor  # w, unit norm
    components_YKS: Tensor  # c, unit norm: the memory that the pass met
    omics_RS: Tensor | None = None  # r, unit norm
    reconstruction_RG: Tensor | None = None


class MoMKD(nn.Module):
    """The whole network.

    Args:
        model, memory, loss: the configuration's sections.
        width: D, the width of the patch features.
        genes: G, the number of omics inputs; 0 builds no omics branch.
    """

    def __init__(self, model: ModelConfig, memory: MemoryConfig, loss: LossConfig, *, width: int, genes: int) -> None:
        super().__init__()
        self.model_config, self.memory_config, self.loss_config = model, memory, loss
        self.width, self.genes = width, genes
        self.slide_encoder = SlideEncoder(width, model.hidden, model.heads, model.dropout)
        self.project_patch = nn.Linear(model.hidden, model.shared)
        self.project_slide = nn.Linear(model.hidden, model.shared)
        if genes:
            hidden, embedding = model.omics_hidden, model.omics_embedding
            self.omics_encoder = OmicsMLP(genes, hidden, embedding)
            self.omics_decoder = OmicsMLP(embedding, hidden, genes)
            self.project_omics = nn.Linear(embedding, model.shared)
        self.memory = MomentumMemory(memory, CLASSES, model.shared)
        self.classifier_norm = nn.LayerNorm(model.hidden)
        self.classifier1 = nn.Linear(model.hidden, model.classifier_hidden)
        self.classifier2 = nn.Linear(model.classifier_hidden, CLASSES)
        self.log_tau = nn.Parameter(torch.tensor(math.log(0.2)))

    def forward(self, batch: BagBatch) -> MoMKDOutput:
        """One pass over a batch; the omics branch runs for the bags that bring omics.

        In training mode the masks of dropout come from `batch.seeds`.
        """
        noise, components_YKS = self._noise(batch), self.memory.components
        encoded = self._by_tiles if batch.tiles else self._whole
        patches_PS, attention_P, pooled_BH = encoded(batch, Masks.of(noise), components_YKS.detach())
        omics_RS, reconstruction_RG = self._omics(batch, noise)
        return MoMKDOutput(
            logits_BY=self._classify(pooled_BH, noise),
            attention_P=attention_P,
            patches_PS=patches_PS,
            slide_BS=F.normalize(self.project_slide(pooled_BH), dim=-1),
            components_YKS=components_YKS,
            omics_RS=omics_RS,
            reconstruction_RG=reconstruction_RG,
        )

    def losses(self, output: MoMKDOutput, batch: BagBatch) -> dict[str, Tensor]:
        """Every loss term a bag, (B,): ce, memory, align_slide, align_omics, reconstruction and their weighted total.

        A bag without omics has 0 for the two omics terms.
        """
        assert batch.labels_B is not None, "losses need labels"
        c, labels_B = self.loss_config, batch.labels_B
        components_YKS = output.components_YKS
        angle = (c.aggregation, c.sharpness, c.margin)
        committed_B = losses.commitment(
            output.patches_PS, batch.bag_of_patch_P, labels_B, self.memory.raw_YKS, batch.patches_B
        )
        terms = {
            "ce": F.cross_entropy(output.logits_BY, labels_B, reduction="none"),
            "memory": committed_B + c.orthogonality * losses.orthogonality(components_YKS)[labels_B],
            "align_slide": losses.soft_angle(output.slide_BS, labels_B, components_YKS, *angle),
            "align_omics": torch.zeros_like(committed_B),
            "reconstruction": torch.zeros_like(committed_B),
        }
        if output.omics_RS is not None and output.reconstruction_RG is not None:
            assert batch.omics_bag_R is not None and batch.omics_RG is not None
            rows_R = batch.omics_bag_R
            align_R = losses.soft_angle(output.omics_RS, labels_B[rows_R], components_YKS, *angle)
            error_R = (output.reconstruction_RG - batch.omics_RG).square().mean(dim=1)
            terms["align_omics"] = terms["align_omics"].index_add(0, rows_R, align_R)
            terms["reconstruction"] = terms["reconstruction"].index_add(0, rows_R, error_R)
        weights = {
            "ce": c.task,
            "memory": c.memory,
            "align_slide": c.align_slide,
            "align_omics": c.align_omics,
            "reconstruction": c.reconstruction,
        }
        return terms | {"total": sum((weights[n] * t for n, t in terms.items()), torch.zeros_like(committed_B))}

    def evidence(self, output: MoMKDOutput, batch: BagBatch) -> tuple[Tensor, Tensor]:
        """What a step tells the memory: the bags' slide and omics vectors (N, S), detached, and their classes (N,)."""
        assert batch.labels_B is not None
        vectors, labels = [output.slide_BS.detach()], [batch.labels_B]
        if output.omics_RS is not None and batch.omics_bag_R is not None:
            vectors.append(output.omics_RS.detach())
            labels.append(batch.labels_B[batch.omics_bag_R])
        return torch.cat(vectors), torch.cat(labels)

    @torch.no_grad()
    def predict(self, batch: BagBatch) -> tuple[Tensor, Tensor]:
        """Class probabilities (B, Y) and attention (P,), histology alone, in evaluation mode."""
        assert not self.training, "predict wants eval()"
        output = self(batch)
        return output.logits_BY.softmax(dim=-1), output.attention_P

    @torch.no_grad()
    def project(self, features_PD: Tensor, tile: Tile) -> Tensor:
        """z (Q, S) of the patches of a tile, in evaluation mode; all else of the features is left alone."""
        assert not self.training, "project wants eval()"
        return F.normalize(self.project_patch(self.slide_encoder.tile(features_PD, tile, Masks())), dim=-1)

    def omics_parameters(self) -> list[nn.Parameter]:
        """The parameters that a pass without any omics does not touch."""
        modules = (self.omics_encoder, self.omics_decoder, self.project_omics) if self.genes else ()
        return [p for module in modules for p in module.parameters()]

    def dropout_layers(self, batch: BagBatch) -> Layers:
        """Whose rows dropout draws for."""
        config = self.model_config
        layers = {**self.slide_encoder.dropout_layers(batch), "classifier": ([1] * len(batch), config.dropout)}
        if self.genes and batch.omics_RG is not None:
            layers |= dict.fromkeys(("omics_encoder", "omics_decoder"), (batch.omics_per_bag, config.omics_dropout))
        return layers

    def _noise(self, batch: BagBatch) -> dict[str, Dropout]:
        """Every layer's dropout; of none where none is wanted."""
        if not self.training or self.model_config.dropout == self.model_config.omics_dropout == 0:
            return {}
        assert batch.seeds is not None, "training with dropout needs a seed for every bag"
        layers, pieces_L4 = self.dropout_layers(batch), batch.pieces_L4
        if pieces_L4 is None:
            pieces_L4 = to_device_async(dropout_pieces(batch.seeds, layers), batch.features_PD.device)
        return draw_dropout(pieces_L4, layers)

    def _whole(self, batch: BagBatch, masks: Masks, components_YKS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (P, S), a (P,) and the pooled slide vectors V (B, H)."""
        context_PH = self.slide_encoder(batch, masks)
        patches_PS, score_P = self.memory_guided_scores(context_PH, components_YKS)
        # a row a bag costs little beside its patches' encoding, and no bag's size need be known to the host
        own_BP = batch.bag_of_patch_P == torch.arange(len(batch), device=score_P.device)[:, None]
        attention_BP = torch.where(own_BP, score_P, -torch.inf).softmax(dim=1)
        return patches_PS, attention_BP.sum(0), attention_BP @ context_PH

    def _by_tiles(self, batch: BagBatch, masks: Masks, components_YKS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same, holding the intermediates of one tile at a time; for gradients each tile is computed twice."""

        def read(tile: Tile) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            context_QH = self.slide_encoder.tile(batch.features_PD, tile, masks)
            patches_QS, score_Q = self.memory_guided_scores(context_QH, components_YKS)
            highest = score_Q.detach().max()
            return patches_QS, score_Q, highest, (score_Q - highest).exp() @ context_QH

        def read_twice(tile: Tile) -> Any:
            # dropout does not draw from PyTorch's generators, so there is no state of theirs to bring back
            return checkpoint(read, tile, use_reentrant=False, preserve_rng_state=False)

        results = map(read_twice if torch.is_grad_enabled() else read, batch.tiles)
        patches, scores, highest, weighted = zip(*results, strict=True)
        place_P = torch.cat([tile.own_Q for tile in batch.tiles]).argsort()
        patches_PS, score_P = torch.cat(patches)[place_P], torch.cat(scores)[place_P]
        level_B = torch.stack([of_bag.logsumexp(0) for of_bag in torch.split(score_P, list(batch.patches_per_bag))])
        bags_T = to_device_async(torch.tensor([tile.bag for tile in batch.tiles]), level_B.device)
        share_T = (torch.stack(highest) - level_B[bags_T]).exp()
        pooled_BH = level_B.new_zeros(len(batch), self.model_config.hidden)
        pooled_BH = pooled_BH.index_add(0, bags_T, share_T[:, None] * torch.stack(weighted))
        return patches_PS, softmax(score_P, batch.bag_of_patch_P, num_nodes=len(batch)), pooled_BH

    def memory_guided_scores(self, context_PH: Tensor, components_YKS: Tensor) -> tuple[Tensor, Tensor]:
        """z (P, S), and how much nearer (P,) each is to class 1's memory than to class 0's, over tau."""
        patches_PS = F.normalize(self.project_patch(context_PH), dim=-1)
        similarity_PYK = torch.einsum("ps,yks->pyk", patches_PS, components_YKS)
        nearest_PY = similarity_PYK.amax(dim=-1)
        tau = self.log_tau.exp().clamp(0.01, 2.0)
        return patches_PS, (nearest_PY[:, 1] - nearest_PY[:, 0]) / tau

    def _omics(self, batch: BagBatch, noise: dict[str, Dropout]) -> tuple[Tensor | None, Tensor | None]:
        if not self.genes or batch.omics_RG is None:
            return None, None
        embedding_RE = self.omics_encoder(batch.omics_RG, noise.get("omics_encoder"))
        reconstruction_RG = self.omics_decoder(embedding_RE, noise.get("omics_decoder"))
        return F.normalize(self.project_omics(embedding_RE), dim=-1), reconstruction_RG

    def _classify(self, pooled_BH: Tensor, noise: dict[str, Dropout]) -> Tensor:
        hidden_BF = F.relu(self.classifier1(self.classifier_norm(pooled_BH)))
        logits_BY: Tensor = self.classifier2(apply_dropout(hidden_BF, noise.get("classifier")))
        return logits_BY
