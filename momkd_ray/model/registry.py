"""Builds the network that `model.name` chooses."""

from __future__ import annotations

import importlib

from momkd_ray.config.model_names import COMPONENT_MOMKD, MODELS, pools_components
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model.interface import MILModel


def model_class(model: ModelConfig) -> type[MILModel]:
    """Imports the class of a configuration: of its name, and for `momkd` of its pooling."""
    by_component = pools_components(model.name, model.pooling)
    module, _, attribute = (COMPONENT_MOMKD if by_component else MODELS[model.name]).partition(":")
    found: type[MILModel] = getattr(importlib.import_module(module), attribute)
    return found


def build_model(
    model: ModelConfig, memory: MemoryConfig, loss: LossConfig, *, width: int, genes: int, classes: int = 2
) -> MILModel:
    """Builds the network of a configuration.

    Args:
        model: its section `model`, whose `name` chooses the class.
        memory: its section `memory`.
        loss: its section `loss`.
        width: D, the width of the patch features.
        genes: G, the number of omics inputs; 0 without omics.
        classes: Y.
    """
    return model_class(model)(model, memory, loss, width=width, genes=genes, classes=classes)
