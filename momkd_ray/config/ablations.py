"""The named variants of MoMKD that a comparison may train, each a set of dotted keys (docs/compare.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Ablation:
    """One variant.

    Attributes:
        says: what it changes, in a sentence.
        keys: values by dotted key.
        needs: values by dotted key without which the variant would change nothing.
        needs_omics: whether it would change nothing in a cohort without omics.
    """

    says: str
    keys: Mapping[str, Any]
    needs: Mapping[str, Any] = field(default_factory=dict)
    needs_omics: bool = False


_ATTENTION = {"model.pooling": "attention"}
_EMA = {"memory.rule": "ema"}

PUBLISHED = "published"

ABLATIONS: Mapping[str, Ablation] = {
    PUBLISHED: Ablation(
        "The paper's network and the authors' training, as `jobs/configs/published.yaml`.",
        {
            "omics.teacher": "none",
            "model.pooling": "attention",
            "model.hidden": 512,
            "loss.task": 0.5,
            "loss.align_slide": 0.2,
            "loss.align_omics": 0.05,
            "loss.reconstruction": 0.05,
            "loss.memory": 0.1,
            "memory.rule": "ema",
            "memory.components": 16,
            "memory.momentum": 0.99,
            "train.epochs": 100,
            "train.lr": 2e-4,
            "train.weight_decay": 1e-4,
            "train.schedule": "plateau",
            "train.keep": "best",
            "train.refit": False,
            "train.balanced": True,
            "train.bags_per_step": 1,
        },
    ),
    "no_distillation": Ablation(
        "No omics at all: the slide branch learns from labels.", {"omics.fraction": 0}, needs_omics=True
    ),
    "no_teacher": Ablation(
        "The slide branch learns labels in place of the cross-fitted teacher's probabilities; omics still act through "
        "the memory.",
        {"omics.teacher": "none"},
        needs_omics=True,
    ),
    "slide_alignment_only": Ablation(
        "Slides are aligned with the memory, omics are not; omics still move the memory and are reconstructed.",
        {"loss.align_omics": 0},
        needs_omics=True,
    ),
    "omics_alignment_only": Ablation(
        "Omics are aligned with the memory, slides are not.", {"loss.align_slide": 0}, needs_omics=True
    ),
    "no_alignment": Ablation(
        "Neither slides nor omics are aligned with the memory.", {"loss.align_slide": 0, "loss.align_omics": 0}
    ),
    "no_reconstruction": Ablation(
        "Omics are not reconstructed from their embedding.", {"loss.reconstruction": 0}, needs_omics=True
    ),
    "memory_ema": Ablation("The memory moves by momentum (the paper's rule).", {"memory.rule": "ema"}),
    "memory_gradient": Ablation(
        "The memory is a parameter, moved by the optimiser (the released code's rule).", {"memory.rule": "gradient"}
    ),
    "memory_fixed": Ablation("The memory stays as it is initialised.", {"memory.rule": "fixed"}),
    "momentum_0.9": Ablation("The memory forgets ten times faster than by default.", {"memory.momentum": 0.9}, _EMA),
    "momentum_0.999": Ablation("The memory forgets ten times slower.", {"memory.momentum": 0.999}, _EMA),
    "components_1": Ablation("One component of each class; pooling by components is then the mean.",
                             {"memory.components": 1}),
    "components_4": Ablation("Four components of each class.", {"memory.components": 4}),
    "components_32": Ablation("32 components of each class.", {"memory.components": 32}),
    "attention_pooling": Ablation(
        "The paper's pooling: memory-guided attention over the patch graph in place of one vector for each component; "
        "the recipe stays.",
        _ATTENTION,
    ),
    "no_graph": Ablation("No messages between neighbouring patches.", {"model.graph": False}, _ATTENTION),
    "learned_attention": Ablation(
        "Gated attention with weights of its own in place of attention guided by the memory.",
        {"model.attention": "learned"},
        _ATTENTION,
    ),
}  # fmt: skip
"""Name -> variant. `no_graph` and `learned_attention` are of pooling by attention, so of the published network."""
