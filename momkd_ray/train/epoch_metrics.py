"""Losses and predictions of an epoch's draws, one row per draw of any worker, so that all means have true counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from momkd_ray.batches.sampling import Step
from momkd_ray.model.interface import MILModel
from momkd_ray.train.class_auc import auc_of_classes
from momkd_ray.train.collectives import Collective
from momkd_ray.train.task import RoleBags

PROBABILITY = "p_1"
"""The last column of a row; before it are the draw's position in the epoch and the model's losses.

Of more than two classes, the last columns are `p_0`, `p_1` and so on.
"""


def empty_rows() -> Tensor:
    """Returns the rows (0, 0) of an epoch that has not begun."""
    return torch.zeros((0, 0), dtype=torch.float64)


def gather_rows(rows_NV: Tensor, positions: Sequence[int], values: Sequence[Tensor], collective: Collective) -> Tensor:
    """Appends the new rows of all ranks to the epoch's rows, sorted by position; the same on every rank.

    Args:
        rows_NV: the rows so far.
        positions: of this rank's new draws in the epoch.
        values: their values (B, values) in the same order, one tensor per step, on any device.
        collective: communication with the other workers.
    """
    own_NV = empty_rows()
    if positions:
        values_NV = torch.cat(list(values)).double().cpu()
        own_NV = torch.cat([torch.tensor(positions, dtype=torch.float64)[:, None], values_NV], dim=1)
    gathered = [torch.from_numpy(part) for part in collective.gather(own_NV.numpy())]
    parts = [part for part in (rows_NV, *gathered) if len(part)]
    if not parts:
        return rows_NV
    rows_NV = torch.cat(parts)
    return rows_NV[rows_NV[:, 0].argsort()]


class EpochRecord:
    """The rows of a finished epoch, joined with the bags that were drawn.

    Args:
        rows_NV: one row per draw.
        plan: the steps of the epoch.
        bags: the training bags.
        with_omics: patients that have omics.
        model: gives the names of the losses.
        classes: Y.
    """

    def __init__(
        self,
        rows_NV: Tensor,
        plan: Sequence[Step],
        bags: RoleBags,
        with_omics: set[str],
        model: MILModel | type[MILModel],
        classes: int = 2,
    ) -> None:
        self.loss_names, self.omics_loss_names = model.loss_names, model.omics_loss_names
        self.probabilities = [PROBABILITY] if classes == 2 else [f"p_{y}" for y in range(classes)]
        draws = [draw for step in plan for draw in step]
        assert rows_NV[:, 0].tolist() == [draw.position for draw in draws], "every draw has one row"
        self.table = pd.DataFrame(rows_NV[:, 1:].numpy(), columns=[*self.loss_names, *self.probabilities])
        self.table["step"] = np.repeat(np.arange(len(plan)), [len(step) for step in plan])
        self.table["y"] = [bags.y[draw.bag] for draw in draws]
        self.omics_N = np.array([bags.patients[draw.bag] in with_omics for draw in draws])

    def losses(self) -> dict[str, float]:
        """Computes the mean of each loss term over the draws; of the omics terms, over draws with omics if any."""
        means = {name: self.table.loc[self._counted(name), name].mean() for name in self.loss_names}
        return {f"loss_{name}": float(mean) for name, mean in means.items() if self._counted(name).any()}

    def steps(self, epoch: int) -> pd.DataFrame:
        """Tabulates the same for every step: epoch, step, bags, and the loss terms, empty where no bag had omics."""
        by_step = self.table.groupby("step")
        table = pd.DataFrame({"epoch": epoch, "bags": by_step.size()})
        for name in self.loss_names:
            table[f"loss_{name}"] = self.table[self._counted(name)].groupby("step")[name].mean()
        return table.reset_index()[["epoch", "step", "bags", *(f"loss_{name}" for name in self.loss_names)]]

    def auc(self) -> float | None:
        """Computes the AUC over the draws from the predictions of training; None if a class was not drawn.

        Of more than two classes it is the mean over classes of each against the rest.
        """
        if self.table["y"].nunique() < max(2, len(self.probabilities)):
            return None
        return auc_of_classes(self.table["y"].to_numpy(), self.table[self.probabilities].to_numpy())

    def _counted(self, name: str) -> np.ndarray:
        """Selects the draws over which a loss term is averaged."""
        return self.omics_N if name in self.omics_loss_names else np.ones(len(self.table), bool)
