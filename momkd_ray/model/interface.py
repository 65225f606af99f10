"""The interface that MoMKD and its baselines share with training, prediction and model bundles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from momkd_ray.batches.collate import BagBatch, to_device_async
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model.dropout import Dropout, Layers, draw_dropout, dropout_pieces
from momkd_ray.model.explain import Readout
from momkd_ray.model.memory import MomentumMemory


class Output(Protocol):
    """The part of a forward pass's result that every model has."""

    @property
    def logits_BY(self) -> Tensor:
        """Class logits."""

    @property
    def attention_P(self) -> Tensor | None:
        """Attention, which sums to 1 over each bag; None for a model without one."""


@dataclass(frozen=True)
class TrainingSummary:
    """Statistics of a fold's training bags that a model may be initialised with, the same on every rank.

    Attributes:
        means_ND: mean patch feature of each training bag; empty unless the model has `needs_bag_means`.
        omics_NG: omics of the training patients that have them; empty without.
        omics_labels_N: their classes.
        seed: of this fold's weights.
    """

    means_ND: np.ndarray
    omics_NG: np.ndarray
    omics_labels_N: np.ndarray
    seed: int


class MILModel(nn.Module, ABC):
    """A classifier of bags, trained by `train/` and saved as a bundle.

    Attributes:
        loss_names: the terms of `losses` in the order in which they are recorded; the last is `total`.
        omics_loss_names: those that only bags with omics have.
        uses_omics: whether the model trains on omics; if not, no genes are selected.
        needs_omics_to_predict: whether validation and test patients' omics are read too (upper references).
        needs_bag_means: whether `prepare` needs the mean feature of every training bag.
        recordable: whether a step works on padded batches and can be recorded as a CUDA graph.
        contrasts_bags: whether a bag's loss depends on the other bags of its step, which then share one pass.
        uses_teacher: whether the losses follow the batch's targets, so that a cross-fitted teacher may set them.
        full_precision: whether features must reach the model in float32.
        numbers_per_thread: of features in a pass, from which another thread pays.
        memory: a momentum memory, moved after each step by `evidence`; None for most models.

    Args:
        model, memory, loss: sections of the configuration.
        width: D, the width of the patch features.
        genes: G, the number of omics inputs; 0 without omics.
        classes: Y.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("ce", "total")
    omics_loss_names: ClassVar[tuple[str, ...]] = ()
    uses_omics: ClassVar[bool] = False
    needs_omics_to_predict: ClassVar[bool] = False
    needs_bag_means: ClassVar[bool] = False
    recordable: ClassVar[bool] = False
    contrasts_bags: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False
    full_precision: ClassVar[bool] = False
    numbers_per_thread: ClassVar[int] = 2**17
    memory: MomentumMemory | None

    def __init__(
        self, model: ModelConfig, memory: MemoryConfig, loss: LossConfig, *, width: int, genes: int, classes: int = 2
    ) -> None:
        super().__init__()
        self.model_config, self.memory_config, self.loss_config = model, memory, loss
        self.width, self.genes, self.classes = width, genes, classes
        self.memory = None

    @abstractmethod
    def forward(self, batch: BagBatch) -> Any:
        """Computes one forward pass; in training mode the dropout masks follow from `batch.seeds`."""

    @abstractmethod
    def losses(self, output: Any, batch: BagBatch) -> dict[str, Tensor]:
        """Computes the terms of `loss_names`, one value per bag (B,) each."""

    def dropout_layers(self, batch: BagBatch) -> Layers:
        """Returns all dropout layers of a batch with their rows per bag."""
        return {}

    @torch.no_grad()
    def predict(self, batch: BagBatch) -> tuple[Tensor, Tensor | None]:
        """Predicts class probabilities (B, Y) and attention (P,), in evaluation mode."""
        assert not self.training, "predict wants eval()"
        output: Output = self(batch)
        return output.logits_BY.softmax(dim=-1), output.attention_P

    def readout(self, batch: BagBatch) -> Readout | None:
        """Returns how one bag is pooled and classified, for heatmaps; None for a model that has no attention.

        Called in evaluation mode without gradients; `classify` of the pooled bag gives the logits of `forward`.
        """
        return None

    def prepare(self, summary: TrainingSummary) -> None:
        """Initialises what depends on the training data; called once, before the first step of a fold."""
        return

    def evidence(self, output: Any, batch: BagBatch) -> tuple[Tensor, Tensor]:
        """Collects what the memory is moved by; only for a model that has one."""
        raise NotImplementedError

    def omics_parameters(self) -> list[nn.Parameter]:
        """Returns the trained parameters that a pass over bags without omics does not use."""
        return []

    def draw_dropout(self, batch: BagBatch) -> dict[str, Dropout]:
        """Draws the dropout of every layer; empty in evaluation mode."""
        layers = self.dropout_layers(batch) if self.training else {}
        if not any(p for _, p in layers.values()):
            return {}
        assert batch.seeds is not None, "training with dropout needs a seed for every bag"
        pieces_L4 = batch.pieces_L4
        if pieces_L4 is None:
            pieces_L4 = to_device_async(dropout_pieces(batch.seeds, layers), batch.features_PD.device)
        return draw_dropout(pieces_L4, layers)
