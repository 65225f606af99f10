"""One worker's bags: its share of every step, and of the bags that are only looked at, read while it computes."""

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
from momkd_ray.batches.sampling import Step, assign_to_ranks, balance, micro_batches, plan_epoch
from momkd_ray.seeds import derive_seed
from momkd_ray.train.collectives import Collective
from momkd_ray.train.task import ROLES, FoldTask, RoleBags

Task = TypeVar("Task")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Share:
    """What one worker does in a step."""

    draws: Step  # its own; none in a step of fewer bags than workers
    global_bags: int  # of all workers
    batches: list[BagBatch]  # of its draws, one a pass; without any, of a filler that counts for nothing
    waited_s: float  # until they were there


class FoldData:
    """The bags of a fold as one worker of a world takes them."""

    def __init__(self, task: FoldTask, collective: Collective, device: torch.device) -> None:
        self.task, self.config, self.collective, self.device = task, task.config, collective, device
        self.transfer = Transfer(device)
        self.by_role = {role: RoleBags.of(task.bags, role) for role in ROLES}

    def plan(self, epoch: int) -> list[Step]:
        """The steps of an epoch, of all workers."""
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
        """This worker's share of each step from `first_step` on."""
        bags, rank = self.by_role["train"], self.collective.rank
        dealt = [by_rank[rank] for by_rank in assign_to_ranks(plan, bags.patches, self.collective.world)]
        todo = list(zip(plan, dealt, strict=True))[first_step:]
        # a rank left without a bag in a short last step takes part with the step's first one at weight 0
        ready = self._ahead(
            [share or step[:1] for step, share in todo],
            self._batches,
            lambda draws: sum(bags.patches[draw.bag] for draw in draws),
        )
        for step, share in todo:
            began = time.monotonic()
            batches = [pending.wait() for pending in next(ready)]
            yield Share(share, len(step), batches, time.monotonic() - began)

    def each(self, role: str) -> Iterator[tuple[int, BagBatch]]:
        """This worker's share of a role's bags, each alone so that no neighbour changes a digit, by its place."""
        bags = self.by_role[role]
        yield from self._ahead(
            balance(bags.patches, self.collective.world)[self.collective.rank],
            lambda place: (place, collate([self.task.source.read(bags.ids[place])], device=self.device)),
            lambda place: bags.patches[place],
        )

    def _batches(self, draws: Step) -> list[PendingBatch]:
        """The batches of this rank's draws of a step, one a pass; runs ahead of the training on a thread of its own."""
        bags = self.by_role["train"]
        groups = micro_batches([bags.patches[draw.bag] for draw in draws], self.config.train.patches_per_pass)
        batches = (
            collate(
                [self.task.source.read(bags.ids[draws[i].bag]) for i in group],
                labels=[bags.y[draws[i].bag] for i in group],
                omics=[self.task.omics.get(bags.patients[draws[i].bag]) for i in group],
                seeds=[draws[i].seed for i in group],
                device=self.device,
            )
            for group in groups
        )
        return [self.transfer.send(batch) for batch in batches]

    def _ahead(
        self, tasks: Iterable[Task], make: Callable[[Task], Made], patches: Callable[[Task], int]
    ) -> Iterator[Made]:
        """What is made of each task, in order, by the threads that read ahead within their memory."""
        cluster = self.config.cluster
        bytes_per_patch = 4 * self.task.width
        return prefetch(
            tasks,
            make,
            lambda task: patches(task) * bytes_per_patch,
            threads=cluster.read_threads,
            limit=cluster.read_ahead_mb * 2**20,
        )
