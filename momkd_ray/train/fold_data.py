"""Prefetches one worker's batches: its share of every training step, and of the bags to predict."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

from momkd_ray.bags.bag_stream import BagStream, Item, is_remote, open_stream
from momkd_ray.bags.patch_sample import read_patches
from momkd_ray.batches.collate import BagBatch, collate
from momkd_ray.batches.gpu_transfer import PendingBatch, Transfer
from momkd_ray.batches.prefetch import prefetch
from momkd_ray.batches.sampling import Step, plan_epoch
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


class Share:
    """One worker's part of a training step.

    Args:
        draws: of this worker; empty in a step with fewer bags than workers.
        global_bags: number of bags of all workers.
        passes: the draws of each of its batches; without draws of its own, the bag that fills in.
        ready: yields the batches, and later ones.

    Attributes:
        draws, global_bags, passes: as given.
        waited_s: seconds that the worker has waited for its batches.
    """

    def __init__(self, draws: Step, global_bags: int, passes: list[Step], ready: Iterator[PendingBatch]) -> None:
        self.draws, self.global_bags, self.passes = draws, global_bags, passes
        self.waited_s = 0.0
        self._ready, self._taken = ready, 0

    def batches(self) -> Iterator[BagBatch]:
        """Yields the batches, each when it is asked for."""
        while self._taken < len(self.passes):
            began = time.monotonic()
            batch = next(self._ready).wait()
            assert batch.seeds == tuple(draw.seed for draw in self.passes[self._taken])
            self._taken += 1
            self.waited_s += time.monotonic() - began
            yield batch


Work = tuple[int, Step | int]
"""What a batch is made of: an epoch, and the draws of a pass or the index of a validation bag."""


class FoldData:
    """Provides one worker's batches of a fold.

    Args:
        task: the fold.
        collective: gives rank and number of workers.
        device: the worker's device.
        graph: whether the model reads the patch graph.
        omics_to_predict: whether it reads the omics of the patients that it predicts.
        whole_steps: whether all bags of a step share one pass.
    """

    def __init__(
        self,
        task: FoldTask,
        collective: Collective,
        device: torch.device,
        *,
        graph: bool = True,
        omics_to_predict: bool = False,
        whole_steps: bool = False,
    ) -> None:
        self.task, self.config, self.collective, self.device = task, task.config, collective, device
        self.graph, self.omics_to_predict, self.whole_steps = graph, omics_to_predict, whole_steps
        self.transfer = Transfer(device)
        self.by_role = {role: RoleBags.of(task.bags, role) for role in ROLES}
        self._stream: BagStream | None = None
        self._ready: Generator[PendingBatch] | None = None
        self._kept: dict[int, PendingBatch] = {}
        self._kept_bytes = 0

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
        """Yields this worker's share of each step of an epoch from `first_step` on.

        From the first call on all later epochs are prefetched too, the validation bags between them unless they are
        kept, so that nothing is waited for where an epoch begins. So the epochs follow each other, each with
        `single("val", epoch=...)`.
        """
        if self._ready is None:
            self._kept_bytes = self._bytes_to_keep()
            self._stream = self._open_stream(self._items(epoch, first_step))
            self._ready = self._prefetch_training(self._stream, epoch, first_step)
        for step, draws in list(zip(plan, self._own(plan), strict=True))[first_step:]:
            share = Share(draws, len(step), self._passes(draws or step[:1]), self._ready)
            yield share
            for _ in share.batches():
                pass  # those that the caller has not taken

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

    def single(
        self, role: str, *, epoch: int | None = None, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[int, BagBatch]]:
        """Yields this worker's share of a role's bags with their indices, one bag per batch.

        A bag's prediction then does not depend on the bags beside it, to the last digit.

        Args:
            role: of the bags.
            epoch: whose validation this is, after its `shares`; None for bags that are read once.
            indices: of the bags; None for all.
        """
        bags, own = self.by_role[role], self._own_indices(role, indices)
        if epoch is not None and self._ready is not None:
            for index in own:
                pending = self._kept.get(index) or next(self._ready)
                assert pending.batch.bag_ids == (bags.ids[index],)
                if self._kept_bytes:
                    self._kept[index] = pending
                yield index, pending.wait()
            return
        stream = self._open_stream(((role, index), bags.ids[index]) for index in own)
        read = self._prefetch(
            own,
            lambda index: (index, self._single(role, index, self._read(stream, (role, index), bags.ids[index]))),
            lambda index: bags.patches[index],
        )
        try:
            yield from read
        finally:
            if stream is not None:
                stream.close()

    def target(self, index: int) -> Target:
        """Returns what a training bag is trained towards: its patient's target, or else its label."""
        bags, classes = self.by_role["train"], self.task.classes
        y = bags.y[index]
        label = float(y) if classes == 2 else tuple(float(y == other) for other in range(classes))
        return self.task.targets.get(bags.patients[index], label)

    def close(self) -> None:
        """Ends the delivery of the training's bags."""
        stream, ready, self._stream, self._ready = self._stream, self._ready, None, None
        self._kept, self._kept_bytes = {}, 0
        if stream is not None:
            stream.close()
        if ready is not None:
            ready.close()

    def _own(self, plan: list[Step]) -> list[Step]:
        """Returns this worker's draws of each step.

        A rank without a bag in a short last step has none; it takes part with the step's first bag at weight 0.
        """
        shares = assign_to_ranks(plan, self.by_role["train"].patches, self.collective.world)
        return [by_rank[self.collective.rank] for by_rank in shares]

    def _own_indices(self, role: str, indices: Sequence[int] | None = None) -> list[int]:
        bags = self.by_role[role]
        indices = range(len(bags.ids)) if indices is None else indices
        own = balance([bags.patches[index] for index in indices], self.collective.world)[self.collective.rank]
        return [indices[i] for i in own]

    def _passes(self, draws: Step) -> list[Step]:
        """Groups draws into those of each forward pass."""
        if self.whole_steps:
            return [list(draws)]
        patches = [self.by_role["train"].patches[draw.bag] for draw in draws]
        return [[draws[i] for i in group] for group in micro_batches(patches, self.config.train.patches_per_pass)]

    def _works(self, epoch: int, first_step: int) -> Iterator[Work]:
        """Yields what this worker trains and validates on from a step on, to the last epoch.

        Validation bags that are kept are read in the first of these epochs only.
        """
        first = epoch
        while epoch < self.config.train.epochs:
            plan = self.plan(epoch)
            for step, draws in list(zip(plan, self._own(plan), strict=True))[first_step:]:
                yield from ((epoch, draws_of_pass) for draws_of_pass in self._passes(draws or step[:1]))
            if epoch == first or not self._kept_bytes:
                yield from ((epoch, index) for index in self._own_indices("val"))
            epoch, first_step = epoch + 1, 0

    def _items(self, epoch: int, first_step: int) -> Iterator[Item]:
        """Yields the bags of `_works`, one by one."""
        train, val = self.by_role["train"], self.by_role["val"]
        for its_epoch, work in self._works(epoch, first_step):
            if isinstance(work, int):
                yield ("val", its_epoch, work), val.ids[work]
            else:
                yield from (((its_epoch, draw.position), train.ids[draw.bag]) for draw in work)

    def _prefetch_training(self, stream: BagStream | None, epoch: int, first_step: int) -> Generator[PendingBatch]:
        """Prefetches the batches of `_works`."""
        train, val = self.by_role["train"], self.by_role["val"]

        def make(work: Work) -> PendingBatch:
            epoch, bags = work
            if isinstance(bags, int):
                return PendingBatch(self._single("val", bags, self._read(stream, ("val", *work), val.ids[bags])), None)
            read = [self._read(stream, (epoch, draw.position), train.ids[draw.bag]) for draw in bags]
            return self.transfer.send(self._pass(bags, read))

        def patches(work: Work) -> int:
            _, bags = work
            return val.patches[bags] if isinstance(bags, int) else sum(train.patches[draw.bag] for draw in bags)

        return self._prefetch(self._works(epoch, first_step), make, patches)

    def _bytes_to_keep(self) -> int:
        """Returns the memory of this worker's validation batches if it may be kept for all epochs, otherwise 0."""
        needed = self._bytes(sum(self.by_role["val"].patches[index] for index in self._own_indices("val")))
        return needed if needed <= self._read_ahead_bytes() // 2 else 0

    def _bytes(self, patches: int) -> int:
        return 4 * self.task.width * patches

    def _read_ahead_bytes(self) -> int:
        return int(self.config.cluster.read_ahead_mb * 2**20)

    def _open_stream(self, items: Iterator[Item]) -> BagStream | None:
        """Begins to deliver bags through Ray Data, if the source does that."""
        name = f"momkd-fold-{self.task.fold}-rank-{self.collective.rank}"
        cluster = self.config.cluster
        limit, tasks = self._read_ahead_bytes(), cluster.read_threads or READ_TASKS
        return open_stream(self.task.source, items, name, limit=limit, tasks=tasks)

    def _read(self, stream: BagStream | None, key: Hashable, bag_id: str) -> Bag:
        return self.task.source.read(bag_id) if stream is None else stream.take(key, bag_id)

    def _pass(self, draws: Step, read: list[Bag]) -> BagBatch:
        """Collates the bags of draws that share a forward pass; runs in a prefetch thread."""
        bags = self.by_role["train"]
        return collate(
            read,
            labels=[bags.y[draw.bag] for draw in draws],
            omics=[self.task.omics.get(bags.patients[draw.bag]) for draw in draws],
            seeds=[draw.seed for draw in draws],
            device=self.device,
            targets=[self.target(draw.bag) for draw in draws] if self.task.targets else None,
            graph=self.graph,
        )

    def _single(self, role: str, index: int, bag: Bag) -> BagBatch:
        """Collates a bag that is predicted; runs in a prefetch thread."""
        omics = [self.task.omics.get(self.by_role[role].patients[index])] if self.omics_to_predict else None
        return collate([bag], omics=omics, device=self.device, graph=self.graph)

    def _prefetch(
        self, tasks: Iterable[Task], make: Callable[[Task], Result], patches: Callable[[Task], int]
    ) -> Generator[Result]:
        """Prefetches `make(task)` within `cluster.read_ahead_mb`, less what is kept."""
        return prefetch(
            tasks,
            make,
            lambda task: self._bytes(patches(task)),
            threads=self.config.cluster.read_threads
            or (REMOTE_THREADS if is_remote(self.task.source) else LOCAL_THREADS),
            limit=self._read_ahead_bytes() - self._kept_bytes,
        )
