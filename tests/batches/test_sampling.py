"""The draws of an epoch: every bag exactly once, or classes equally often, from the seed alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from momkd_ray.batches.sampling import Draw, plan_epoch

seeds = st.integers(0, 99)


def epoch_of(n: int, bags_per_step: int, seed: int = 0, epoch: int = 0, balanced: bool = False) -> list[list[Draw]]:
    ids, labels = [f"s{i}" for i in range(n)], np.arange(n) % 2
    return plan_epoch(ids, labels, seed=seed, epoch=epoch, bags_per_step=bags_per_step, balanced=balanced)


@given(st.integers(2, 50), st.integers(1, 9), seeds, seeds)
def test_an_epoch_without_balance_takes_every_bag_once(n: int, bags: int, seed: int, epoch: int) -> None:
    plan = epoch_of(n, bags, seed, epoch)
    assert sorted(draw.bag for step in plan for draw in step) == list(range(n))
    assert [len(step) for step in plan[:-1]] == [bags] * (len(plan) - 1)
    assert plan == epoch_of(n, bags, seed, epoch)


def test_a_balanced_epoch_draws_rare_and_common_classes_alike() -> None:
    ids, labels = [f"s{i}" for i in range(2000)], (np.arange(2000) < 100).astype(int)
    plan = plan_epoch(ids, labels, seed=1, epoch=0, bags_per_step=7, balanced=True)
    drawn = [draw for step in plan for draw in step]
    assert len(drawn) == 2000
    assert 0.45 < np.mean([labels[draw.bag] for draw in drawn]) < 0.55
    # a bag drawn twice in an epoch gets another dropout each time
    assert len({draw.seed for draw in drawn}) == 2000
    other = plan_epoch(ids, labels, seed=1, epoch=1, bags_per_step=7, balanced=True)
    assert [d.bag for s in other for d in s] != [d.bag for d in drawn]
