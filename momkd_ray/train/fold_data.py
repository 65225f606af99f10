"""Prefetches one worker's batches: its share of every training step, and of the bags to predict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from momkd_ray.batches.collate import BagBatch, collate
from momkd_ray.batches.gpu_transfer import PendingBatch, Transfer
from momkd_ray.batches.prefetch import prefetch
from momkd_ray.batches.sampling import Step, plan_epoch
from momkd_ray.batches.sharding import assign_to_ranks, balance, micro_batches
from momkd_ray.cohort.splits import ROLES
from momkd_ray.seeds import derive_seed
from momkd_ray.train.collectives import Collective
from momkd_ray.train.task import FoldTask, RoleBags

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Share:
    """One worker's part of a training step.

    Attributes:
        draws: of this worker; empty in a step with fewer bags than workers.
        global_bags: number of bags of all workers.
        batches: micro-batches of the draws; without draws, of a filler bag of weight 0.
        waited_s: seconds that the worker waited for them.
    """

    draws: Step
    global_bags: int
    batches: list[BagBatch]
    waited_s: float


class FoldData:
    """Provides one worker's batches of a fold.

    Args:
        task: the fold.
        collective: gives rank and number of workers.
        device: the worker's device.
    """

    def __init__(self, task: FoldTask, collective: Collective, device: torch.device) -> None:
        self.task, self.config, self.collective, self.device = task, task.config, collective, device
        self.transfer = Transfer(device)
        self.by_role = {role: RoleBags.of(task.bags, role) for role in ROLES}

    def plan(self, epoch: int) -> list[Step]:
        """Samples the steps of an epoch, of all workers together."""
        train, bags = self.config.train, self.by_role["train"]
        return plan_epoch(
            bags.ids,
            np.array(bags.y),
            seed=derive_seed(train.seed, self.task.fold),
            epoch=epoch,
            bags_per_step=train.bags_per_step,
            balanced=train.balanced,
        )

    def shares(self, plan: list[Step], first_step: int) -> Iterator[Share]:
        """Yields this worker's share of each step from `first_step` on."""
        bags, rank = self.by_role["train"], self.collective.rank
        assigned = [by_rank[rank] for by_rank in assign_to_ranks(plan, bags.patches, self.collective.world)]
        remaining = list(zip(plan, assigned, strict=True))[first_step:]
        # a rank without a bag in a short last step takes part with the step's first bag at weight 0
        ready = self._prefetch(
            [draws or step[:1] for step, draws in remaining],
            self._batches,
            lambda draws: sum(bags.patches[draw.bag] for draw in draws),
        )
        for step, draws in remaining:
            began = time.monotonic()
            batches = [pending.wait() for pending in next(ready)]
            yield Share(draws, len(step), batches, time.monotonic() - began)

    def single(self, role: str, *, with_omics: bool = False) -> Iterator[tuple[int, BagBatch]]:
        """Yields this worker's share of a role's bags with their indices, one bag per batch.

        A bag's prediction then does not depend on the bags beside it, to the last digit.

        Args:
            role: of the bags.
            with_omics: whether batches have the omics of the patients that have them.
        """
        bags = self.by_role[role]

        def read(index: int) -> BagBatch:
            omics = [self.task.omics.get(bags.patients[index])] if with_omics else None
            return collate([self.task.source.read(bags.ids[index])], omics=omics, device=self.device)

        yield from self._prefetch(
            balance(bags.patches, self.collective.world)[self.collective.rank],
            lambda index: (index, read(index)),
            lambda index: bags.patches[index],
        )

    def _batches(self, draws: Step) -> list[PendingBatch]:
        """Reads and collates this rank's draws of a step into micro-batches; runs in a prefetch thread."""
        bags = self.by_role["train"]
        groups = micro_batches([bags.patches[draw.bag] for draw in draws], self.config.train.patches_per_pass)
        batches = (
            collate(
                [self.task.source.read(bags.ids[draws[i].bag]) for i in group],
                labels=[bags.y[draws[i].bag] for i in group],
                omics=[self.task.omics.get(bags.patients[draws[i].bag]) for i in group],
                seeds=[draws[i].seed for i in group],
                device=self.device,
                targets=[self.target(draws[i].bag) for i in group] if self.task.targets else None,
            )
            for group in groups
        )
        return [self.transfer.send(batch) for batch in batches]

    def target(self, index: int) -> float:
        """Returns the probability of class 1 that a training bag is trained towards."""
        bags = self.by_role["train"]
        return self.task.targets.get(bags.patients[index], float(bags.y[index]))

    def _prefetch(
        self, tasks: Iterable[Task], make: Callable[[Task], Result], patches: Callable[[Task], int]
    ) -> Iterator[Result]:
        """Prefetches `make(task)` within `cluster.read_ahead_mb`, by `cluster.read_threads` threads."""
        cluster = self.config.cluster
        bytes_per_patch = 4 * self.task.width
        return prefetch(
            tasks,
            make,
            lambda task: patches(task) * bytes_per_patch,
            threads=cluster.read_threads,
            limit=cluster.read_ahead_mb * 2**20,
        )
