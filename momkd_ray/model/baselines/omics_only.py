"""The omics alone, also of the tested patients: the upper reference of distillation."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from momkd_ray.batches.collate import BagBatch
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model.baselines.omics_classifier import OmicsClassifier, has_omics
from momkd_ray.model.baselines.slide_classifier import SlideOutput
from momkd_ray.model.dropout import Layers
from momkd_ray.model.interface import MILModel


class OmicsOnly(MILModel):
    """Classifies a patient's omics and looks at no patch.

    A patient without omics does not train it, and is predicted from the mean omics of the training patients, 0 after
    scaling: the same for all of them.
    """

    uses_omics = True
    needs_omics_to_predict = True

    def __init__(
        self, model: ModelConfig, memory: MemoryConfig, loss: LossConfig, *, width: int, genes: int, classes: int = 2
    ) -> None:
        super().__init__(model, memory, loss, width=width, genes=genes, classes=classes)
        self.omics = OmicsClassifier(model, genes, classes)

    def forward(self, batch: BagBatch) -> SlideOutput:
        """Classifies the omics of the bags; there is no attention."""
        dropout = self.draw_dropout(batch)
        absent_1G = next(self.parameters()).new_zeros(1, self.genes)
        mean_BY = self.omics(absent_1G)[1].expand(len(batch), -1)
        if batch.omics_RG is None:
            return SlideOutput(mean_BY, None)
        assert batch.omics_bag_R is not None
        logits_RY = self.omics(batch.omics_RG, dropout.get("omics_encoder"))[1]
        return SlideOutput(mean_BY.index_copy(0, batch.omics_bag_R, logits_RY), None)

    def losses(self, output: SlideOutput, batch: BagBatch) -> dict[str, Tensor]:
        """Computes the cross-entropy per bag (B,), 0 for a bag without omics."""
        assert batch.labels_B is not None, "losses need labels"
        ce_B = F.cross_entropy(output.logits_BY, batch.labels_B, reduction="none") * has_omics(batch)
        return {"ce": ce_B, "total": ce_B}

    def dropout_layers(self, batch: BagBatch) -> Layers:
        """Returns the dropout of the omics encoder."""
        return self.omics.dropout_layers(batch)
