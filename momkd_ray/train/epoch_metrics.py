"""What the draws of an epoch gave: a row a draw, gathered from all workers, so that every mean is of true counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from momkd_ray.batches.sampling import Step
from momkd_ray.model.momkd import CLASSES
from momkd_ray.train.collectives import Collective
from momkd_ray.train.step import LOSS_NAMES, OMICS_LOSSES
from momkd_ray.train.task import RoleBags

VALUES = (*LOSS_NAMES, "p_1")  # the columns of a row after the draw's place in the epoch


def no_rows() -> Tensor:
    """The rows (0, 1 + values) of an epoch that has not begun."""
    return torch.zeros((0, 1 + len(VALUES)), dtype=torch.float64)


def with_rows_of_all(
    rows_NV: Tensor, places: Sequence[int], values: Sequence[Tensor], collective: Collective
) -> Tensor:
    """The epoch's rows so far and those that each rank has had since, by place in the epoch; the same on every rank.

    Args:
        rows_NV: the rows so far.
        places: of this rank's draws since.
        values: theirs (B, values), in that order, a tensor a step, on any device.
        collective: of the ranks.
    """
    mine_NV = no_rows()
    if places:
        values_NV = torch.cat(list(values)).double().cpu()
        mine_NV = torch.cat([torch.tensor(places, dtype=torch.float64)[:, None], values_NV], dim=1)
    gathered = [torch.from_numpy(part) for part in collective.gather(mine_NV.numpy())]
    rows_NV = torch.cat([rows_NV, *gathered])
    return rows_NV[rows_NV[:, 0].argsort()]


class EpochRecord:
    """The rows of a whole epoch, read as what was drawn."""

    def __init__(self, rows_NV: Tensor, plan: Sequence[Step], bags: RoleBags, with_omics: set[str]) -> None:
        draws = [draw for step in plan for draw in step]
        assert rows_NV[:, 0].tolist() == [draw.position for draw in draws], "every draw has one row"
        self.table = pd.DataFrame(rows_NV[:, 1:].numpy(), columns=list(VALUES))
        self.table["step"] = np.repeat(np.arange(len(plan)), [len(step) for step in plan])
        self.table["y"] = [bags.y[draw.bag] for draw in draws]
        self.omics_N = np.array([bags.patients[draw.bag] in with_omics for draw in draws])

    def losses(self) -> dict[str, float]:
        """Each loss term's mean over the draws, the omics terms' over those with omics, if there are any."""
        means = {name: self.table.loc[self._counts(name), name].mean() for name in LOSS_NAMES}
        return {f"loss_{name}": float(mean) for name, mean in means.items() if self._counts(name).any()}

    def steps(self, epoch: int) -> pd.DataFrame:
        """The same for every step: epoch, step, bags, and a column a loss term, empty where no bag had omics."""
        by_step = self.table.groupby("step")
        table = pd.DataFrame({"epoch": epoch, "bags": by_step.size()})
        for name in LOSS_NAMES:
            table[f"loss_{name}"] = self.table[self._counts(name)].groupby("step")[name].mean()
        return table.reset_index()[["epoch", "step", "bags", *(f"loss_{name}" for name in LOSS_NAMES)]]

    def auc(self) -> float | None:
        """AUC over the draws as they were predicted while training; None if all were of a class."""
        if self.table["y"].nunique() < CLASSES:
            return None
        return float(roc_auc_score(self.table["y"], self.table["p_1"]))

    def _counts(self, name: str) -> np.ndarray:
        return self.omics_N if name in OMICS_LOSSES else np.ones(len(self.table), bool)
