"""One optimisation step over a global batch, however many workers divide it (method 3, 4 and 5)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from momkd_ray.bags.batch import BagBatch
from momkd_ray.config import TrainConfig
from momkd_ray.errors import InputError
from momkd_ray.model.momkd import MoMKD
from momkd_ray.train.sync import Collective

LOSS_NAMES = ("ce", "memory", "align_slide", "align_omics", "reconstruction", "total")
OMICS_LOSSES = ("align_omics", "reconstruction")  # averaged over the bags that have omics


@dataclass(frozen=True)
class StepOutcome:
    """What this rank's bags of a step gave; tensors stay on the device."""

    sums_L: Tensor  # each of LOSS_NAMES summed over the bags
    bags: int
    bags_with_omics: int
    bag_ids: tuple[str, ...]
    positive_B: Tensor  # probability of class 1


class Stepper:
    """Model, optimiser and memory moved together, one global batch at a time.

    Gradients are those of the mean of the bags' losses over the global batch: every rank scales its sum by
    world / global bags, and DDP averages over ranks.
    """

    def __init__(self, model: MoMKD, config: TrainConfig, collective: Collective, device: torch.device) -> None:
        self.model = model.to(device)
        self.config, self.collective, self.device = config, collective, device
        self.optimiser = torch.optim.AdamW(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        model.memory.sync = collective.sum
        self.half = uses_bf16(config.precision, device)
        # the memory is synced by its own all-reduce, so DDP has no buffers to broadcast
        self.network = (
            DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
            if collective.world > 1
            else model
        )

    def step(self, batches: Sequence[BagBatch], global_bags: int, filler: BagBatch | None = None) -> StepOutcome:
        """Move everything by one step.

        Args:
            batches: this rank's bags of the step, one batch a pass; empty where the step has fewer bags than ranks.
            global_bags: the bags of all ranks in this step.
            filler: any labelled bag, needed where `batches` is empty: it takes part with weight 0.
        """
        self.model.train()
        self.optimiser.zero_grad(set_to_none=True)
        outcomes = [
            self._backward(batch, self.collective.world / global_bags, last=i == len(batches) - 1)
            for i, batch in enumerate(batches)
        ]
        if not batches:
            assert filler is not None, "a rank without bags needs a filler to take part in the all-reduce"
            self._backward(filler, 0.0, last=True)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimiser.step()
        evidence = [e for _, e, _ in outcomes] or [torch.zeros(0, self.model.model_config.shared, device=self.device)]
        classes = [y for _, _, y in outcomes] or [torch.zeros(0, dtype=torch.int64, device=self.device)]
        self.model.memory.update(torch.cat(evidence), torch.cat(classes), sum(len(b) for b in batches))
        return self._joined([outcome for outcome, _, _ in outcomes])

    def _backward(self, batch: BagBatch, scale: float, last: bool) -> tuple[StepOutcome, Tensor, Tensor]:
        batch = batch.to(self.device)
        # only the last pass of a step exchanges gradients
        quiet = not last and isinstance(self.network, DistributedDataParallel)
        with self.network.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                output = self.network(batch)
            terms = self.model.losses(output, batch)
            loss = terms["total"].sum() * scale
            if batch.omics_RG is None:
                # a parameter that the pass left alone still has a gradient, zero, on every rank alike
                loss = loss + sum((p.sum() * 0.0 for p in self.model.omics_parameters()), loss.new_zeros(()))
            torch.autograd.backward(loss)
        evidence, classes = self.model.evidence(output, batch)
        outcome = StepOutcome(
            sums_L=torch.stack([terms[name].detach().float().sum() for name in LOSS_NAMES]),
            bags=len(batch),
            bags_with_omics=0 if batch.omics_RG is None else len(batch.omics_RG),
            bag_ids=batch.bag_ids,
            positive_B=output.logits_BY.detach().float().softmax(-1)[:, 1],
        )
        return outcome, evidence, classes

    def _joined(self, outcomes: Sequence[StepOutcome]) -> StepOutcome:
        return StepOutcome(
            sums_L=sum((o.sums_L for o in outcomes), torch.zeros(len(LOSS_NAMES), device=self.device)),
            bags=sum(o.bags for o in outcomes),
            bags_with_omics=sum(o.bags_with_omics for o in outcomes),
            bag_ids=tuple(b for o in outcomes for b in o.bag_ids),
            positive_B=torch.cat([o.positive_B for o in outcomes] or [torch.zeros(0, device=self.device)]),
        )


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bf16: where the GPU has it, never on a CPU (performance: five times slower)."""
    capable = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if precision == "bf16" and not capable:
        raise InputError("train.precision is bf16, but this device does not compute in it; use auto or fp32")
    return capable and precision != "fp32"


def mean_losses(outcomes: Sequence[StepOutcome], collective: Collective, device: torch.device) -> dict[str, float]:
    """Each loss term's mean over the bags of all ranks (the omics terms': over those with omics), one all-reduce."""
    sums_L = sum(
        (o.sums_L.double() for o in outcomes),
        torch.zeros(len(LOSS_NAMES), dtype=torch.float64, device=device),
    )
    counts = sums_L.new_tensor([sum(o.bags for o in outcomes), sum(o.bags_with_omics for o in outcomes)])
    packed = collective.sum(torch.cat([sums_L, counts])).tolist()
    bags, with_omics = packed[-2:]
    return {
        f"loss_{name}": value / (with_omics if name in OMICS_LOSSES else bags)
        for name, value in zip(LOSS_NAMES, packed, strict=False)
        if bags and (with_omics or name not in OMICS_LOSSES)
    }
