"""Prefetches one worker's batches: its share of every training step, and of the bags to predict."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from momkd_ray.bags.bag_stream import BagStream, Item, is_remote, open_stream
from momkd_ray.bags.patch_sample import read_patches
from momkd_ray.batches.collate import BagBatch, collate
from momkd_ray.batches.gpu_transfer import PendingBatch, Transfer
from momkd_ray.batches.prefetch import prefetch
from momkd_ray.batches.sampling import Draw, Step, plan_epoch
from momkd_ray.batches.sharding import assign_to_ranks, balance, micro_batches
from momkd_ray.cohort.splits import ROLES
from momkd_ray.formats.bag import Bag
from momkd_ray.seeds import derive_seed
from momkd_ray.train.collectives import Collective
from momkd_ray.train.task import FoldTask, RoleBags, Target

Task = TypeVar("Task")
Result = TypeVar("Result")

LOCAL_THREADS, REMOTE_THREADS = 2, 8
"""Threads that read bags, from a disk and from S3, where they mostly wait for answers."""
READ_TASKS = 2
"""Ray Data's read tasks of a worker at a time; each reads several bags side by side."""


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
        tiled: whether large batches are cut into tiles, which only models that read the graph need.
    """

    def __init__(self, task: FoldTask, collective: Collective, device: torch.device, *, tiled: bool = True) -> None:
        self.task, self.config, self.collective, self.device = task, task.config, collective, device
        self.tiled = tiled
        self.transfer = Transfer(device)
        self.by_role = {role: RoleBags.of(task.bags, role) for role in ROLES}
        self._stream: BagStream | None = None

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

    def shares(self, plan: list[Step], first_step: int, epoch: int) -> Iterator[Share]:
        """Yields this worker's share of each step of an epoch from `first_step` on."""
        bags = self.by_role["train"]
        if self._stream is None:
            self._stream = self._open_stream(self._items(epoch, first_step))
        stream = self._stream
        remaining = list(zip(plan, self._own(plan), strict=True))[first_step:]
        ready = self._prefetch(
            [draws or step[:1] for step, draws in remaining],
            lambda draws: self._batches(
                draws, lambda draw: self._read(stream, (epoch, draw.position), bags.ids[draw.bag])
            ),
            lambda draws: sum(bags.patches[draw.bag] for draw in draws),
        )
        for step, draws in remaining:
            began = time.monotonic()
            batches = [pending.wait() for pending in next(ready)]
            yield Share(draws, len(step), batches, time.monotonic() - began)

    def sampled_patches(
        self, indices: Sequence[int], rows_of: Callable[[int], np.ndarray]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields this worker's share of some training bags: the index, and the features of sampled patches (R, D).

        Args:
            indices: of the training bags.
            rows_of: returns the numbers of a bag's sampled patches, ascending.
        """
        bags = self.by_role["train"]
        yield from self._prefetch(
            self._own_indices("train", indices),
            lambda index: (index, read_patches(self.task.source, bags.ids[index], rows_of(index))),
            lambda index: bags.patches[index],
        )

    def _own(self, plan: list[Step]) -> list[Step]:
        """Returns this worker's draws of each step.

        A rank without a bag in a short last step has none; it takes part with the step's first bag at weight 0.
        """
        shares = assign_to_ranks(plan, self.by_role["train"].patches, self.collective.world)
        return [by_rank[self.collective.rank] for by_rank in shares]

    def _items(self, epoch: int, first_step: int) -> Iterator[Item]:
        """Yields the bags that this worker trains and validates on from a step on, to the last epoch."""
        train, val = self.by_role["train"], self.by_role["val"]
        while epoch < self.config.train.epochs:
            plan = self.plan(epoch)
            for step, draws in list(zip(plan, self._own(plan), strict=True))[first_step:]:
                for draw in draws or step[:1]:
                    yield (epoch, draw.position), train.ids[draw.bag]
            for index in self._own_indices("val"):
                yield ("val", epoch, index), val.ids[index]
            epoch, first_step = epoch + 1, 0

    def _own_indices(self, role: str, indices: Sequence[int] | None = None) -> list[int]:
        bags = self.by_role[role]
        indices = range(len(bags.ids)) if indices is None else indices
        own = balance([bags.patches[index] for index in indices], self.collective.world)[self.collective.rank]
        return [indices[i] for i in own]

    def _open_stream(self, items: Iterator[Item]) -> BagStream | None:
        """Begins to deliver bags through Ray Data, if the source does that."""
        name = f"momkd-fold-{self.task.fold}-rank-{self.collective.rank}"
        cluster = self.config.cluster
        limit = cluster.read_ahead_mb * 2**20
        return open_stream(self.task.source, items, name, limit=limit, tasks=cluster.read_threads or READ_TASKS)

    def _read(self, stream: BagStream | None, key: Hashable, bag_id: str) -> Bag:
        return self.task.source.read(bag_id) if stream is None else stream.take(key, bag_id)

    def close(self) -> None:
        """Ends the delivery of bags."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def single(
        self,
        role: str,
        *,
        with_omics: bool = False,
        epoch: int | None = None,
        indices: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, BagBatch]]:
        """Yields this worker's share of a role's bags with their indices, one bag per batch.

        A bag's prediction then does not depend on the bags beside it, to the last digit.

        Args:
            role: of the bags.
            with_omics: whether batches have the omics of the patients that have them.
            epoch: whose validation this is; None for bags that are read once.
            indices: of the bags; None for all.
        """
        bags, own = self.by_role[role], self._own_indices(role, indices)
        once = None
        if epoch is None or self._stream is None:
            once = self._open_stream(((role, epoch, index), bags.ids[index]) for index in own)
        stream = once or self._stream

        def read(index: int) -> BagBatch:
            omics = [self.task.omics.get(bags.patients[index])] if with_omics else None
            bag = self._read(stream, (role, epoch, index), bags.ids[index])
            return collate([bag], omics=omics, device=self.device, tiled=self.tiled)

        try:
            yield from self._prefetch(own, lambda index: (index, read(index)), lambda index: bags.patches[index])
        finally:
            if once is not None:
                once.close()

    def _batches(self, draws: Step, read: Callable[[Draw], Bag]) -> list[PendingBatch]:
        """Reads and collates this rank's draws of a step into micro-batches; runs in a prefetch thread."""
        bags = self.by_role["train"]
        groups = micro_batches([bags.patches[draw.bag] for draw in draws], self.config.train.patches_per_pass)
        batches = (
            collate(
                [read(draws[i]) for i in group],
                labels=[bags.y[draws[i].bag] for i in group],
                omics=[self.task.omics.get(bags.patients[draws[i].bag]) for i in group],
                seeds=[draws[i].seed for i in group],
                device=self.device,
                targets=[self.target(draws[i].bag) for i in group] if self.task.targets else None,
                tiled=self.tiled,
            )
            for group in groups
        )
        return [self.transfer.send(batch) for batch in batches]

    def target(self, index: int) -> Target:
        """Returns what a training bag is trained towards: its patient's target, or else its label."""
        bags, classes = self.by_role["train"], self.task.classes
        y = bags.y[index]
        label = float(y) if classes == 2 else tuple(float(y == other) for other in range(classes))
        return self.task.targets.get(bags.patients[index], label)

    def _prefetch(
        self, tasks: Iterable[Task], make: Callable[[Task], Result], patches: Callable[[Task], int]
    ) -> Iterator[Result]:
        """Prefetches `make(task)` within `cluster.read_ahead_mb`."""
        cluster = self.config.cluster
        bytes_per_patch = 4 * self.task.width
        return prefetch(
            tasks,
            make,
            lambda task: patches(task) * bytes_per_patch,
            threads=cluster.read_threads or (REMOTE_THREADS if is_remote(self.task.source) else LOCAL_THREADS),
            limit=cluster.read_ahead_mb * 2**20,
        )
