"""Configuration of the method: network, memory, losses and training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from momkd_ray.config.dotted_keys import Section
from momkd_ray.config.model_names import DEFAULT_MODEL, MODELS
from momkd_ray.config.values import Positive, Seed, Share


def registered_model(name: str) -> str:
    """Returns the name of a registered model, or raises for any other."""
    if name not in MODELS:
        raise ValueError(f"it is {name!r}, but must be one of {', '.join(MODELS)}")
    return name


class ModelConfig(Section):
    """The network and its sizes (docs/method.md §2)."""

    name: Annotated[str, AfterValidator(registered_model)] = Field(
        default=DEFAULT_MODEL,
        description="The network: `momkd`, or a baseline that is trained in the same way, such as `mean_pool`, "
        "`gated_abmil` or `transmil`; an unknown name lists them all. Baselines use the sizes that they have a part "
        "for.",
    )
    pooling: Literal["components", "attention"] = Field(
        default="components",
        description="How `momkd` pools a slide: `components` makes one vector for each of `memory.components` tissue "
        "components, found by clustering the training patches; `attention` is the paper's memory-guided attention over "
        "a patch graph. The default is ours, chosen on two cohorts (see benchmarks).",
    )
    attention: Literal["memory", "learned"] = Field(
        default="memory",
        description="The attention of pooling by `attention`: `memory` is the paper's, guided by the memory; `learned` "
        "is gated attention with weights of its own (ABMIL's), for comparison. The default is the paper's.",
    )
    graph: bool = Field(
        default=True,
        description="Whether pooling by `attention` passes messages over the patch graph; without, each patch is "
        "encoded alone by layers of the same widths, for comparison. The default is the paper's.",
    )
    pooling_temperature: Annotated[float, Field(gt=0)] = Field(
        default=4.0,
        description="How far from a tissue component's centre patches count for it: the weight falls by exp(-d / 2 T), "
        "with d the squared distance in standard deviations. Of pooling by `components`. The default is ours.",
    )
    hidden: Positive = Field(
        default=128,
        description="The width of the slide encoder, a multiple of `heads`. The default is ours; the released one is "
        "512.",
    )
    heads: Positive = Field(
        default=2, description="The number of heads of the graph attention. The default is the released one."
    )
    shared: Positive = Field(
        default=64,
        description="The width of the space shared by slides, omics and memory. The default is the released one.",
    )
    dropout: Share = Field(
        default=0.5, description="The dropout rate of the slide branch. The default is the released one."
    )
    omics_hidden: Positive = Field(
        default=512, description="The width of the omics encoder's hidden layer. The default is the released one."
    )
    omics_embedding: Positive = Field(
        default=512, description="The width of the omics embedding. The default is the released one."
    )
    omics_dropout: Share = Field(
        default=0.25, description="The dropout rate of the omics encoder. The default is the released one."
    )
    classifier_hidden: Positive = Field(
        default=128, description="The width of the classifier's hidden layer. The default is the released one."
    )

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> ModelConfig:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        return self


class MemoryConfig(Section):
    """The class memory and its update (docs/method.md §4)."""

    rule: Literal["ema", "gradient", "fixed"] = Field(
        default="ema",
        description="The update of the memory: `ema` by momentum (the paper's), `gradient` by the optimiser (the "
        "released code's), or `fixed` after initialisation.",
    )
    components: Positive = Field(
        default=16, description="The number of memory components of each class. The default is the released one."
    )
    momentum: Share = Field(
        default=0.99,
        description="The share of its statistics that the memory keeps in a step, under `ema`. The default is ours.",
    )
    sharpness: Annotated[float, Field(gt=0)] = Field(
        default=10.0,
        description="The concentration κ of the responsibilities of components for evidence, under `ema`. The default "
        "is ours.",
    )
    reseed: Share = Field(
        default=0.05,
        description="A component whose mass falls below this share of its class's mean is initialised again from "
        "evidence, under `ema`. The default is ours.",
    )
    init_patches: Positive = Field(
        default=10_000,
        description="The largest number of projected patches of each class for the k-means that initialises the "
        "memory. The default is ours; the authors' run takes 50,000.",
    )
    init_iterations: Positive = Field(
        default=20, description="The number of iterations of that k-means. The default is the released one."
    )


class LossConfig(Section):
    """Weights and constants of the losses (docs/method.md §3)."""

    task: float = Field(
        default=1.0,
        description="The weight of the classification losses. The default is ours; the released one is 0.5.",
    )
    align_slide: float = Field(
        default=0.05,
        description="The weight of the slides' alignment with the memory. The default is ours; the released one is "
        "0.2.",
    )
    align_omics: float = Field(
        default=0.05, description="The weight of the omics' alignment with the memory. The default is the released one."
    )
    reconstruction: float = Field(
        default=0.05,
        description="The weight of the omics' reconstruction. The default is the released one; the paper says 0.01.",
    )
    memory: float = Field(
        default=0.02,
        description="The weight of the memory's losses. The default is ours; the released one is 0.1.",
    )
    margin: float = Field(
        default=0.3, description="The margin of the soft-angle alignment, a cosine. The default is the released one."
    )
    sharpness: float = Field(
        default=20.0, description="The sharpness of the soft-angle alignment. The default is the released one."
    )
    aggregation: float = Field(
        default=5.0,
        description="The inverse temperature of the log-sum-exp over a class's components. The default is the released "
        "one.",
    )
    orthogonality: float = Field(
        default=10.0,
        description="The weight of the components' orthogonality within the memory's losses. The default is the "
        "released one.",
    )


class TrainConfig(Section):
    """The training of one fold (docs/method.md §5)."""

    fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="The share of each class's training patients that train, drawn by `train.seed`; a smaller share "
        "is part of a larger one.",
    )
    epochs: Positive = Field(
        default=20,
        description="The number of epochs, or with `keep: best` the largest. The default is ours; the released one is "
        "100.",
    )
    lr: Annotated[float, Field(gt=0)] = Field(
        default=1e-3,
        description="The learning rate of AdamW: the highest under `schedule: one_cycle`, the first under `plateau`. "
        "The default is ours; the released one is 2e-4.",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.1, description="The weight decay of AdamW. The default is ours; the released one is 1e-4."
    )
    schedule: Literal["one_cycle", "plateau"] = Field(
        default="one_cycle",
        description="The learning rate over time: `one_cycle` rises and falls once over all steps; `plateau` falls "
        "when the validation AUC does not rise (released). The default is ours.",
    )
    keep: Literal["last", "best"] = Field(
        default="last",
        description="The weights of the fold's model: those of the `last` epoch, or of the epoch with the `best` "
        "validation AUC (of a number: Spearman's correlation), after which training may stop early (released). The "
        "default is ours.",
    )
    refit: bool = Field(
        default=True,
        description="Whether the fold's model is trained again on training and validation patients together, after "
        "the validation patients have given the threshold. It needs `keep: last` and `schedule: one_cycle`. The "
        "default is ours; the released code does not.",
    )
    bags_per_step: Positive = Field(
        default=32,
        description="The number of bags in a step of the optimiser, of all workers together. The default is ours; the "
        "released one is 1.",
    )
    clip_norm: Annotated[float, Field(gt=0)] = Field(
        default=32.0,
        description="The largest norm of the gradient. The default is that of the released program, `--gc 32`, which "
        "it uses as a norm; the authors' run script sets 16.",
    )
    lr_factor: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2,
        description="The factor of the learning rate on a plateau of the validation AUC, under `schedule: plateau`. "
        "The default is the released one.",
    )
    lr_patience: Annotated[int, Field(ge=0)] = Field(
        default=5,
        description="The number of epochs without a higher validation AUC before the learning rate is lowered. The "
        "default is the released one.",
    )
    patience: Positive = Field(
        default=10,
        description="The number of epochs without a higher validation AUC before training stops, under `keep: best`. "
        "The default is ours: the released program's is 20, after at least 50 epochs, and the authors' run script sets "
        "1.",
    )
    balanced: bool = Field(
        default=False,
        description="Whether bags are drawn with replacement, both classes equally often. The default is ours; the "
        "released code does.",
    )
    patches_per_pass: Positive = Field(
        default=16_384,
        description="Bags of one step share a forward pass up to this number of patches. It bounds memory and "
        "changes no result beyond rounding. The default is ours.",
    )
    seed: Seed = Field(default=1, description="The seed of weights, sampling and dropout. The default is ours.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="The precision of the matrix products; `auto` takes `bf16` if the GPU or CPU computes in "
        "it, or else `fp32`.",
    )
    deterministic: bool = Field(
        default=False,
        description="Whether results agree to the last bit from run to run, and after a resume, for a given number of "
        "workers. It is slower on GPUs and with many workers, so it is off by default.",
    )

    @model_validator(mode="after")
    def _refit_has_an_end(self) -> TrainConfig:
        if self.refit and (self.keep, self.schedule) != ("last", "one_cycle"):
            raise ValueError("refit needs keep: last and schedule: one_cycle; set train.refit to false")
        return self
