"""One optimisation step over a global batch, for any number of workers (docs/method.md §3 to §5)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from momkd_ray.batches.collate import BagBatch
from momkd_ray.config.sections import TrainConfig
from momkd_ray.errors import InputError
from momkd_ray.model.adamw import AdamW
from momkd_ray.model.interface import MILModel
from momkd_ray.model.kernels.linear import multiplies_bf16
from momkd_ray.train.collectives import Collective, mean_in_rank_order
from momkd_ray.train.cuda_graphs import CudaGraphCache


class Stepper:
    """Updates model and memory by one global batch at a time.

    The gradient is that of the mean loss of the global batch's bags: every rank scales the sum over its bags by world /
    global bags, and DDP averages over ranks.

    Args:
        model: moved to `device` here.
        config: the configuration's `train` section.
        collective: communication with the other workers.
        device: the worker's device.
    """

    def __init__(self, model: MILModel, config: TrainConfig, collective: Collective, device: torch.device) -> None:
        self.model = model.to(device)
        self.config, self.collective, self.device = config, collective, device
        self.optimiser = AdamW(
            model.parameters(),
            lr=config.lr,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
        if model.memory is not None:
            model.memory.sync = collective.sum
        self.dtype = torch.float32 if model.full_precision else dtype_of_products(config.precision, device)
        self.network: torch.nn.Module = model
        if collective.world > 1:
            # the memory is synced by its own all-reduce, so DDP has no buffers to broadcast
            self.network = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
            if config.deterministic:
                self.network.register_comm_hook(None, lambda _, bucket: mean_in_rank_order(bucket.buffer()))
        self.recorded = CudaGraphCache(lambda batch: self._update([batch], len(batch)), device, model)

    def load_optimiser(self, state: dict[str, Any]) -> None:
        """Restores the optimiser's state, saved on any device."""
        self.optimiser.load_state_dict(state)
        for group in self.optimiser.param_groups:
            group["capturable"] = self.device.type == "cuda"

    def step(self, batches: Iterable[BagBatch], global_bags: int, passes: int = 1, *, fills_in: bool = False) -> Tensor:
        """Takes one optimisation step, and moves the memory.

        Args:
            batches: this rank's bags, a batch for each forward pass; each is asked for when it is needed.
            global_bags: number of bags of all ranks in this step.
            passes: number of the batches.
            fills_in: whether the step has no bag for this rank: `batches` is any labelled bag, with weight 0.

        Returns:
            (B, losses + predicted classes) for this rank's bags in their order, on the device: each of `loss_names`,
            and the probability of class 1 or, of more than two classes, those of all.
        """
        self.model.train()
        # a recording holds the learning rate, which one cycle changes in every step
        if self.collective.world == 1 and passes == 1 and self.config.schedule != "one_cycle":
            (batch,) = batches
            batch = batch.to(self.device, batch.features_PD.dtype)
            return self.recorded(batch, settings=self.optimiser.param_groups[0]["lr"])
        return self._update(batches, global_bags, passes, fills_in=fills_in)

    def _update(
        self, batches: Iterable[BagBatch], global_bags: int, passes: int = 1, *, fills_in: bool = False
    ) -> Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        scale = 0.0 if fills_in else self.collective.world / global_bags
        outcomes, bags = [], 0
        for number, batch in enumerate(batches, 1):
            outcome = self._backward(batch, scale, last=number == passes)
            if not fills_in:
                outcomes.append(outcome)
                bags += len(batch)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimiser.step()
        if self.model.memory is not None:
            evidence = [e for _, (e, _) in outcomes] or [torch.zeros(0, self.model.model_config.shared)]
            classes = [y for _, (_, y) in outcomes] or [torch.zeros(0, dtype=torch.int64)]
            evidence_NS, classes_N = torch.cat(evidence).to(self.device), torch.cat(classes).to(self.device)
            self.model.memory.update(evidence_NS, classes_N, bags)
        predicted = 1 if self.model.classes == 2 else self.model.classes
        empty = torch.zeros(0, len(self.model.loss_names) + predicted, device=self.device)
        return torch.cat([empty, *(values_BV for values_BV, _ in outcomes)])

    def _backward(self, batch: BagBatch, scale: float, last: bool) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Computes the gradients of one micro-batch; returns its losses, and the memory's evidence with its classes."""
        batch = batch.to(self.device, self.dtype)
        # only the last micro-batch of a step exchanges gradients
        accumulate = not last and isinstance(self.network, DistributedDataParallel)
        with self.network.no_sync() if accumulate else contextlib.nullcontext():  # type: ignore[operator]
            output = self.network(batch)
            terms = self.model.losses(output, batch)
            loss = terms["total"].sum() * scale
            if batch.omics_RG is None:
                # DDP needs a gradient of every parameter on every rank, here zero
                loss = loss + sum((p.sum() * 0.0 for p in self.model.omics_parameters()), loss.new_zeros(()))
            torch.autograd.backward(loss)
        empty = torch.zeros(0, device=self.device)
        evidence = (empty, empty) if self.model.memory is None else self.model.evidence(output, batch)
        p_BY = output.logits_BY.detach().softmax(-1)
        predicted = [p_BY[:, 1]] if self.model.classes == 2 else p_BY.unbind(1)
        values_BV = torch.stack([*(terms[name].detach() for name in self.model.loss_names), *predicted], dim=1)
        return values_BV, evidence


def dtype_of_products(precision: str, device: torch.device) -> torch.dtype:
    """Chooses the type of the matrix products of training.

    Raises:
        InputError: `train.precision` is bf16 and the device has no instructions for it.
    """
    capable = multiplies_bf16(device)
    if precision == "bf16" and not capable:
        raise InputError("train.precision is bf16, but this device does not compute in it; set train.precision to auto")
    return torch.bfloat16 if capable and precision != "fp32" else torch.float32
