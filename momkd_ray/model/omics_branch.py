"""The omics branch and the weighted losses that both MoMKD networks have (docs/method.md §2, §3).

Shapes: see `model/momkd.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from momkd_ray.batches.collate import BagBatch
from momkd_ray.model.dropout import Dropout, Layers
from momkd_ray.model.interface import MILModel
from momkd_ray.model.omics import OmicsMLP


class OmicsBranchModel(MILModel):
    """A model that encodes, aligns and reconstructs the omics of the bags that have them, beside its slide branch."""

    loss_names = ("ce", "memory", "align_slide", "align_omics", "reconstruction", "total")
    omics_loss_names = ("align_omics", "reconstruction")
    uses_omics = True
    uses_teacher = True

    def build_omics_branch(self) -> None:
        """Creates encoder, decoder and projection of the omics; nothing without omics."""
        if self.genes:
            sizes = self.model_config
            self.omics_encoder = OmicsMLP(self.genes, sizes.omics_hidden, sizes.omics_embedding)
            self.omics_decoder = OmicsMLP(sizes.omics_embedding, sizes.omics_hidden, self.genes)
            self.project_omics = nn.Linear(sizes.omics_embedding, sizes.shared)

    def encode_omics(self, batch: BagBatch, dropout: dict[str, Dropout]) -> tuple[Tensor | None, Tensor | None]:
        """Projects the omics, r (R, S), and reconstructs them (R, G); None for both where no bag has omics."""
        if not self.genes or batch.omics_RG is None:
            return None, None
        embedding_RE = self.omics_encoder(batch.omics_RG, dropout.get("omics_encoder"))
        reconstruction_RG = self.omics_decoder(embedding_RE, dropout.get("omics_decoder"))
        return F.normalize(self.project_omics(embedding_RE), dim=-1), reconstruction_RG

    def omics_dropout_layers(self, batch: BagBatch) -> Layers:
        """Returns the dropout layers of the omics branch with their rows per bag."""
        if not self.genes or batch.omics_RG is None:
            return {}
        rows = (batch.omics_per_bag, self.model_config.omics_dropout)
        return dict.fromkeys(("omics_encoder", "omics_decoder"), rows)

    def omics_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the omics branch, which a pass without omics does not use."""
        modules = (self.omics_encoder, self.omics_decoder, self.project_omics) if self.genes else ()
        return [p for module in modules for p in module.parameters()]

    def complete_losses(
        self, slide_terms: dict[str, Tensor], align_R: Tensor | None, reconstruction_RG: Tensor | None, batch: BagBatch
    ) -> dict[str, Tensor]:
        """Adds the two omics terms and the weighted total to the terms of the slide branch.

        Args:
            slide_terms: ce, memory and align_slide, each (B,).
            align_R: alignment loss of the bags with omics; None where no bag has them.
            reconstruction_RG: their decoded omics; None where no bag has them.
            batch: the bags.

        Returns:
            The terms of `loss_names`, each (B,); a bag without omics has 0 for the two omics terms.
        """
        c, zero_B = self.loss_config, torch.zeros_like(slide_terms["memory"])
        terms = slide_terms | {"align_omics": zero_B, "reconstruction": zero_B}
        if align_R is not None and reconstruction_RG is not None:
            assert batch.omics_bag_R is not None and batch.omics_RG is not None
            error_R = (reconstruction_RG - batch.omics_RG).square().mean(dim=1)
            terms["align_omics"] = zero_B.index_add(0, batch.omics_bag_R, align_R)
            terms["reconstruction"] = zero_B.index_add(0, batch.omics_bag_R, error_R)
        weights = {
            "ce": c.task,
            "memory": c.memory,
            "align_slide": c.align_slide,
            "align_omics": c.align_omics,
            "reconstruction": c.reconstruction,
        }
        return terms | {"total": sum((weights[name] * term for name, term in terms.items()), zero_B)}
