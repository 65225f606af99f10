"""A bundle of the default network with random components, for the benchmarks of what reads a model."""

from __future__ import annotations

import torch

from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model.bundle import BundleCard, save_bundle
from momkd_ray.model.component_momkd import ComponentMoMKD


def save_model(location: str, width: int) -> None:
    """Writes a bundle that reads features of this width."""
    torch.manual_seed(0)
    sections = {"model": ModelConfig(), "memory": MemoryConfig(), "loss": LossConfig()}
    model = ComponentMoMKD(**sections, width=width, genes=0)
    with torch.no_grad():
        model.direction_DJ.normal_(std=width**-0.5)
        model.centre_KJ.normal_()
        model.ridge_KD.normal_(std=0.01)
    card = BundleCard(
        label="LABEL", classes=("negative", "positive"), threshold=0.5, width=width, neighbors=8, genes=0, **sections
    )
    save_bundle(location, model, card)
