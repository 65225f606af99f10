"""A worker's batches come in the order of the plan, one forward pass at a time, and are made while it works."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from support.fold_tasks import WIDTH, GeneratedBags, fold_task

from momkd_ray.batches.collate import BagBatch
from momkd_ray.batches.message_graph import MessageGraph
from momkd_ray.formats.bag import Bag
from momkd_ray.formats.knn_graph import no_graph
from momkd_ray.train.collectives import SingleProcess
from momkd_ray.train.fold_data import FoldData

EPOCHS = 3


@dataclass
class CountedBags:
    """Bags whose reads are counted."""

    reads: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def read(self, slide_id: str) -> Bag:
        with self.changed:
            self.reads.append(slide_id)
            self.changed.notify_all()
        return GeneratedBags().read(slide_id)

    def come_to(self, reads: int) -> bool:
        """Waits until so many bags have been read."""
        with self.changed:
            return self.changed.wait_for(lambda: len(self.reads) >= reads, 10)


class Rank(SingleProcess):
    """A rank that exchanges nothing with the others."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world


def data_of(location: Path, source: CountedBags, rank: int = 0, world: int = 1) -> FoldData:
    task = replace(fold_task(location), source=source)
    return FoldData(task, Rank(rank, world), torch.device("cpu"))


@pytest.mark.parametrize("first_step", [0, 2])
@pytest.mark.parametrize("world", [1, 3])
def test_batches_are_those_of_the_plan_epoch_after_epoch(tmp_path: Path, world: int, first_step: int) -> None:
    """Whether a step's batches are taken one by one or left, on every rank, from any step on."""
    trained: dict[int, list[tuple[int, int]]] = {}
    validated: dict[int, list[str]] = {}
    for rank in range(world):
        data = data_of(tmp_path, CountedBags(), rank, world)
        for epoch in range(EPOCHS):
            plan = data.plan(epoch)
            first = first_step if epoch == 0 else 0
            for step, share in enumerate(data.shares(plan, first, epoch), first):
                assert share.global_bags == len(plan[step])
                assert [draw for draws in share.passes for draw in draws] == (share.draws or plan[step][:1])
                trained.setdefault(epoch, []).extend((step, draw.position) for draw in share.draws)
                if step == 1:
                    continue  # this one's batches are left
                for draws, batch in zip(share.passes, share.batches(), strict=True):
                    assert batch.seeds == tuple(draw.seed for draw in draws)
                    assert batch.bag_ids == tuple(data.by_role["train"].ids[draw.bag] for draw in draws)
            validated.setdefault(epoch, []).extend(batch.bag_ids[0] for _, batch in data.single("val", epoch=epoch))
        ids = data.by_role["val"].ids
        data.close()
    for epoch in range(EPOCHS):
        whole = [(step, draw.position) for step, draws in enumerate(data.plan(epoch)) for draw in draws]
        assert sorted(trained[epoch]) == [at for at in whole if at[0] >= (first_step if epoch == 0 else 0)]
        assert sorted(validated[epoch]) == sorted(ids)


def test_a_pass_is_made_while_the_one_before_it_is_used(tmp_path: Path) -> None:
    """With memory for no more than one pass ahead, within a step and beyond its end, the epoch's and validation's."""
    source = CountedBags()
    data = data_of(tmp_path, source)
    largest = max(data.by_role["train"].patches)
    cluster = data.config.cluster.model_copy(update={"read_ahead_mb": 1e-6, "read_threads": 1})
    train = data.config.train.model_copy(update={"patches_per_pass": largest})
    data.config = data.config.model_copy(update={"cluster": cluster, "train": train})
    used, total = 0, EPOCHS * sum(len(data.by_role[role].ids) for role in ("train", "val"))
    for epoch in range(EPOCHS):
        for share in data.shares(data.plan(epoch), 0, epoch):
            for number, _ in enumerate(share.batches(), 1):
                used += len(share.passes[number - 1])
                assert source.come_to(min(used + 1, total))
        for _ in data.single("val", epoch=epoch):
            used += 1
            assert source.come_to(min(used + 1, total))
    assert len(source.reads) == used == total
    data.close()


@pytest.mark.parametrize("kept", [True, False])
def test_validation_bags_of_little_memory_are_read_once(tmp_path: Path, kept: bool) -> None:
    """And those that would take more than half of what is read ahead, in every epoch; the batches are the same."""
    source = CountedBags()
    data = data_of(tmp_path, source)
    val = data.by_role["val"]
    read_ahead = 2 * 4 * WIDTH * sum(val.patches) / 2**20 * (1 if kept else 0.99)
    cluster = data.config.cluster.model_copy(update={"read_ahead_mb": read_ahead})
    data.config = data.config.model_copy(update={"cluster": cluster})
    for epoch in range(EPOCHS):
        for _ in data.shares(data.plan(epoch), 0, epoch):
            pass
        for index, batch in data.single("val", epoch=epoch):
            assert batch.bag_ids == (val.ids[index],)
            assert torch.equal(batch.features_PD, torch.from_numpy(GeneratedBags().read(val.ids[index]).features))
    data.close()
    assert {source.reads.count(slide_id) for slide_id in val.ids} == {1 if kept else EPOCHS}


def test_nothing_is_read_after_the_end(tmp_path: Path) -> None:
    source = CountedBags()
    data = data_of(tmp_path, source)
    next(data.shares(data.plan(0), 0, 0))
    data.close()
    time.sleep(0.05)
    seen = len(source.reads)
    time.sleep(0.05)
    assert len(source.reads) == seen


def test_a_model_that_reads_no_graph_gets_self_loops_only(tmp_path: Path) -> None:
    def batch_of(*, graph: bool) -> BagBatch:
        task = fold_task(tmp_path)
        data = FoldData(task, SingleProcess(), torch.device("cpu"), graph=graph)
        batch = next(next(data.shares(data.plan(0), 0, 0)).batches())
        data.close()
        return batch

    with_graph, without = batch_of(graph=True), batch_of(graph=False)
    assert torch.equal(with_graph.features_PD, without.features_PD)
    assert without.features_PD.shape[1] == WIDTH
    assert without.messages_per_bag == without.patches_per_bag != with_graph.messages_per_bag
    expected = MessageGraph.from_csr(*no_graph(len(without.features_PD)))
    for name in vars(expected):
        assert torch.equal(getattr(without.graph, name), getattr(expected, name)), name
